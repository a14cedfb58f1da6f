"""Eigenvalues that one Krylov space cannot show: further copies of repeated ones.

A Krylov space holds one vector of each eigenspace, so a search from one start finds a repeated eigenvalue once, with a
residual of 0. A second search, from a random vector orthogonal to what was found and with the operator deflated by it,
has to exclude every eigenvalue that would change the answer, or finds it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gp.functional.krylov import LanczosBasis
from lightning_gp.functional.krylov_basis import Product, Which
from lightning_gp.functional.long_vectors import HERE, Space

ROWS = 3
"""Fewest vectors of the second search: as many as the default basis of a large model has beside the pairs."""


class Pairs(NamedTuple):
    """Eigenpairs in order: values (k,), rows (k, size) and residuals (k,)."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class Outcome(NamedTuple):
    """What a second search found."""

    pairs: Pairs
    products: int
    complete: bool


class Search(NamedTuple):
    """What both searches have in common.

    Attributes:
        product: v -> A v.
        tol: relative error allowed in each value.
        which: ``"largest"`` algebraic, or ``"magnitude"``.
        scale: of the operator's norm.
        rounding: of a value.
        patience: settled products in a row that end a search with restarts.
        seen_once: whether the first search has seen every eigenvalue above the last wanted one, copies left aside.
        space: of its vectors.
    """

    product: Product
    tol: float
    which: Which
    scale: float
    rounding: float
    patience: int
    seen_once: bool
    space: Space = HERE

    def level(self, values: Tensor) -> float | None:
        """What a further eigenvalue has to exceed to change the answer; None if there can be no such.

        If each was seen once there can be copies only, and those of the last value change nothing.

        Args:
            values: what is known, in order, (k,).
        """
        keys = values.abs() if self.which == "magnitude" else values
        level = float(keys[-1]) + max(self.tol * abs(float(values[-1])), self.rounding)
        return None if self.seen_once and float(keys[0]) <= level else level


def with_copies(known: Search, pairs: Pairs, storage: Tensor, budget: int, seed: int) -> Outcome:
    """The k leading pairs, copies of repeated eigenvalues included.

    Args:
        known: of the first search.
        pairs: what it found; the vectors are overwritten.
        storage: rows (m, size) that the search may use up.
        budget: products allowed.
        seed: of the random vectors.

    Returns:
        The pairs, the products it took, and whether nothing above the last of them can be hidden.
    """
    k, length = pairs.vectors.shape
    rows = min(max(ROWS, len(storage)), known.space.size(pairs.vectors[0]) - k)
    if len(storage) < rows:
        storage = pairs.vectors.new_empty(rows, length)
    used = 0
    while (level := known.level(pairs.values)) is not None:
        state = _deflated(known, pairs.vectors, storage[:rows], seed + used)
        finished = _searched(state, level, known.tol, budget - used, known.patience)
        used += state.products
        if not finished or not state.finite:
            return Outcome(pairs, used, False)
        hidden = state.above(level)
        if hidden == 0:
            break
        pairs = _merged(pairs, state, hidden, known.which)
    return Outcome(pairs, used, True)


def _deflated(known: Search, vectors: Tensor, storage: Tensor, seed: int) -> LanczosBasis:
    """The basis of (I − VᵀV) A (I − VᵀV) from a random vector orthogonal to the rows of V."""

    def cleared(vector: Tensor) -> Tensor:
        return vector.addmv(vectors.T, known.space.coefficients(vectors, vector), alpha=-1)

    generator = known.space.generator(vectors.device, seed)
    # In place: each vector is as long as the parameters.
    start = torch.randn(vectors.shape[1], dtype=vectors.dtype, device=vectors.device, generator=generator)
    for _ in range(2):
        start.addmv_(vectors.T, known.space.coefficients(vectors, start), alpha=-1)
    product = known.product
    state = LanczosBasis(
        lambda vector: cleared(product(vector)),
        start,
        len(storage),
        known.which,
        seed,
        1.0,
        storage,
        known.space,
    )
    state.scale = known.scale  # what is rounding is measured by the whole operator
    return state


def _searched(state: LanczosBasis, level: float, tol: float, budget: int, patience: int) -> bool:
    """Extends the basis until all that leads ``level`` is known; whether it came to that."""
    in_a_row = 0
    capacity = len(state.projection)
    while state.products < budget and state.finite:
        if state.count == capacity:
            state.restart(min(capacity - 1, state.above(level) + 1))
        state.extend()
        if state.finite and (state.length == 0.0 or state.nothing_above(level, tol)):
            return True
        in_a_row = in_a_row + 1 if state.settled(max(1, state.above(level)), tol) else 0
        if state.restarted and in_a_row >= patience:
            return True
    return False


def _merged(pairs: Pairs, state: LanczosBasis, hidden: int, which: Which) -> Pairs:
    """The k leading ones of what was known and of the pairs that the second search found."""
    k = len(pairs.values)
    values, vectors, residuals = state.ritz()
    hidden = min(hidden, k)
    state.rotate(vectors[:, :hidden])
    # The deflated operator leaves out how far the known vectors are from being eigenvectors.
    residuals = torch.hypot(residuals[:hidden], pairs.residuals.norm())
    every = torch.cat([pairs.values, values[:hidden]])
    order = (every.abs() if which == "magnitude" else every).argsort(descending=True, stable=True)[:k]
    rows = torch.cat([pairs.vectors, state.basis[:hidden]])
    pairs.vectors.copy_(rows[order.to(rows.device)])
    return Pairs(every[order], pairs.vectors, torch.cat([pairs.residuals, residuals])[order])
