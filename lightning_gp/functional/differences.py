"""Leading eigenvalues of a Hessian from differences of gradients, where no second derivative can be taken.

A difference is no derivative: its error has a part that grows with the step (third derivatives, kinks) and one that
shrinks with it (rounding), and nothing inside a search shows either. Each pair is therefore measured again, with the
step and with half of it, and is not believed unless all agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gp.functional.lanczos import Eigenpairs, search
from lightning_gp.functional.long_vectors import HERE, Space
from lightning_gp.functional.starts import warm_start

STEP = 0.05
"""How much the gradient changes along the leading eigenvector, relative to its length."""
LEAST = 0.3
"""Of the step, in units of √eps ‖θ‖: near a stationary point rounding would be all that is left."""
GUESSES = 3
"""Products that find the scale of the Hessian where nothing is known of it."""
ROUNDS = 3
"""Searches at most: the step is chosen by the leading eigenvalue, which a search finds."""

Gradient = Callable[[Tensor | None, float], Tensor]
"""(v, h) -> ∇L(θ + h v), flat; ``(None, 0)`` for ∇L(θ)."""


class Differences:
    """The map v -> (∇L(θ + h v) − ∇L(θ − h v)) / 2h.

    Attributes:
        step: h; vectors have length 1.
        products: of all so far, two gradients each.
    """

    def __init__(self, gradient: Gradient) -> None:
        self.gradient, self.step, self.products = gradient, 0.0, 0

    def __call__(self, vector: Tensor) -> Tensor:
        """With the step that is set."""
        return self.at(vector, self.step)

    def at(self, vector: Tensor, step: float) -> Tensor:
        """With another step."""
        self.products += 1
        ahead = self.gradient(vector, step)
        return ahead.sub_(self.gradient(vector, -step)).div_(2 * step)


class Measured(NamedTuple):
    """What was found, and how far it can be trusted.

    Attributes:
        values: (k,), float64, largest first; NaN where the measurements disagree.
        residuals: (k,), float64, the largest of ‖H_h v − λ v‖, ‖H_{h/2} v − λ v‖ and ‖H_h v − H_{h/2} v‖.
        vectors: (k, size).
        products: differences taken.
        step: h.
        converged: whether the search has ended and all k values are numbers.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    products: int
    step: float
    converged: bool


def eigenvalues_by_differences(
    gradient: Gradient,
    length: float,
    k: int,
    tol: float,
    *,
    initial: Tensor | None = None,
    max_products: int | None = None,
    seed: int = 0,
    space: Space = HERE,
) -> Measured:
    """The k largest eigenvalues of ∇²L(θ) from gradients alone.

    With h = 0.05 ‖∇L‖/λ̂_1, the leading pair's own step. Each pair (λ, v) of the search is measured at h and at h/2; it
    is NaN unless vᵀH_h v, vᵀH_{h/2} v and λ agree within ``tol`` of the larger of |λ| and a hundredth of |λ_1|, and
    H_h v, H_{h/2} v and λv within √tol of it, as vectors: kinks of the loss, rounding and a map that is not symmetric
    show in the vectors first.

    Args:
        gradient: ∇L at displaced weights.
        length: ‖θ‖.
        k: number of eigenvalues.
        tol: relative error allowed.
        initial: an earlier direction to start from, (size,), or None.
        max_products: differences allowed per search.
        seed: of the random vectors.
        space: of the flat vectors.

    Returns:
        The values; not finite gradients give NaN.
    """
    here = gradient(None, 0.0)
    slope = space.norm(here)
    if not math.isfinite(slope):
        nan = torch.full((k,), math.nan, dtype=torch.float64)
        return Measured(nan, nan.clone(), here.new_full((k, here.numel()), math.nan), 0, math.nan, False)
    eps = float(torch.finfo(here.dtype).eps)
    least = LEAST * math.sqrt(eps) * (length or 1.0)
    product = Differences(gradient)

    def wanted(scale: float) -> float:
        return max(least, STEP * slope / scale) if scale > 0 else least

    product.step = wanted(_scale(product, here, initial, least, wanted, space))
    start = initial
    for _ in range(ROUNDS):
        pairs = _search(product, here, start, k, tol, max_products, seed, space)
        if not bool(pairs.values.isfinite().all()):
            break
        ideal = wanted(float(pairs.values.abs().max()))
        if 0.5 <= product.step / ideal <= 2:
            break
        start, product.step = warm_start(pairs.vectors), ideal
    return _guarded(product, pairs, tol, space)


def _scale(
    product: Differences,
    gradient: Tensor,
    initial: Tensor | None,
    least: float,
    wanted: Callable[[float], float],
    space: Space,
) -> float:
    """|λ| of the power method's vector after some products from the gradient, each with the step that is known best."""
    vector, scale = gradient if initial is None else initial.to(gradient), 0.0
    product.step = least
    for _ in range(GUESSES):
        norm = space.norm(vector)
        if not norm or not math.isfinite(norm):
            break
        vector = product(vector / norm)
        scale = space.norm(vector)
        product.step = wanted(scale)
    return scale


def _search(
    product: Differences,
    like: Tensor,
    start: Tensor | None,
    k: int,
    tol: float,
    max_products: int | None,
    seed: int,
    space: Space,
) -> Eigenpairs:
    noise = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=space.generator(like.device, seed))
    vector = noise / space.norm(noise)
    share: float | None = 1.0
    norm = 0.0 if start is None else space.norm(start)
    if start is not None and norm and math.isfinite(norm):
        vector.add_(start.to(vector), alpha=3.0 / norm)
        share = None
    return search(product, vector, k, tol, max_products=max_products, random_share=share, seed=seed + 1, space=space)


def _guarded(product: Differences, pairs: Eigenpairs, tol: float, space: Space) -> Measured:
    """Each pair measured at h and h/2."""
    vectors = pairs.vectors.clone()
    values, residuals = pairs.values.clone(), pairs.residuals.clone()
    floor = 0.01 * float(values.abs().max())
    for i, vector in enumerate(vectors):
        value = float(pairs.values[i])
        if not math.isfinite(value):
            continue
        coarse, fine = product.at(vector, product.step), product.at(vector, product.step / 2)
        three = [space.dot(vector, coarse), space.dot(vector, fine), value]
        apart = [
            space.norm(coarse - fine),
            space.norm(coarse.sub_(vector, alpha=value)),
            space.norm(fine.sub_(vector, alpha=value)),
        ]
        size = max(abs(value), floor)
        agreed = max(three) - min(three) <= tol * size and max(apart) <= math.sqrt(tol) * size
        values[i] = three[1] if agreed else math.nan
        residuals[i] = max(apart)
    found = pairs.converged and bool(values.isfinite().all())
    return Measured(values, residuals, vectors, product.products, product.step, found)
