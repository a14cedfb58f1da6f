"""What a run has logged, by key and step."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path


def read_curves(path: Path) -> dict[str, dict[int, float]]:
    """The values of a ``metrics.csv`` of Lightning's CSVLogger: by key, in the order of the columns, then by step.

    What was logged several times in a step counts as it was last. Rows without a step and words are left out.
    """
    curves: dict[str, dict[int, float]] = {}
    if not path.is_file():
        return curves
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row.get("step"):
                continue
            for key, text in row.items():
                if key and text and key not in ("step", "epoch"):
                    value = _number(text)
                    if value is not None:
                        curves.setdefault(key, {})[int(float(row["step"]))] = value
    return curves


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return {"True": 1.0, "False": 0.0}.get(text)


def common_curve(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], list[list[float]]]:
    """The steps that all have, and the values at each: those of one curve after the other.

    Example:
        >>> common_curve([{0: 1.0, 1: 2.0}, {1: 4.0, 2: 5.0}])
        ([1], [[2.0, 4.0]])
    """
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[step] for curve in curves] for step in steps]
    kept = [index for index, each in enumerate(values) if all(map(math.isfinite, each))]
    return [steps[index] for index in kept], [values[index] for index in kept]
