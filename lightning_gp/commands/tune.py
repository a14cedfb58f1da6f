"""``lightning-gp tune``: the learning rates for any model and data of a config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_gp._lightning import LightningModule
from lightning_gp.commands.training import lightning_cli
from lightning_gp.plots import require_matplotlib, save_figure
from lightning_gp.runs.command import options_of, spelled
from lightning_gp.runs.folders import write_json
from lightning_gp.tuning.suggestion import Suggestion
from lightning_gp.tuning.tuner import LearningRateTuner

KEPT: set[str | int] = {"seed", "progress"}
"""Arguments of the tuner that are no options."""


def main(args: Sequence[str]) -> None:
    """Tunes, prints the suggestion, and writes ``tune.json`` and ``tune.png``."""
    from lightning_gp.allocator import keep_freed_memory

    keep_freed_memory()
    description = "Suggests the learning rates for the model and data of a config of `fit`, from short trainings."
    kinds = {f"tune.{name}": kind for name, kind in options_of(LearningRateTuner.__init__, KEPT).items()}
    known, rest = spelled(
        args, {**kinds, "tune.output": Path}, {"steps": "iterations", "tune.steps": "tune.iterations"}
    )
    cli = lightning_cli([*rest, *known], "lightning-gp tune", _add_options, run=False, description=description)
    options = cli.config.tune
    if cli.datamodule is None:
        raise ValueError("The config names no data; add a `data:` section, as for `lightning-gp fit`.")
    require_matplotlib()
    tuner = LearningRateTuner(
        options.iterations,
        options.environments,
        options.tolerance,
        seeds=options.seeds,
        progress=partial(print, flush=True),
    )
    suggestion = tuner.tune(cli.model, cli.datamodule, cli.trainer.strategy.root_device)
    numbers = options.output / "tune.json"
    write_json(numbers, suggestion.as_dict())
    (picture,) = save_figure(suggestion.plot(), numbers)
    print(f"\n{suggestion.report()}\n\nPicture: {picture}   Trials: {numbers}")
    print(_how_to_use(cli.model, suggestion), flush=True)


def _how_to_use(model: LightningModule, suggestion: Suggestion) -> str:
    try:
        suggestion.apply(model)
    except ValueError as error:  # the module builds its optimizer itself
        return str(error)
    inner = "" if suggestion.inner_lr is None else f"--model.init_args.inner_lr={suggestion.inner_lr:.4g} "
    return (
        f"Train with it: lightning-gp fit … {inner}--model.init_args.optimizer.init_args.lr={suggestion.outer_lr:.4g}"
    )


def _add_options(parser: Any) -> None:
    parser.add_class_arguments(LearningRateTuner, "tune", skip=KEPT, instantiate=False)
    parser.add_argument("--tune.output", type=Path, default=Path("runs/tune"), help="folder of picture and trials")
