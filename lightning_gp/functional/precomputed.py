"""Losses whose gradient is known already: how memory stays bounded under automatic optimization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece")


class Evaluated(NamedTuple):
    """A scalar of one piece, its gradient by each of some fixed tensors, and numbers that go with it, by name."""

    value: Tensor
    gradients: Sequence[Tensor]
    terms: dict[str, Tensor]


Evaluation: TypeAlias = Callable[[Piece], Evaluated]


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


def differentiated(
    objective: Callable[[Piece], tuple[Tensor, dict[str, Tensor]]], inputs: Sequence[Tensor]
) -> Evaluation[Piece]:
    """``objective``, a scalar and its terms, with its gradient by ``inputs``; no graph survives the call."""

    def evaluation(piece: Piece) -> Evaluated:
        with torch.enable_grad():
            value, terms = objective(piece)
            gradients = torch.autograd.grad(value, list(inputs), materialize_grads=True)
        return Evaluated(value.detach(), gradients, terms)

    return evaluation


def accumulated(
    evaluation: Evaluation[Piece], pieces: Iterable[Piece], inputs: Sequence[Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ_i f(piece_i), differentiated piece by piece so that only one piece's graph is alive at a time.

    Args:
        evaluation: f, its gradient by ``inputs``, and its terms.
        pieces: what to sum over, at least one.
        inputs: leaf tensors that the sum is differentiated by.

    Returns:
        The sum, a scalar to call ``backward()`` on (it can be differentiated once), and the sum of each term.
    """
    total: Tensor | None = None
    sums: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    for piece in pieces:
        value, gradients, own = evaluation(piece)
        terms = {name: terms[name] + term for name, term in own.items()} if terms else own
        if total is None:
            total, sums = value, list(gradients)
        else:
            total = total + value
            sums = torch._foreach_add(sums, list(gradients))  # type: ignore[assignment]
        del gradients  # before the next piece needs the room
    assert total is not None, "no piece to sum over"
    return precomputed(total, inputs, sums), terms
