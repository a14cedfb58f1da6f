"""Eigenvalues that one Krylov space cannot show: further copies of repeated ones.

A Krylov space holds one vector of each eigenspace, so a search from one start finds a repeated eigenvalue once, with a
residual of 0. A second search, from a random vector orthogonal to what was found and with the operator deflated by it,
has to exclude every eigenvalue above the last wanted one, or finds it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gp.functional.krylov import LanczosBasis, Product, Which

ROWS = 4
"""Fewest vectors of the second search."""


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


def with_copies(
    product: Product,
    pairs: Pairs,
    storage: Tensor,
    tol: float,
    which: Which,
    scale: float,
    budget: int,
    patience: int,
    seed: int,
) -> Outcome:
    """The k leading pairs, copies of repeated eigenvalues included.

    Args:
        product: v -> A v.
        pairs: what one search found; its vectors are overwritten.
        storage: rows (m, size) that the search may use up.
        tol: relative error allowed in each value.
        which: ``"largest"`` algebraic, or ``"magnitude"``.
        scale: of the operator's norm.
        budget: products allowed.
        patience: settled products in a row that end a search with restarts.
        seed: of the random vectors.

    Returns:
        The pairs, the products it took, and whether nothing above the last of them can be hidden.
    """
    k, size = pairs.vectors.shape
    rows = min(max(ROWS, len(storage)), size - k)
    if len(storage) < rows:
        storage = pairs.vectors.new_empty(rows, size)
    used = 0
    while True:
        level = _level(pairs.values[-1], tol, which, scale, storage.dtype)
        state = _deflated(product, pairs.vectors, storage[:rows], which, scale, seed + used)
        finished = _searched(state, level, tol, budget - used, patience)
        used += state.products
        if not finished or not state.finite:
            return Outcome(pairs, used, False)
        hidden = state.above(level)
        if hidden == 0:
            return Outcome(pairs, used, True)
        pairs = _merged(pairs, state, hidden, which)


def _level(last: Tensor, tol: float, which: Which, scale: float, dtype: torch.dtype) -> float:
    key = abs(float(last)) if which == "magnitude" else float(last)
    return key + max(tol * abs(float(last)), 30 * torch.finfo(dtype).eps * scale)


def _deflated(
    product: Product, vectors: Tensor, storage: Tensor, which: Which, scale: float, seed: int
) -> LanczosBasis:
    """The basis of (I − VᵀV) A (I − VᵀV) from a random vector orthogonal to the rows of V."""

    def cleared(vector: Tensor) -> Tensor:
        return vector.addmv(vectors.T, vectors @ vector, alpha=-1)

    generator = torch.Generator(vectors.device).manual_seed(seed)
    start = torch.randn(vectors.shape[1], dtype=vectors.dtype, device=vectors.device, generator=generator)
    state = LanczosBasis(
        lambda vector: cleared(product(vector)), cleared(cleared(start)), len(storage), which, seed, 1.0, storage
    )
    state.scale = scale  # what is rounding is measured by the whole operator
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
