"""The command ``lightning-gp``: Lightning's own command line with this package's algorithms and data, and more."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

OVERVIEW = """\
lightning-gp: gradient-based multi-environment learning (MAML, IRM, gradient penalties) for PyTorch Lightning

  lightning-gp demo                                meta-train on sinusoids for about a minute and plot the result
  lightning-gp fit      --config FILE.yaml         train; the config names model, data and trainer
  lightning-gp validate --config FILE.yaml         evaluate on the validation episodes
  lightning-gp test     --config FILE.yaml         evaluate on the test episodes, with confidence intervals
  lightning-gp reproduce colored-mnist             IRM, ERM and the oracle on colored MNIST (hours; resumes)
  lightning-gp reproduce gradient-norms omniglot   cosine and norm of gradients, MAML against no inner loop
  lightning-gp dashboard --entity E --project P    build a Weights & Biases workspace (--dry-run prints it)

Every option of the config can be given on the command line, as in --model.init_args.inner_lr=0.1.
  lightning-gp fit --help                          the trainer's options
  lightning-gp fit --model.help MAML               an algorithm's options (or ANIL, BOIL, ERM, FOMAML, your own)
  lightning-gp fit --data.help OmniglotDataModule  a data module's options
Set LIGHTNING_GP_DEBUG=1 to see the traceback of an error.
"""

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")


def run_lightning(args: Sequence[str]) -> None:
    """``fit``, ``validate`` and ``test``: LightningCLI over any LightningModule and LightningDataModule."""
    import importlib

    import lightning_gp.datamodules as datamodules
    import lightning_gp.modules as modules
    from lightning_gp._lightning import NAMESPACE, LightningDataModule, LightningModule
    from lightning_gp.allocator import keep_freed_memory

    for package in (modules, datamodules):  # known classes can be named without their path
        for name in package.__all__:
            getattr(package, name)
    keep_freed_memory()
    cli = importlib.import_module(f"{NAMESPACE}.cli")
    cli.LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=None if list(args) == sys.argv[1:] else list(args),
        auto_configure_optimizers=False,  # our modules take `optimizer` and `lr_scheduler` themselves
        parser_kwargs={"prog": "lightning-gp"},
        save_config_kwargs={"overwrite": True},  # `fit` and then `test` of one config write to one folder
    )


def run_demo(args: Sequence[str]) -> None:
    """``demo``: the main job on data made on the spot."""
    from lightning_gp.experiments.demo import main as demo

    demo(args)


def run_dashboard(args: Sequence[str]) -> None:
    """``dashboard``: a Weights & Biases workspace for this package's keys."""
    from lightning_gp.dashboards import main as dashboard

    dashboard(args)


EXPERIMENTS = {"colored-mnist": "colored_mnist", "gradient-norms": "gradient_norms"}


def run_reproduce(args: Sequence[str]) -> None:
    """``reproduce``: a figure or table of the papers."""
    import importlib

    words = list(args)
    if not words or words[0] not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise ValueError(f"reproduce {' '.join(words[:1])}: choose from {known}; --help behind it says more.")
    importlib.import_module(f"lightning_gp.experiments.{EXPERIMENTS[words[0]]}").main(words[1:])


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": run_demo,
    "dashboard": run_dashboard,
    "reproduce": run_reproduce,
}


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of ``lightning-gp``.

    Args:
        args: the words after the command; None for the process's own.

    Returns:
        The exit status: 0 if it worked, 2 for a user's mistake.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return 0
    sys.path.insert(0, os.getcwd())  # so that a user's own module can be named by class_path
    command: Callable[[Any], None]
    if words[0] in LIGHTNING_COMMANDS:
        command, rest = run_lightning, words
    elif words[0] in COMMANDS:
        command, rest = COMMANDS[words[0]], words[1:]
    else:
        known = ", ".join([*LIGHTNING_COMMANDS, *COMMANDS])
        print(f"lightning-gp: {words[0]!r} is no command; there are {known}.", file=sys.stderr)
        return 2
    try:
        command(rest)
    except (ValueError, TypeError, OSError, ImportError) as error:
        ours = _our_error(error)
        if os.environ.get("LIGHTNING_GP_DEBUG") or ours is None:
            raise
        print(f"lightning-gp: error: {ours}", file=sys.stderr)
        return 2
    return 0


def _our_error(error: BaseException | None) -> BaseException | None:
    """This package's own message behind ``error``, to which a traceback adds nothing; None if there is none.

    The argument parser wraps what a constructor raises into an error that repeats the whole configuration.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if frames and os.path.dirname(os.path.abspath(__file__)) in os.path.abspath(frames[-1].filename):
            return error
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    sys.exit(main())
