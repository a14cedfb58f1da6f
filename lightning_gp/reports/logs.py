"""What is on disk of a run: metrics, config, checkpoints, pictures, versions."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from lightning_gp.checkpoints import WholeCheckpoints
from lightning_gp.runs.curves import read_curves
from lightning_gp.runs.folders import read_json
from lightning_gp.runs.versions import VERSIONS

METRICS = "metrics.csv"
EVALUATIONS = ("test/", "val/")


class Picture(NamedTuple):
    """A picture that a callback has drawn.

    Attributes:
        key: as it was logged, with ``_`` for what no file name has.
        step: of training.
        path: of the file.
    """

    key: str
    step: int
    path: Path


@dataclass(frozen=True)
class Logs:
    """A run's folder, read.

    Attributes:
        folder: of the run.
        curves: values by step, by key; without those of tests.
        epochs: of training.
        tests: values of each test and validation after training, by the place of its metrics.
        config: text of ``config.yaml``; empty if there is none.
        settings: the same, parsed.
        checkpoints: the files.
        saved: what the last one says of itself, without weights.
        pictures: by key and step.
        versions: of what trained it, as far as they were written down.
    """

    folder: Path
    curves: Mapping[str, Mapping[int, float]]
    epochs: int
    tests: Mapping[Path, Mapping[str, float]]
    config: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Sequence[Path] = ()
    saved: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of training, as far as logs and checkpoints say."""
        logged = [step + 1 for curve in self.curves.values() for step in curve]
        return max([int(self.saved.get("global_step", 0)), *logged])

    @property
    def last(self) -> dict[str, float]:
        """The last value of each key."""
        return {key: curve[max(curve)] for key, curve in self.curves.items()}


def read_logs(folder: Path) -> Logs:
    """Reads a run's folder.

    Raises:
        FileNotFoundError: if there is no such folder, or nothing was logged there; it names runs below.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; give that of a run, such as runs/sinusoid_maml.")
    if not (folder / METRICS).is_file():
        runs = sorted(str(path.parent) for path in folder.rglob(METRICS))[:5]
        hint = f" There are runs in {', '.join(runs)}." if runs else ""
        raise FileNotFoundError(
            f"{folder} has no {METRICS}, which Lightning's CSVLogger writes (--trainer.logger CSVLogger).{hint}"
        )
    curves = read_curves(folder / METRICS)
    tests = {path: read_curves(path) for path in sorted(folder.glob(f"*/{METRICS}"))}
    own = {key: curve for key, curve in curves.items() if key.startswith("test/")}
    found = {path: _last(each) for path, each in {folder / METRICS: own, **tests}.items()}
    config = folder / "config.yaml"
    text = config.read_text("utf-8") if config.is_file() else ""
    checkpoints = sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return Logs(
        folder,
        {key: curve for key, curve in curves.items() if key not in own},
        _epochs(folder / METRICS),
        {path: values for path, values in found.items() if any(key.startswith(EVALUATIONS) for key in values)},
        text,
        (yaml.safe_load(text) or {}) if text else {},
        checkpoints,
        _saved(checkpoints),
        _pictures(folder),
        read_json(folder / VERSIONS) if (folder / VERSIONS).is_file() else {},
    )


def _epochs(path: Path) -> int:
    """The largest number of an epoch of training or validation, counted from 1; 0 if none was logged."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not any(row.get(key) for key in row if key.startswith("test/"))]
    return max((int(float(row["epoch"])) + 1 for row in rows if row.get("epoch")), default=0)


def _last(curves: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    return {key: curve[max(curve)] for key, curve in curves.items()}


def _saved(checkpoints: Sequence[Path]) -> dict[str, Any]:
    """What the newest checkpoint that can be read says, without weights and states of optimizers."""
    for path in reversed(checkpoints):
        try:
            content = WholeCheckpoints().load_checkpoint(path)
        except (ValueError, OSError):
            continue
        content["numbers"] = sum(value.numel() for value in content.pop("state_dict", {}).values())
        return {key: value for key, value in content.items() if key != "optimizer_states"}
    return {}


def _pictures(folder: Path) -> list[Picture]:
    found = []
    for path in folder.glob("figures/*.png"):
        named = re.fullmatch(r"(.+)-step=(\d+)", path.stem)
        if named:
            found.append(Picture(named[1], int(named[2]), path))
    return sorted(found)
