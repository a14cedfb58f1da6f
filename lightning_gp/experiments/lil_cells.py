"""What each cell of Tables 2-5 of the LIL paper is: algorithm, shots, network, training and test images, settings.

[L22] "LIL: linearity in the inner loop", 2022 (later published as SHOT, NeurIPS 2023). Settings: section 6 and
Appendix C. ANIL and BOIL have the phase loss alone (Appendix C). FOMAML + LIL is half of the iterations of
pre-training, then half of plain FOMAML (section 6). Where the paper says nothing: Adam outside, 15 queries per class,
and the checkpoint with the best validation accuracy is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

DATA = {
    "mini": "MiniImageNetDataModule",
    "tiered": "TieredImageNetDataModule",
    "cars": "StanfordCarsDataModule",
    "cub": "CUBDataModule",
}
"""Name of a data set → its data module, and the folder of its images below ``--data-dir``."""

NETWORKS = {
    "conv4": {"inner_lr": 0.5, "lr": 1e-3, "iterations": 30_000},
    "resnet12": {"inner_lr": 0.3, "lr": 6e-4, "iterations": 10_000},
}

_PAIRS = {
    2: "mini tiered cars cub",
    3: "tiered-to-mini mini-to-tiered mini-to-cars mini-to-cub cars-to-mini cars-to-tiered cub-to-cars cars-to-cub",
    4: "mini mini-to-tiered mini-to-cars",
    5: "mini mini-to-tiered mini-to-cars cars cars-to-mini cars-to-cub",
}
_PUBLISHED = {
    2: """
maml 1 47.88±0.55 46.93±1.07 47.78±0.99 57.04±1.42
maml+lil 1 49.07±0.14 49.29±0.24 49.53±0.89 58.06±0.72
fomaml 1 46.29±0.94 46.96±0.81 47.91±0.56 57.46±0.21
fomaml+lil 1 46.81±0.87 47.86±0.81 48.45±0.56 58.01±1.00
anil 1 48.53±0.76 50.09±0.27 49.49±0.71 58.54±3.76
anil+lil 1 49.45±0.31 50.33±0.28 50.62±1.06 57.87±0.13
boil 1 50.44±1.00 50.56±0.54 56.30±0.76 63.14±0.38
boil+lil 1 49.91±0.34 50.48±0.43 56.51±0.85 62.93±0.03
maml 5 64.81±1.63 66.12±1.10 62.24±2.01 72.48±0.86
maml+lil 5 66.34±0.35 67.85±0.67 69.94±0.24 74.37±0.49
fomaml 5 62.91±1.85 65.56±0.89 62.75±1.55 71.44±0.34
fomaml+lil 5 65.05±1.25 66.37±0.27 65.69±3.52 72.52±0.22
anil 5 63.74±1.39 66.12±1.11 63.03±0.95 71.75±0.75
anil+lil 5 66.55±2.09 66.75±0.72 63.74±1.11 73.68±0.63
boil 5 66.34±0.35 69.50±0.57 75.54±0.22 77.60±0.12
boil+lil 5 67.09±0.59 69.81±0.17 76.39±0.02 77.19±0.21
""",
    3: """
