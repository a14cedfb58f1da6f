"""``lightning-gp fit``, ``validate``, ``test`` and ``predict``: LightningCLI over any module and data module."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_gp._lightning import NAMESPACE, LightningDataModule, LightningModule, pl


def main(args: Sequence[str]) -> None:
    """Runs the subcommand that ``args`` starts with."""
    from lightning_gp.allocator import keep_freed_memory

    exceptions: Any = importlib.import_module(f"{NAMESPACE}.utilities.exceptions")
    keep_freed_memory()
    try:
        lightning_cli(
            args,
            prog="lightning-gp",
            save_config_kwargs={"overwrite": True},  # `fit` and then `test` of one config write to one folder
        )
    except exceptions.MisconfigurationException as error:
        raise ValueError(str(error)) from error  # Lightning's word for a user's mistake
    except exceptions.SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop  # Lightning's own status would be 0, as if it had finished


def lightning_cli(
    args: Sequence[str], prog: str, add_arguments: Callable[[Any], None] | None = None, **options: Any
) -> Any:
    """A LightningCLI that knows this package's classes by name.

    Args:
        args: the words of the command line.
        prog: the command as help shows it.
        add_arguments: called with the parser, to add options of a command's own.
        options: as for ``LightningCLI``; ``run=False`` builds trainer, model and data without running anything,
            ``description`` is what help says first.

    Returns:
        The LightningCLI, with ``trainer``, ``model``, ``datamodule`` and ``config``.

    Raises:
        ValueError: if there is no option at all.
    """
    if not any(word.startswith("-") for word in args):
        raise ValueError(
            f"{prog} needs a config: add --config FILE.yaml (examples/sinusoid_maml.yaml shows one), or --help for "
            "all options."
        )
    from lightning_gp.checkpoints import WholeCheckpoints
    from lightning_gp.runs.config import known_classes

    description = options.pop("description", "Trains and tests what a config names, with Lightning's Trainer.")
    known_classes()
    base: Any = importlib.import_module(f"{NAMESPACE}.cli").LightningCLI

    class CLI(base):  # type: ignore[misc]
        def add_arguments_to_parser(self, parser: Any) -> None:
            if add_arguments is not None:
                add_arguments(parser)

        def _parse_ckpt_path(self) -> None:
            # Lightning would let what the checkpoint says of the model override the config and the command line. Here
            # these count, and a module that does not fit the checkpoint refuses it.
            pass

        def instantiate_trainer(self, **settings: Any) -> Any:
            trainer = super().instantiate_trainer(**settings)
            if options.get("run", True):
                _keep_metrics(trainer)
            if type(trainer.strategy.checkpoint_io) is not WholeCheckpoints.__base__:
                return trainer  # the user's own, or that of a strategy that writes a folder
            trainer.strategy.checkpoint_io = WholeCheckpoints()
            return trainer

    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=None if list(args) == sys.argv[1:] else list(args),
        auto_configure_optimizers=False,  # our modules take `optimizer` and `lr_scheduler` themselves
        parser_kwargs={"prog": prog, "description": description},
        **options,
    )


def _keep_metrics(trainer: Any) -> None:
    """Renames what an earlier run has logged: Lightning's CSVLogger would delete it, also to resume or to test."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if not isinstance(logger, pl.loggers.CSVLogger):
            continue
        path = Path(logger.log_dir) / "metrics.csv"
        if path.is_file():
            count = 1
            while (kept := path.with_name(f"metrics_{count}.csv")).exists():
                count += 1
            path.rename(kept)
            print(f"The metrics of the last run there are now {kept}; this run writes {path}.", file=sys.stderr)
