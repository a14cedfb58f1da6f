"""Environments from the rows of a table, by a column that names them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_gp.types import Examples


def read_csv(path: str | Path) -> dict[str, list[Any]]:
    """The columns of a CSV file with a header, separated by what its header has most of: , ; or tab; empty cells: NaN.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not UTF-8, or has no rows, rows of different lengths, or a name for two columns.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason} at byte {error.start}); save it so.") from error
    first = next((line for line in lines if line.strip()), "")
    header, *rows = [row for row in csv.reader(lines, delimiter=max(",;\t", key=first.count)) if row] or [[]]
    if len(set(header)) < len(header):
        raise ValueError(f"{path} has a name for two columns: {header}.")
    wrong = next((i for i, row in enumerate(rows, 1) if len(row) != len(header)), None)
    if not rows or wrong is not None:
        what = f"{len(rows[wrong - 1])} cells in row {wrong}" if wrong is not None else "no rows"
        raise ValueError(f"{path} has {what} under a header of {len(header)} columns.")
    return {name: [row[i] or float("nan") for row in rows] for i, name in enumerate(header)}


def environments_of(
    frame: Mapping[str, Any],
    environment: str,
    target: str,
    features: Sequence[str] | None = None,
    test: Sequence[str] = (),
    standardize: bool = True,
    labels: bool = False,
) -> dict[str, dict[str, Examples]]:
    """The rows of a table by split and environment; see ``ExampleEnvironments.from_frame``."""
    chosen = _features(list(frame), environment, target, features)
    names = _names(frame[environment], environment)
    found, held = sorted(set(names)), [str(name) for name in test]
    if not set(held) < set(found):
        raise ValueError(f"test={held!r} must be some of the environments of column {environment!r}, not all: {found}.")
    x = np.stack([_numbers(frame, name) for name in chosen], 1)
    if standardize:
        x = _standardized(x, ~np.isin(names, held), chosen)
    inputs, targets = torch.from_numpy(x).float(), _targets(_numbers(frame, target), target, labels)

    def rows(name: str) -> Examples:
        positions = torch.from_numpy(np.flatnonzero(names == name))
        return inputs[positions], targets[positions]

    train = {name: rows(name) for name in found if name not in held}
    return {"train": train, **({"test": {name: rows(name) for name in held}} if held else {})}


def _features(columns: list[str], environment: str, target: str, features: Sequence[str] | None) -> list[str]:
    chosen = [name for name in columns if name not in (environment, target)] if features is None else list(features)
    missing = [name for name in (environment, target, *chosen) if name not in columns]
    if missing:
        raise ValueError(f"The table has no column {', '.join(map(repr, missing))}; there are {columns}.")
    if not chosen or {environment, target} & set(chosen) or environment == target:
        raise ValueError(
            f"features={chosen!r} must be at least one column, and others than environment={environment!r} and "
            f"target={target!r}, which must be two."
        )
    return chosen


def _names(values: Any, column: str) -> Any:
    given = list(values)
    missing = sum(value is None or value != value for value in given)
    if missing:
        raise ValueError(f"Column {column!r} does not name the environment of {missing} rows; drop them.")
    return np.array([str(value) for value in given])


def _numbers(frame: Mapping[str, Any], name: str) -> Any:
    try:
        values = np.asarray(frame[name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Column {name!r} is no column of numbers; encode it, or name the columns to use by features=."
        ) from error
    if values.ndim != 1:
        raise ValueError(f"Column {name!r} has shape {values.shape}; a name must stand for one column of numbers.")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"Column {name!r} has {bad} missing or infinite values; fill them in or drop these rows.")
    return values


def _targets(values: Any, name: str, labels: bool) -> torch.Tensor:
    if not labels:
        return torch.from_numpy(values).float().unsqueeze(1)
    if bool((values != values.round()).any() or (values < 0).any()):
        raise ValueError(f"Column {name!r} has values that are no class numbers 0, 1, …; leave labels False.")
    return torch.from_numpy(values).long()


def _standardized(x: Any, seen: Any, names: Sequence[str]) -> Any:
    """Less the mean and over the standard deviation of the training environments' rows."""
    mean, deviation = x[seen].mean(0), x[seen].std(0)
    constant = [name for name, each in zip(names, deviation, strict=True) if each == 0]
    if constant:
        raise ValueError(
            f"Columns {constant} are constant in the training environments and cannot be standardised; leave them out "
            "of features, or set standardize=False."
        )
    return (x - mean) / deviation
