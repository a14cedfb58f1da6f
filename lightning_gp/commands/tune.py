"""``lightning-gp tune``: inner and outer rate for the model and data of a config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gp.commands.training import lightning_cli
from lightning_gp.files import replacing
from lightning_gp.plots import require_matplotlib
from lightning_gp.trainability.tuner import LearningRateTuner


def main(args: Sequence[str]) -> None:
    """Tunes, prints the suggestion, and writes ``tune.json`` and ``tune.png``."""
    from lightning_gp.allocator import keep_freed_memory

    keep_freed_memory()
    description = "Suggests inner and outer rate for the model and data of a config of `fit`, from short trainings."
    cli = lightning_cli(args, "lightning-gp tune", _add_options, run=False, description=description)
    options = cli.config.tune
    if cli.datamodule is None:
        raise ValueError("The config names no data; add a `data:` section, as for `lightning-gp fit`.")
    require_matplotlib()
    tuner = LearningRateTuner(options.steps, options.environments, options.tolerance, progress=_say)
    suggestion = tuner.tune(cli.model, cli.datamodule, cli.trainer.strategy.root_device)
    folder = Path(options.output)
    with replacing(folder / "tune.json") as path:
        path.write_text(json.dumps(suggestion.as_dict(), indent=2) + "\n")
    with replacing(folder / "tune.png") as path:
        suggestion.plot().savefig(path, dpi=120, format="png")
    print(f"\n{suggestion.report()}\n\nPicture: {folder / 'tune.png'}   Runs: {folder / 'tune.json'}")
    print(
        f"Train with it: lightning-gp fit … --model.init_args.inner_lr={suggestion.inner_lr:.4g} "
        f"--model.init_args.optimizer.init_args.lr={suggestion.outer_lr:.4g}",
        flush=True,
    )


def _add_options(parser: Any) -> None:
    parser.add_argument("--tune.steps", type=int, default=200, help="outer steps of each of about 20 probing runs")
    parser.add_argument("--tune.environments", type=int, default=8, help="environments whose curvature is measured")
    parser.add_argument("--tune.tolerance", type=float, default=0.02, help="loss that a larger inner rate may cost")
    parser.add_argument("--tune.output", type=str, default="runs/tune", help="folder of picture and runs")


def _say(line: str) -> None:
    print(line, flush=True)
