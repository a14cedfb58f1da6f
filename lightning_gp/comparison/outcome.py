"""What one training of a comparison has left: its test, episode by episode, and its curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_gp.runs.curves import read_curves
from lightning_gp.runs.folders import read_json, write_csv, write_json

RESULT, EPISODES, METRICS = "result.json", "test_episodes.csv", "metrics.csv"


@dataclass(frozen=True)
class Result:
    """The test of one training.

    Attributes:
        values: what it logged, by name without ``test/``.
        episodes: of each test episode, in order, by the same names; empty where the module does not tell.
        batches: checksum of the test batches; None where they were spread over processes.
        curves: of what training and validation logged, the values by step, by key.
        notes: the checkpoint that was tested, seconds, versions.
    """

    values: Mapping[str, float]
    episodes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    batches: str | None = None
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes ``test_episodes.csv`` and, last, ``result.json``, by which a run counts as finished."""
        if self.episodes:
            columns = list(self.episodes)
            lengths = {len(column) for column in self.episodes.values()}
            assert len(lengths) == 1, f"numbers of unequally many episodes: {lengths}"
            rows = zip(*self.episodes.values(), strict=True)
            write_csv(folder / EPISODES, [dict(zip(columns, row, strict=True)) for row in rows])
        content = {"values": dict(self.values), "batches": self.batches, "episodes": bool(self.episodes)}
        write_json(folder / RESULT, {**content, **self.notes})


def read_result(folder: Path) -> Result | None:
    """The result of a run's folder; None if it has not finished."""
    if not (folder / RESULT).is_file():
        return None
    content = read_json(folder / RESULT)
    values, batches, told = content.pop("values"), content.pop("batches"), content.pop("episodes")
    episodes: dict[str, list[float]] = {}
    if told:
        with (folder / EPISODES).open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    episodes.setdefault(name, []).append(float(value))
    return Result(values, episodes, batches, read_curves(folder / METRICS), content)