maml 1 47.52±1.66 51.84±0.24 34.41±0.47 40.91±0.57 28.67±1.17 30.79±1.17 32.74±1.12 30.95±1.41
maml+lil 1 50.09±0.39 53.03±0.14 34.54±0.31 40.48±0.40 28.73±0.62 30.87±0.38 32.98±0.60 31.11±0.70
fomaml 1 47.30±0.95 49.62±1.54 34.35±0.30 40.86±0.83 28.49±0.76 31.06±0.22 33.57±0.84 31.52±0.34
fomaml+lil 1 48.81±0.76 50.73±1.15 34.73±0.12 41.48±0.37 29.47±0.27 31.26±0.22 33.53±0.40 30.98±1.19
anil 1 51.04±0.11 52.76±0.28 34.10±0.50 40.37±1.23 28.26±0.65 29.86±0.74 32.87±2.70 30.68±1.86
anil+lil 1 51.19±0.62 53.08±0.45 34.07±0.20 40.08±0.40 29.73±0.73 30.62±1.04 32.48±0.18 30.48±1.20
boil 1 51.50±0.81 53.99±0.20 36.78±0.37 44.36±0.38 33.94±0.75 33.82±0.38 35.46±0.21 34.37±0.37
boil+lil 1 52.05±0.10 54.13±0.34 36.78±0.44 44.56±0.77 34.40±0.25 33.79±0.50 35.60±0.33 34.53±0.23
maml 5 66.86±1.58 67.96±1.22 46.57±0.53 56.32±1.17 37.23±1.95 41.00±1.86 44.02±2.29 41.84±1.25
maml+lil 5 69.25±0.50 69.47±0.35 48.86±0.71 58.58±1.08 43.09±1.24 46.01±1.41 44.26±1.44 46.06±2.10
fomaml 5 66.04±0.89 66.39±1.05 45.48±2.78 57.03±0.84 37.48±1.36 41.11±1.93 43.32±2.62 40.53±3.58
fomaml+lil 5 66.31±0.27 67.96±0.87 47.80±0.30 57.10±0.44 39.59±0.75 43.28±0.59 44.80±0.22 43.50±1.65
anil 5 67.08±0.19 67.08±1.38 42.38±1.57 56.60±2.60 38.09±1.50 41.29±3.04 41.27±1.41 42.00±1.28
anil+lil 5 68.05±2.32 67.23±1.69 45.38±2.49 56.31±3.98 38.47±1.32 41.39±0.55 43.40±0.52 42.52±2.29
boil 5 70.12±0.67 70.00±0.12 53.57±1.46 62.15±0.52 45.40±0.25 45.69±0.10 48.52±0.19 48.45±0.19
boil+lil 5 70.83±0.10 69.83±0.33 53.45±0.20 62.03±1.58 45.68±0.34 45.80±0.43 48.35±0.77 48.35±0.92
""",
    4: """
maml 1 50.63±1.70 54.33±1.02 35.41±1.01
maml+lil 1 52.72±0.15 54.66±0.58 35.75±0.29
maml 5 71.32±1.55 74.01±1.69 45.75±0.89
maml+lil 5 72.50±0.94 75.13±1.35 48.21±0.49
""",
    5: """
maml 1 47.88±0.55 51.84±0.24 34.19±0.66 47.77±0.99 28.66±1.17 30.95±1.41
maml+phase 1 47.13±0.30 50.95±0.65 34.55±0.82 49.04±1.54 28.76±0.17 31.02±0.16
maml+amplitude 1 48.62±0.29 52.53±0.47 34.34±0.35 49.53±0.07 28.83±0.12 30.82±0.49
maml+lil 1 49.07±0.14 53.03±0.14 34.54±0.31 49.53±0.89 28.73±0.62 31.11±0.70
maml 5 64.81±1.63 67.96±1.22 46.67±0.53 62.24±2.01 37.23±1.95 41.84±1.25
maml+phase 5 65.48±0.30 68.63±0.34 48.09±0.82 65.07±0.85 39.37±0.88 42.79±0.85
maml+amplitude 5 65.98±0.50 69.01±0.06 46.37±1.15 67.27±0.92 37.66±2.29 39.01±2.43
maml+lil 5 66.34±0.35 69.47±0.35 48.86±0.71 69.94±0.24 43.09±1.23 46.06±2.10
""",
}


class Cell(NamedTuple):
    """One number of a table; cells of one method, shots, network and training set share their trained networks."""

    table: int
    method: str
    shots: int
    network: str
    pair: str
    published: str

    @property
    def name(self) -> str:
        """As in ``maml+lil/5-shot/mini`` or ``maml/1-shot/mini-to-cars``."""
        return f"{self.method}/{self.shots}-shot/{self.pair}"

    @property
    def train(self) -> str:
        """The data set of meta-training."""
        return self.pair.partition("-to-")[0]

    @property
    def test(self) -> str:
        """The data set of meta-test."""
        return self.pair.rpartition("-to-")[2]


def cells(table: int) -> list[Cell]:
    """All cells of Table 2, 3, 4 or 5, row by row."""
    network = "resnet12" if table == 4 else "conv4"
    result = []
    for line in _PUBLISHED[table].strip().splitlines():
        method, shots, *values = line.split()
        for pair, value in zip(_PAIRS[table].split(), values, strict=True):
            result.append(Cell(table, method, int(shots), network, pair, value.replace("±", " ± ")))
    return result


def chosen(table: int, patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match any of ``patterns`` (``*`` stands for anything).

    Raises:
        ValueError: if a pattern matches none.
    """
    everything = cells(table)
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in everything):
            raise ValueError(
                f"Table {table} has no cell {pattern!r}. Its cells are called, for example, {everything[0].name!r} or "
                f"{everything[-1].name!r}; --list prints all."
            )
    return [cell for cell in everything if any(fnmatchcase(cell.name, pattern) for pattern in patterns)]


