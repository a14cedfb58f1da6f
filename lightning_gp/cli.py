"""The command ``lightning-gp``: Lightning's own command line with this package's algorithms and data, and more."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from lightning_gp.commands.known import COMMANDS

OVERVIEW = """\
lightning-gp: gradient-based multi-environment learning (MAML, IRM, gradient penalties) for PyTorch Lightning

  lightning-gp demo                                meta-train on sinusoids for about a minute and plot the result
  lightning-gp init     images | tables | callbacks   a starter in a folder of yours: config, module, test, README
  lightning-gp fit      --config FILE.yaml         train; the config names model, data and trainer (--resume goes on)
  lightning-gp test     --config FILE.yaml         the run's best weights on the test episodes, with intervals
  lightning-gp validate --config FILE.yaml         the same on the validation episodes
  lightning-gp data check --config FILE.yaml       classes and images of each split, the cache, broken files
  lightning-gp data show  --config FILE.yaml       draw an episode (--output episode.png)
  lightning-gp diagnose --config FILE.yaml         is the learning rate right? gradients, curvature and the edge, a card
  lightning-gp theory   --eigenvalues 4 1          which pairs of rates converge, as a picture; or --card diagnose.json
  lightning-gp tune     --config FILE.yaml         suggest the learning rates of any module from short trainings
  lightning-gp map      --config FILE.yaml         loss over a grid of inner and outer rates; map merge, map plot
  lightning-gp compare  --config A.yaml B.yaml --seeds 3   train each per seed: a table with intervals, a picture
  lightning-gp report   FOLDER                     one page of HTML about a run: results, curves, the edge, config
  lightning-gp cross-domain --config FILE.yaml --test_data OTHER.yaml …   train once per seed, test on other data
  lightning-gp reproduce EXPERIMENT                the papers' figures and tables; reproduce --help lists them
  lightning-gp dashboard --entity E --project P    build a Weights & Biases workspace (--dry-run prints it)
  lightning-gp algorithms | networks | data | callbacks | configs         what there is, one line each
  lightning-gp completion bash                     completes commands and options by the tab key; bash, zsh

A config is a file, or the name of one that comes with the package: --config sinusoid_maml.
Every option of it can be given on the command line, as in --model.init_args.inner_lr=0.1.
  lightning-gp COMMAND --help                      its options
  lightning-gp fit --model.help MAML               an algorithm's options (or ANIL, BOIL, ERM, FOMAML, your own)
  lightning-gp fit --data.help OmniglotDataModule  a data module's options
Set LIGHTNING_GP_DEBUG=1 to see the traceback of an error.
"""

NAMED = ("commands.training", "commands.names")
"""Modules that several commands share, and that therefore get the command's name as first word."""


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
    if words[0] == "--version":
        from lightning_gp import __version__

        print(f"lightning-gp {__version__}")
        return 0
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"lightning-gp: {words[0]!r} is no command; there are {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
        return 2
    try:
        return _run(words)
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


def _run(words: Sequence[str]) -> int:
    from lightning_gp.commands.helps import help_for

    shown = help_for(words)  # without what the command itself would import
    if shown is not None:
        print(shown, end="")
        return 0
    sys.path.insert(0, os.getcwd())  # so that a user's own module can be named by class_path
    home = COMMANDS[words[0]]
    importlib.import_module(f"lightning_gp.{home}").main(words if home in NAMED else words[1:])
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
