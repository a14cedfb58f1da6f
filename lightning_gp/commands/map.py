"""``lightning-gp map``: a trainability map from the config of ``fit``; ``map merge`` and ``map plot`` use its files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gp.commands.training import lightning_cli
from lightning_gp.trainability.grid import parse_rates, parse_shard
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import KINDS, plot_map, save_figure
from lightning_gp.trainability.result import TrainabilityResult
from lightning_gp.trainability.storage import merge


def main(args: Sequence[str]) -> None:
    """Runs ``merge``, ``plot``, or a map."""
    words = list(args)
    if words[:1] == ["merge"]:
        _merge(words[1:])
    elif words[:1] == ["plot"]:
        _plot(words[1:])
    else:
        _run(words)


class FromConfig:
    """Builds the model or the data of a config for a seed, in any process.

    Args:
        words: the command line.
        part: ``"model"`` or ``"data"``.
    """

    def __init__(self, words: Sequence[str], part: str) -> None:
        self.words, self.part = list(words), part

    def __call__(self, seed: int) -> Any:
        """The model with the initial weights of ``seed``, or the data with the stream of ``seed``."""
        cli = _cli(self.words, seed)
        if self.part == "model":
            return cli.model
        if cli.datamodule is None:
            raise ValueError("The config names no data; add a `data:` section, as for `lightning-gp fit`.")
        if hasattr(cli.datamodule, "seed"):
            cli.datamodule.seed += seed
        return cli.datamodule


def _cli(words: Sequence[str], seed: int) -> Any:
    description = (
        "Trains at every point of a grid of inner and outer rates, and draws the loss. Model and data are those of a "
        "config of `fit`; its optimizer and most of its trainer are not used."
    )
    return lightning_cli(
        words, "lightning-gp map", _add_options, run=False, seed_everything_default=seed, description=description
    )


OPTIONS: dict[str, tuple[type, Any, str]] = {
    "inner_lrs": (str, None, "α: LOW:HIGH for 1 … 9 in each decade, LOW:HIGH:COUNT, or numbers with commas"),
    "outer_lrs": (str, None, "β, likewise"),
    "iterations": (int, 500, "outer steps of each cell"),
    "seeds": (int, 1, "runs to average, seeds 0 …; added to the data's"),
    "optimizer": (str, "sgd", "sgd or adam, in place of the model's"),
    "zero_inner_lr": (bool, True, "also α = 0, for comparison"),
    "divergence": (float, 1e4, "bound of the loss over the first"),
    "device": (str, "cpu", "cpu, cuda, …"),
    "workers": (int, 1, "processes of one thread each"),
    "shard": (str, "1/1", "i/n: the i-th of n shares of the cells"),
    "output": (str, "runs/map/map.jsonl", "file of the finished cells"),
}
"""Name → type, default and help; as ``--map.<name>``, in a config's section ``map``, or ``--<name>`` for short."""


def _add_options(parser: Any) -> None:
    for name, (kind, default, text) in OPTIONS.items():
        parser.add_argument(f"--map.{name}", type=kind, default=default, help=text)


def _run(words: list[str]) -> None:
    cli = _cli(_spelled(words), 0)
    options = cli.config.map
    if options.inner_lrs is None or options.outer_lrs is None:
        raise ValueError("Give both grids, as in --inner_lrs 1e-4:9e-1 --outer_lrs 1e-2:9e0.")
    trainability = TrainabilityMap(
        FromConfig(_spelled(words), "model"),
        FromConfig(_spelled(words), "data"),
        parse_rates(options.inner_lrs),
        parse_rates(options.outer_lrs),
        options.iterations,
        range(options.seeds),
        options.optimizer,
        options.zero_inner_lr,
        options.divergence,
        options.device,
    )
    result = trainability.run(options.output, options.workers, parse_shard(options.shard))
    print(f"Map: {options.output}", flush=True)
    if not result.complete:
        print("Cells of other shards are missing; join all files with `lightning-gp map merge`.", flush=True)
        return
    print("Pictures: " + ", ".join(map(str, save_figure(plot_map(result), options.output))), flush=True)
    if _names_logger(cli.config):
        from lightning_gp.loggers import log_figures

        log_figures(cli.trainer.loggers, {"trainability/map": plot_map(result)}, step=options.iterations)


def _spelled(words: Sequence[str]) -> list[str]:
    """``--shard 1/2`` is short for ``--map.shard 1/2``, and so on."""
    short = {f"--{name}" for name in OPTIONS}
    return [f"--map.{word[2:]}" if word.split("=")[0] in short else word for word in words]


def _names_logger(config: Any) -> bool:
    logger = config.trainer.logger
    return logger is not None and not isinstance(logger, bool)


def _merge(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("lightning-gp map merge", description="Joins the files of all shards of a map.")
    parser.add_argument("files", nargs="+", help="the shards' files")
    parser.add_argument("--output", required=True, help="the file to write")
    options = parser.parse_args(words)
    _check_files(options.files)
    merge(options.files, options.output)
    print(f"Map: {options.output}")


def _check_files(files: Sequence[str]) -> None:
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"There is no map {file}; give the .jsonl file that `lightning-gp map` has written."
            )


def _plot(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("lightning-gp map plot", description="Draws a map, finished or not.")
    parser.add_argument("file", help="the map's file")
    parser.add_argument("--eigenvalues", nargs="+", type=float, default=[], help="λ_1 λ_2 … for the theory's curves")
    parser.add_argument("--curves", nargs="+", choices=list(KINDS), default=["simplified", "exact"])
    parser.add_argument("--title", default="")
    parser.add_argument("--output", type=Path, help="where to, without extension (default: beside the map)")
    options = parser.parse_args(words)
    _check_files([options.file])
    figure = plot_map(TrainabilityResult.load(options.file), options.eigenvalues, options.curves, options.title)
    print("Pictures: " + ", ".join(map(str, save_figure(figure, options.output or options.file))))
