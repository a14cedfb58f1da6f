"""``lightning-gp map``: a trainability map from the config of ``fit``; ``map merge`` and ``map plot`` use its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gp.commands.map_edges import edge_lines, kept_lines
from lightning_gp.commands.training import lightning_cli
from lightning_gp.plots import save_figure
from lightning_gp.runs.command import command, options_of, spelled
from lightning_gp.trainability.engine import OptimizerName
from lightning_gp.trainability.grid import parse_rates, parse_shard, seed_list
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.plot import Curve, plot_map
from lightning_gp.trainability.refining import Criterion
from lightning_gp.trainability.result import TrainabilityResult
from lightning_gp.trainability.storage import merge
from lightning_gp.tuning.module_map import ModuleMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(args: Sequence[str]) -> None:
    """Runs ``merge``, ``plot``, or a map."""
    others: dict[str, Callable[..., None]] = {"merge": merge_files, "plot": plot_file}
    if args[:1] and args[0] in others:
        command(others, "lightning-gp map", args)
    else:
        _run(list(args))


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
        cli = _cli([*self.words, f"--seed_everything={seed}"], seed)  # whatever the config's, or seeds would be one
        if self.part == "model":
            return cli.model
        if cli.datamodule is None:
            raise ValueError("The config names no data; add a `data:` section, as for `lightning-gp fit`.")
        if hasattr(cli.datamodule, "seed"):
            cli.datamodule.seed += seed
        return cli.datamodule


class Varied:
    """Builds the model of a config with another value of one of its arguments, in any process.

    Args:
        words: the command line.
        name: of the argument: ``weight_decay``, or with dots, ``model.init_args.optimizer.init_args.momentum``.
    """

    def __init__(self, words: Sequence[str], name: str) -> None:
        self.words = list(words)
        self.name = name if name.startswith("model.") else f"model.init_args.{name}"

    def __call__(self, seed: int, value: float) -> Any:
        """The model with the initial weights of ``seed``."""
        return FromConfig([*self.words, f"--{self.name}={value!r}"], "model")(seed)


def _cli(words: Sequence[str], seed: int) -> Any:
    description = (
        "Trains at every point of a grid of inner and outer rates, and draws the loss. Model and data are those of a "
        "config of `fit`; its optimizer and most of its trainer are not used. With --vary it is the map of any "
        "LightningModule over one of its hyperparameters and the rate of its own optimizer."
    )

    def add(parser: Any) -> None:
        parser.add_function_arguments(train_map, "map", skip={"words"})

    return lightning_cli(
        words, "lightning-gp map", add, run=False, seed_everything_default=seed, description=description
    )


def train_map(
    words: Sequence[str],
    inner_lrs: str | None = None,
    outer_lrs: str | None = None,
    iterations: int = 500,
    seeds: int | list[int] = 1,
    optimizer: OptimizerName | None = None,
    zero_inner_lr: bool | None = None,
    divergence: float = 1e4,
    device: str = "cpu",
    workers: int = 1,
    shard: str = "1/1",
    output: Path = Path("runs/map/map.jsonl"),
    refine: float | None = None,
    vary: str | None = None,
    over: str | None = None,
    criterion: Criterion = "diverged",
) -> TrainabilityResult:
    """Computes a map, or goes on with it, and draws it.

    Args:
        words: the command line of ``fit``.
        inner_lrs: α: LOW:HIGH for 1 … 9 in each decade, LOW:HIGH:COUNT, or numbers with commas.
        outer_lrs: β, likewise.
        iterations: outer steps of each cell.
        seeds: runs to average, added to the data's seed; one number N stands for 0 … N − 1.
        optimizer: sgd or adam, in place of the model's; null for sgd, and with vary for the model's own.
        zero_inner_lr: also α = 0, for comparison; with vary only where it is asked for.
        divergence: bound of the loss over the first.
        device: cpu, cuda, …
        workers: processes of one thread each.
        shard: i/n for the i-th of n shares of the cells.
        output: file of the finished cells.
        refine: bisect borders between the outer rates to this relative width, such as 0.05.
        vary: an argument of the model in place of α, such as weight_decay; for any LightningModule, by its own training
            step and optimizer.
        over: the values of vary, as for the rates.
        criterion: whose borders are refined and drawn: diverged, or worse, where the loss ended above its first.

    Returns:
        The map; of a shard, its own cells.

    Raises:
        TypeError: if the model cannot be trained by a map.
        ValueError: if an option is out of range, or the file has other settings.
    """
    grid = _grid(vary, over, inner_lrs, outer_lrs, optimizer)
    if vary is None:
        trainability = TrainabilityMap(
            FromConfig(words, "model"),
            FromConfig(words, "data"),
            *grid,
            iterations,
            seed_list(seeds),
            optimizer or "sgd",
            zero_inner_lr is not False,
            divergence,
            device,
        )
    else:
        module, data = Varied(words, vary), FromConfig(words, "data")
        trainability = ModuleMap(
            module,
            data,
            vary,
            *grid,
            iterations=iterations,
            seeds=seed_list(seeds),
            zero=bool(zero_inner_lr),
            divergence=divergence,
            device=device,
        )
    result = trainability.run(output, workers, parse_shard(shard), refine=refine, criterion=criterion)
    print(f"Map: {output}", flush=True)
    if not result.complete:
        print("Cells of other shards are missing; join all files with `lightning-gp map merge`.", flush=True)
        return result
    lines = edge_lines(trainability, output) if isinstance(trainability, ModuleMap) else ()
    _print_pictures(plot_map(result, lines=lines, criterion=criterion), output)
    return result


def _grid(
    vary: str | None, over: str | None, inner_lrs: str | None, outer_lrs: str | None, optimizer: str | None
) -> tuple[list[float], list[float]]:
    if vary is None:
        if inner_lrs is None or outer_lrs is None:
            raise ValueError("Give both grids, as in --inner_lrs 1e-4:9e-1 --outer_lrs 1e-2:9e0.")
        return parse_rates(inner_lrs), parse_rates(outer_lrs)
    if over is None or outer_lrs is None or inner_lrs is not None:
        raise ValueError(f"--vary {vary} wants both --over 1e-4:9e-1 and --outer_lrs 1e-2:9e0, or the like.")
    if optimizer is not None:
        raise ValueError(f"--optimizer {optimizer} with --vary, which trains with the model's own; leave it out.")
    return parse_rates(over), parse_rates(outer_lrs)


def _run(words: Sequence[str]) -> None:
    kinds = {f"map.{name}": kind for name, kind in options_of(train_map, ["words"]).items()}
    known, rest = spelled(words, kinds)  # `--shard 1/2` is short for `--map.shard=1/2`, and so on
    cli = _cli([*rest, *known], 0)
    options = vars(cli.config_init.map)
    result = train_map([*rest, *known], **options)
    if result.complete and _names_logger(cli.config):
        from lightning_gp.loggers import log_figures

        figure = plot_map(result, lines=kept_lines(options["output"]))
        log_figures(cli.trainer.loggers, {"trainability/map": figure}, step=options["iterations"])


def _names_logger(config: Any) -> bool:
    logger = config.trainer.logger
    return logger is not None and not isinstance(logger, bool)


def merge_files(files: Sequence[Path], output: Path) -> None:
    """Joins the files of all shards of a map.

    Args:
        files: the shards' files.
        output: the file to write.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if they do not fit together, or cells are missing.
    """
    merge(files, output)
    print(f"Map: {output}")


def plot_file(
    file: Path,
    eigenvalues: Sequence[float] = (),
    curves: Sequence[Curve] | None = None,
    title: str = "",
    output: Path | None = None,
) -> None:
    """Draws a map, finished or not.

    Args:
        file: the map's file.
        eigenvalues: λ_1 λ_2 … for the theory's curves.
        curves: simplified, exact, positive_penalty; null for that of the map's own algorithm, steps and sign.
        title: above the picture.
        output: where to, without extension; null for beside the map.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no map.
    """
    lines = kept_lines(file)
    _print_pictures(plot_map(TrainabilityResult.load(file), eigenvalues, curves, title, lines), output or file)


def _print_pictures(figure: Figure, path: Path) -> None:
    print("Pictures: " + ", ".join(map(str, save_figure(figure, path, ("png", "pdf")))), flush=True)
