"""What a map found, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_gp.trainability.engine import Outcome
from lightning_gp.trainability.storage import Cell, Header, cells_of, read

Array = NDArray[np.float64]
Criterion = Literal["diverged", "worse"]


class Column(NamedTuple):
    """One α. Each array has one entry per β, (B,), or per α and β, (A, B).

    Attributes:
        losses: mean over the seeds that did not diverge; NaN where all did, or no seed is finished.
        diverged: how many seeds diverged.
        worse: how many diverged or ended with a higher loss than they began with.
    """

    losses: Array
    diverged: NDArray[np.int64]
    worse: NDArray[np.int64]


class TrainabilityResult:
    """Losses over the grid, averaged over seeds.

    Args:
        header: settings, grid and versions, as ``storage`` has them.
        cells: the finished ones.

    Attributes:
        inner_lrs: α, (A,).
        outer_lrs: β, (B,).
        losses: (A, B), as are ``diverged`` and ``worse``; see ``Column``.
        zero: the same at α = 0, (B,), or None if it was not asked for.
        complete: whether all cells are finished.
        first_loss: median over the finished cells of the loss before the first step; NaN where there is none.
        outer_steps: steps that were computed in all cells together.
    """

    def __init__(self, header: Header, cells: Mapping[Cell, Outcome]) -> None:
        self.header, self.cells = header, dict(cells)
        self.inner_lrs: Array = np.array(header["inner_lrs"], dtype=np.float64)
        self.outer_lrs: Array = np.array(header["outer_lrs"], dtype=np.float64)
        self.complete = all(cell in self.cells for cell in cells_of(header))
        firsts = [outcome.first_loss for outcome in self.cells.values() if outcome.first_loss is not None]
        self.first_loss = float(np.median(firsts)) if firsts else float("nan")
        self.outer_steps = sum(outcome.iterations for outcome in self.cells.values())
        columns = [self._column(alpha) for alpha in header["inner_lrs"]]
        self.losses, self.diverged, self.worse = Column(*map(np.stack, zip(*columns, strict=True)))
        self.zero = self._column(0.0) if header["zero_inner_lr"] else None

    @classmethod
    def load(cls, path: str | Path) -> TrainabilityResult:
        """The result in a file, finished or not.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged.
        """
        return cls(*read(path))

    def critical_outer_lrs(self, criterion: Criterion = "diverged") -> Array:
        """The largest usable β at each α, (A,): halfway, in logarithms, to the first at which a seed fails.

        Args:
            criterion: fails if it ``"diverged"``, or also if the loss became ``"worse"``.

        Returns:
            0 where the smallest β fails, ∞ where none does.
        """
        return np.array([self._border(column) for column in getattr(self, criterion)])

    def zero_critical_outer_lr(self, criterion: Criterion = "diverged") -> float | None:
        """The same at α = 0, or None if the map has no such line."""
        return None if self.zero is None else self._border(getattr(self.zero, criterion))

    def seed_borders(self, inner_lr: float, criterion: Criterion = "diverged") -> Array:
        """The largest usable β of each seed at one α of the map, (seeds,), as ``critical_outer_lrs`` has them of all.

        Args:
            inner_lr: α, 0 for the line of comparison.
            criterion: what counts as a failure.

        Returns:
            NaN where a cell up to the first failure is not finished.
        """
        found = []
        for seed in self.header["seeds"]:
            outcomes = [self.cells.get(Cell(seed, inner_lr, beta)) for beta in self.header["outer_lrs"]]
            failed = [outcome is None or getattr(outcome, criterion) for outcome in outcomes]
            first = failed.index(True) if True in failed else len(failed)
            unknown = first < len(failed) and outcomes[first] is None
            found.append(float("nan") if unknown else self._border(np.array(failed, dtype=np.int64)))
        return np.array(found)

    def _column(self, alpha: float) -> Column:
        count = len(self.outer_lrs)
        losses, failed = np.full(count, np.nan), np.zeros((2, count), dtype=np.int64)
        for row, beta in enumerate(self.header["outer_lrs"]):
            outcomes = [self.cells.get(Cell(seed, alpha, beta)) for seed in self.header["seeds"]]
            finite = [outcome.loss for outcome in outcomes if outcome is not None and outcome.loss is not None]
            failed[0, row] = sum(outcome is not None and outcome.diverged for outcome in outcomes)
            failed[1, row] = sum(outcome is not None and outcome.worse for outcome in outcomes)
            if finite:
                losses[row] = float(np.mean(finite))
        return Column(losses, failed[0], failed[1])

    def _border(self, failed: NDArray[np.int64]) -> float:
        rows = np.flatnonzero(failed)
        if not len(rows):
            return float("inf")
        if rows[0] == 0:
            return 0.0
        return float(np.sqrt(self.outer_lrs[rows[0] - 1] * self.outer_lrs[rows[0]]))
