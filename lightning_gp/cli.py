"""The command ``lightning-gp``: Lightning's own command line with this package's algorithms and data, and more."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

OVERVIEW = """\
lightning-gp: gradient-based multi-environment learning (MAML, IRM, gradient penalties) for PyTorch Lightning

  lightning-gp demo                                meta-train on sinusoids for about a minute and plot the result
  lightning-gp fit      --config FILE.yaml         train; the config names model, data and trainer
  lightning-gp validate --config FILE.yaml         evaluate on the validation episodes
  lightning-gp test     --config FILE.yaml         evaluate on the test episodes, with confidence intervals
  lightning-gp data check --config FILE.yaml       classes and images of each split, the cache, broken files
  lightning-gp data show  --config FILE.yaml       draw an episode (--output episode.png)
  lightning-gp diagnose --config FILE.yaml         is the learning rate right? gradients, curvature and the edge, a card
  lightning-gp theory   --eigenvalues 4 1          which pairs of rates converge, as a picture; or --card diagnose.json
  lightning-gp tune     --config FILE.yaml         suggest the learning rates of any module from short trainings
  lightning-gp map      --config FILE.yaml         loss over a grid of inner and outer rates; map merge, map plot
  lightning-gp cross-domain --config FILE.yaml --test_data OTHER.yaml …   train once per seed, test on other data
  lightning-gp reproduce EXPERIMENT                the papers' figures and tables; reproduce --help lists them
  lightning-gp dashboard --entity E --project P    build a Weights & Biases workspace (--dry-run prints it)

Every option of the config can be given on the command line, as in --model.init_args.inner_lr=0.1.
  lightning-gp fit --help                          the trainer's options
  lightning-gp fit --model.help MAML               an algorithm's options (or ANIL, BOIL, ERM, FOMAML, your own)
  lightning-gp fit --data.help OmniglotDataModule  a data module's options
Set LIGHTNING_GP_DEBUG=1 to see the traceback of an error.
"""

COMMANDS = {
    "fit": "commands.training",
    "validate": "commands.training",
    "test": "commands.training",
    "predict": "commands.training",
    "demo": "experiments.demo",
    "map": "commands.map",
    "tune": "commands.tune",
    "diagnose": "commands.diagnose",
    "theory": "commands.theory",
    "reproduce": "commands.reproduce",
    "cross-domain": "commands.cross_domain",
    "data": "commands.data",
    "dashboard": "dashboards",
}
"""Command → the module of this package whose ``main(words)`` runs it; imported only when it is asked for."""


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
    if words[0] not in COMMANDS:
        print(f"lightning-gp: {words[0]!r} is no command; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    home = COMMANDS[words[0]]
    rest = words if home == "commands.training" else words[1:]  # LightningCLI reads its subcommand itself
    try:
        importlib.import_module(f"lightning_gp.{home}").main(rest)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes
        return 0
    except KeyboardInterrupt:
        print("lightning-gp: interrupted.", file=sys.stderr)
        return 130
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
