"""Borders between the rates of a grid, by bisection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from lightning_gp.checks import number
from lightning_gp.trainability.engine import Outcome
from lightning_gp.trainability.storage import Cell, Header

Criterion: TypeAlias = Literal["diverged", "worse"]
"""What counts as a failure: that training diverged, or also that its loss ended above the first."""


class Bracket(NamedTuple):
    """Two β between which the border of one seed and α lies.

    Attributes:
        low: the largest that trains below the first failure; 0 if the smallest of the grid fails.
        high: the first that fails; ∞ if none does.
        known: whether every cell of the grid up to the first failure is finished; those that are not count as trained.
    """

    low: float
    high: float
    known: bool

    @property
    def border(self) -> float:
        """Halfway in logarithms; 0 or ∞ beyond the grid."""
        return math.sqrt(self.low * self.high) if self.low and self.high < math.inf else self.low and self.high


def bracket(cells: Mapping[Cell, Outcome], header: Header, seed: int, inner_lr: float, criterion: Criterion) -> Bracket:
    """Where the border lies, by the grid and by the cells that a bisection has put between its rates.

    The first failure counts, going up the grid: where training fails at a rate and works at a larger one again, the
    border is below the first of these.

    Args:
        cells: the finished ones.
        header: the grid.
        seed: of the run.
        inner_lr: α, 0 for the line of comparison.
        criterion: what counts as a failure.
    """
    low, high, known = 0.0, math.inf, True
    for beta in header["outer_lrs"]:
        outcome = cells.get(Cell(seed, inner_lr, beta))
        if outcome is not None and getattr(outcome, criterion):
            high = beta
            break
        known &= outcome is not None
        low = beta
    if low and high < math.inf:
        while low < (middle := math.sqrt(low * high)) < high:
            outcome = cells.get(Cell(seed, inner_lr, middle))
            if outcome is None:
                break
            low, high = (low, middle) if getattr(outcome, criterion) else (middle, high)
    return Bracket(low, high, known)


def between(header: Header, cells: Mapping[Cell, Outcome], refine: float, criterion: Criterion) -> list[Cell]:
    """The next cell of every bisection, in the order of the grid; none where all are fine enough.

    Args:
        header: the grid, all of whose cells are finished.
        cells: the finished ones.
        refine: relative width of a bracket at which its bisection ends.
        criterion: whose border is looked for.
    """
    alphas = [0.0, *header["inner_lrs"]] if header["zero_inner_lr"] else header["inner_lrs"]
    found = []
    for seed in header["seeds"]:
        for alpha in alphas:
            low, high, _ = bracket(cells, header, seed, alpha, criterion)
            if low and high < math.inf and high / low > 1 + refine:
                found.append(Cell(seed, alpha, math.sqrt(low * high)))
    return found


def check_refine(refine: float | None, shards: int) -> None:
    """Refuses a width that a bisection cannot end at, and shares of the cells.

    Raises:
        ValueError: if ``refine`` < 1e-6, or there are several shards.
        TypeError: if it is no number.
    """
    if refine is None:
        return
    number(refine=refine)
    if refine < 1e-6:
        raise ValueError(f"refine={refine:g} is the relative width to which borders are found; take 1e-6 or more.")
    if shards > 1:
        raise ValueError(
            "refine bisects between the cells of whole columns, and a shard has shares of them: run the shards "
            "without refine, merge their files, and run once more with refine on the merged file."
        )
