"""Linear systems with a positive definite matrix in each of many environments, by its products with vectors alone.

[HS52] M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gp.functional.stacks import as_rows
from lightning_gp.types import Parameters


def conjugate_gradients(
    multiply: Callable[[Parameters], Parameters], right: Parameters, steps: int, tol: float = 0.0
) -> Parameters:
    """X ≈ A⁻¹ b in each environment, from x = b, by conjugate gradients [HS52].

    An environment stops for itself where ‖Ax − b‖ ≤ ``tol`` ‖b‖, or where A curves down along a direction (A is then
    not positive definite, and going on would lead away). Every operation is differentiable, if those of ``multiply``
    are; after as many steps as A has different eigenvalues the result is exact.

    Args:
        multiply: v -> A v, tensors (E, *shape), the environments apart.
        right: b, tensors (E, *shape).
        steps: at most; each costs one product, and the start another.
        tol: relative size of the residual that is small enough.

    Returns:
        x, tensors (E, *shape).

    Example:
        >>> scale = torch.tensor([[2.0, 4.0], [1.0, 3.0]])
        >>> conjugate_gradients(lambda v: {"w": scale * v["w"]}, {"w": scale}, steps=2)["w"].round(decimals=5)
        tensor([[1., 1.],
                [1., 1.]])
    """
    x = right
    residual = _plus(right, multiply(right), -torch.ones_like(_inner(right, right)))
    direction, size = residual, _inner(residual, residual)
    limit = tol**2 * _inner(right, right).detach()
    going = size.detach() > limit
    for _ in range(steps):
        if not bool(going.any()):
            break
        product = multiply(direction)
        curvature = _inner(direction, product)
        going = going & (curvature.detach() > 0)
        step = _quotient(size, curvature, going)
        x, residual = _plus(x, direction, step), _plus(residual, product, -step)
        before, size = size, _inner(residual, residual)
        direction = _plus(residual, direction, _quotient(size, before, going))
        going = going & (size.detach() > limit)
    return x


def _inner(left: Parameters, right: Parameters) -> Tensor:
    """⟨v, w⟩ of each environment, (E,)."""
    return torch.stack([as_rows(left[name] * right[name]).sum(1) for name in left]).sum(0)


def _plus(left: Parameters, right: Parameters, factor: Tensor) -> Parameters:
    """V + f w with f of each environment, (E,)."""
    return {name: value + factor.reshape(-1, *[1] * (value.ndim - 1)) * right[name] for name, value in left.items()}


def _quotient(above: Tensor, below: Tensor, where: Tensor) -> Tensor:
    """``above / below`` in some environments, 0 in the others, whose derivative is 0 as well."""
    return torch.where(where, above / torch.where(where, below, 1.0), 0.0)