@dataclass(frozen=True)
class Options:
    """What may be changed for a trial; None for the paper's value."""

    data_dir: str = "data"
    class_folders: bool = False
    iterations: int | None = None
    image_size: int = 84
    widths: tuple[int, ...] | None = None
    val_episodes: int = 600
    test_episodes: int = 1000


def data(name: str, shots: int, seed: int, iterations: int, options: Options) -> dict[str, Any]:
    """The config of a data module; an epoch is 1000 iterations of 4 tasks."""
    return {
        "class_path": "ClassFolderDataModule" if options.class_folders else DATA[name],
        "init_args": {
            "root": str(Path(options.data_dir) / name),
            "ways": 5,
            "shots": shots,
            "queries": 15,
            "environments_per_batch": 4,
            "iterations_per_epoch": min(1000, iterations),
            "val_episodes": options.val_episodes,
            "test_episodes": options.test_episodes,
            "image_size": options.image_size,
            "seed": seed,
        },
    }


def stages(cell: Cell, options: Options, pretrained: str) -> list[tuple[dict[str, Any], int]]:
    """The trainings that lead to a cell, one after the other: the module's config and its iterations.

    Args:
        cell: of any table.
        options: see ``Options``.
        pretrained: where the first training's checkpoint will be, for the second.

    Raises:
        ValueError: if there are too few iterations, or not as many ``widths`` as the network wants.
    """
    settings = NETWORKS[cell.network]
    total = int(settings["iterations"]) if options.iterations is None else options.iterations
    network = _network(cell.network, options)
    algorithm, _, regulariser = cell.method.partition("+")
    both = algorithm == "fomaml" and regulariser == "lil"
    if total < 1 + both:
        raise ValueError(f"iterations={total} is too few for {cell.name}; it needs at least {1 + both}.")
    if not both:
        return [(_module(cell, network, algorithm, regulariser), total)]
    loaded = {
        "class_path": "lightning_gp.networks.load_pretrained",
        "init_args": {"network": network, "checkpoint": pretrained},
    }
    half = total // 2
    return [
        (_module(cell, network, "pretraining", ""), half),
        (_module(cell, loaded, "fomaml", ""), total - half),
    ]


def _module(cell: Cell, network: dict[str, Any], algorithm: str, regulariser: str) -> dict[str, Any]:
    settings = NETWORKS[cell.network]
    arguments: dict[str, Any] = {"network": network, "inner_lr": settings["inner_lr"], "inner_steps": 3}
    name = {"pretraining": "LILPretraining"}.get(algorithm, algorithm.upper())
    if regulariser:
        name = "LIL"
        part = {"anil": "head", "boil": "body"}.get(algorithm)
        arguments["adapt"] = part or "all"
        arguments["phase_weight"] = 0.0 if regulariser == "amplitude" else 0.1
        arguments["amplitude_weight"] = 0.0 if part or regulariser == "phase" else {1: 0.01, 5: 0.1}[cell.shots]
    arguments["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": {"lr": settings["lr"]}}
    return {"class_path": f"lightning_gp.{name}", "init_args": arguments}


def _network(name: str, options: Options) -> dict[str, Any]:
    widths = options.widths
    if name == "resnet12":
        sizes: dict[str, Any] = {"widths": [64, 128, 256, 512] if widths is None else list(widths)}
        return {"class_path": "lightning_gp.networks.ResNet12", "init_args": {"ways": 5, **sizes}}
    if widths is not None and len(widths) != 1:
        raise ValueError(f"widths={widths}: Conv4 has one width; give one number.")
    sizes = {"channels": 64 if widths is None else widths[0], "in_channels": 3, "image_size": options.image_size}
    return {"class_path": "lightning_gp.networks.Conv4", "init_args": {"ways": 5, **sizes}}
