from __future__ import annotations

import pytest
import torch

from lightning_gp.functional.precomputed import accumulated, differentiated


def test_pieces_give_the_value_and_gradient_of_the_sum():
    a = torch.randn(3, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    pieces = [torch.randn(3, dtype=torch.float64) for _ in range(4)]

    def objective(piece: torch.Tensor) -> torch.Tensor:
        return (a * piece).sin().sum()

    whole = sum(objective(piece) for piece in pieces)
    reference = torch.autograd.grad(3 * whole, a)[0]

    def with_terms(piece: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return objective(piece), {"pieces": torch.ones(()), "sum": piece.sum()}

    total, terms = accumulated(differentiated(with_terms, [a, unused]), pieces, [a, unused])
    assert terms["pieces"] == 4
    torch.testing.assert_close(terms["sum"], sum(piece.sum() for piece in pieces))
    (3 * total).backward()
    torch.testing.assert_close(total.detach(), whole.detach())
    torch.testing.assert_close(a.grad, reference)
    torch.testing.assert_close(unused.grad, torch.zeros_like(unused))


def test_a_second_derivative_is_refused_rather_than_wrong():
    a = torch.ones((), requires_grad=True)
    total, _ = accumulated(differentiated(lambda piece: ((a * piece) ** 2, {}), [a]), [2.0], [a])
    (gradient,) = torch.autograd.grad(total, a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.backward()
