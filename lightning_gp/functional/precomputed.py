"""Losses whose gradient is known already: how memory stays bounded under automatic optimization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece")
ValueAndGradients: TypeAlias = Callable[[Piece], tuple[Tensor, Sequence[Tensor]]]
"""A scalar of one piece, and its gradient by each of some fixed tensors."""


class _Precomputed(torch.autograd.Function):
    """A scalar whose backward hands out stored gradients, scaled by the incoming one."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.detach().clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(incoming * gradient for gradient in ctx.saved_tensors))


def precomputed(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar equal to ``value`` whose ``backward()`` gives ``inputs`` the known ``gradients``.

    To autograd, and so to Lightning, gradient accumulation, clipping and DDP's hooks, it is an ordinary loss.

    Args:
        value: scalar.
        inputs: leaf tensors.
        gradients: ∂value/∂input for each, of the same shapes.

    Returns:
        The scalar; it can be differentiated once.
    """
    result: Tensor = _Precomputed.apply(value, gradients, *inputs)
    return result


def differentiated(objective: Callable[[Piece], Tensor], inputs: Sequence[Tensor]) -> ValueAndGradients[Piece]:
    """``objective`` together with its gradient by ``inputs``, through autograd; no graph survives the call."""

    def value_and_gradients(piece: Piece) -> tuple[Tensor, Sequence[Tensor]]:
        with torch.enable_grad():
            value = objective(piece)
            gradients = torch.autograd.grad(value, list(inputs), materialize_grads=True)
        return value.detach(), gradients

    return value_and_gradients


def accumulated(
    value_and_gradients: ValueAndGradients[Piece], pieces: Iterable[Piece], inputs: Sequence[Tensor]
) -> Tensor:
    """Σ_i f(piece_i), differentiated piece by piece so that only one piece's graph is alive at a time.

    Args:
        value_and_gradients: f and its gradient by ``inputs``.
        pieces: what to sum over, at least one.
        inputs: leaf tensors that the sum is differentiated by.

    Returns:
        The sum, a scalar to call ``backward()`` on; it can be differentiated once.
    """
    total: Tensor | None = None
    sums: list[Tensor] = []
    for piece in pieces:
        value, gradients = value_and_gradients(piece)
        if total is None:
            total, sums = value, list(gradients)
        else:
            total = total + value
            sums = torch._foreach_add(sums, list(gradients))  # type: ignore[assignment]
        del gradients  # before the next piece needs the room
    assert total is not None, "no piece to sum over"
    return precomputed(total, inputs, sums)
