"""What each cell of Tables 2-5 of the LIL paper is: algorithm, shots, network, training and test images, settings.

[L22] "Enforcing zero-Hessian in meta-learning", 2022 (later published as SHOT, NeurIPS 2023). Settings: section 6 and
Appendix C. ANIL and BOIL have the phase loss alone (Appendix C). FOMAML + LIL is half of the iterations of
pre-training, then half of plain FOMAML (section 6). Where the paper says nothing: Adam outside, 15 queries per class,
and the checkpoint with the best validation accuracy is tested.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

DATA = {
    "mini": "MiniImageNetDataModule",
    "tiered": "TieredImageNetDataModule",
    "cars": "StanfordCarsDataModule",
    "cub": "CUBDataModule",
}
"""Name of a data set → its data module, and the folder of its images below ``root``."""

NETWORKS = {
    "conv4": {"inner_lr": 0.5, "lr": 1e-3, "iterations": 30_000},
    "resnet12": {"inner_lr": 0.3, "lr": 6e-4, "iterations": 10_000},
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
    """All cells of Table 2, 3, 4 or 5, row by row, from ``lil_published.csv``."""
    text = resources.files("lightning_gp.experiments").joinpath("lil_published.csv").read_text("utf-8")
    rows = [row for row in csv.reader(text.splitlines()[1:]) if int(row[0]) == table]
    return [Cell(table, method, int(shots), *rest) for _, method, shots, *rest in rows]


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
    """What may be changed for a trial.

    Attributes:
        root: holds the folders mini, tiered, cars and cub.
        class_folders: take any images in class folders.
        iterations: outer steps; None for the paper's.
        image_size: side in pixels.
        widths: channels of Conv4 (1 number) or ResNet-12 (4); None for the paper's.
        val_episodes: fixed validation episodes.
        test_episodes: fixed test episodes.
    """

    root: str = "data"
    class_folders: bool = False
    iterations: int | None = None
    image_size: int = 84
    widths: tuple[int, ...] | None = None
    val_episodes: int = 600
    test_episodes: int = 1000


OPTIONS = Options()


def data(name: str, shots: int, seed: int, iterations: int, options: Options) -> dict[str, Any]:
    """The config of a data module; an epoch is 1000 iterations of 4 tasks."""
    return {
        "class_path": "ClassFolderDataModule" if options.class_folders else DATA[name],
        "init_args": {
            "root": str(Path(options.root) / name),
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
