"""What a map found, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_gp.trainability.engine import Outcome
from lightning_gp.trainability.refining import Criterion, bracket
from lightning_gp.trainability.storage import Cell, Header, cells_of, read

Array = NDArray[np.float64]


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
        cells: the finished ones; those whose β is not of the grid are steps of a bisection.

    Attributes:
        inner_lrs: α, (A,).
        outer_lrs: β, (B,).
        losses: (A, B), as are ``diverged`` and ``worse``; see ``Column``.
        zero: the same at α = 0, (B,), or None if it was not asked for.
        complete: whether all cells of the grid are finished.
        refined: whether borders were bisected between rates of the grid.
        first_loss: median over the finished cells of the loss before the first step; NaN where there is none.
        outer_steps: steps that were computed in all cells together.
    """

    def __init__(self, header: Header, cells: Mapping[Cell, Outcome]) -> None:
        self.header, self.cells = header, dict(cells)
        self.inner_lrs: Array = np.array(header["inner_lrs"], dtype=np.float64)
        self.outer_lrs: Array = np.array(header["outer_lrs"], dtype=np.float64)
        grid = cells_of(header)
        self.complete = all(cell in self.cells for cell in grid)
        self.refined = len(self.cells.keys() - set(grid)) > 0
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

    def of_seed(self, seed: int) -> TrainabilityResult:
        """The map of one seed alone.

        Raises:
            ValueError: if it is none of the map's.
        """
        if seed not in self.header["seeds"]:
            raise ValueError(f"seed={seed} is none of the map's seeds {self.header['seeds']}.")
        return TrainabilityResult(
            {**self.header, "seeds": [seed]}, {cell: each for cell, each in self.cells.items() if cell.seed == seed}
        )

    def critical_outer_lrs(self, criterion: Criterion = "diverged") -> Array:
        """The largest usable β at each α, (A,): the smallest of ``seed_borders``, so that all seeds train below it.

        Args:
            criterion: fails if it ``"diverged"``, or also if the loss became ``"worse"``.

        Returns:
            0 where the smallest β fails, ∞ where none does. Cells that are not finished do not fail.
        """
        return np.array([self._critical(alpha, criterion) for alpha in self.header["inner_lrs"]])

    def zero_critical_outer_lr(self, criterion: Criterion = "diverged") -> float | None:
        """The same at α = 0, or None if the map has no such line."""
        return None if self.zero is None else self._critical(0.0, criterion)

    def seed_borders(self, inner_lr: float, criterion: Criterion = "diverged") -> Array:
        """The largest usable β of each seed at one α of the map, (seeds,).

        Halfway, in logarithms, between the first failing rate of the grid and the one below; closer where the map was
        run with ``refine``.

        Args:
            inner_lr: α, 0 for the line of comparison.
            criterion: what counts as a failure.

        Returns:
            0 where the smallest β fails, ∞ where none does, NaN where a cell up to the first failure is not finished.
        """
        found = [bracket(self.cells, self.header, seed, float(inner_lr), criterion) for seed in self.header["seeds"]]
        return np.array([each.border if each.known else np.nan for each in found])

    def _critical(self, alpha: float, criterion: Criterion) -> float:
        each = (bracket(self.cells, self.header, seed, alpha, criterion) for seed in self.header["seeds"])
        return min(one.border for one in each)

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
