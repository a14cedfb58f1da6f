"""Third-order curvature: the matrices Tg, H² and Tg + H², without forming any of them.

With g = ∇L, H = ∇²L and T = ∇³L at the parameters θ, the Hessian of ½‖g‖² is Tg + H²: its product with v is the
directional derivative of H(θ) g(θ) along v. Learning-rate theory keeps H² and drops Tg; these operators measure both.

Sources:
    [T21] S. Takagi, Y. Nagano, Y. Yoshida, M. Okada (2021), Analysis of trainability of gradient-based
    multi-environment learning from gradient norm regularization perspective, Fig. 5.
    [T19] Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, App. B-D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gp.functional.hessian_product import HessianVectorProduct, Loss, Reduce, hessian_vector_product


class SymmetricOperator(NamedTuple):
    """A symmetric linear map on flat vectors, shape (size,), with what is needed to draw them."""

    product: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype
    device: torch.device

    def __call__(self, vector: Tensor, /) -> Tensor:
        """Product with a vector, shape (size,)."""
        return self.product(vector)


class ThirdOrder(NamedTuple):
    """The three operators at one θ, each v -> A v on flat vectors of shape (size,).

    Attributes:
        tg: Σ_k ∂³L/∂θ_i∂θ_j∂θ_k g_k.
        h_squared: H H.
        sum: Tg + H², the Hessian of ½‖∇L‖².
    """

    tg: SymmetricOperator
    h_squared: SymmetricOperator
    sum: SymmetricOperator


def third_order_operators(loss: Loss, parameters: Mapping[str, Tensor], *, reduce: Reduce | None = None) -> ThirdOrder:
    """Operators Tg, H² and Tg + H² of a loss [T21, Fig. 5; T19, App. B-D].

    Tg is the Hessian of θ -> ∇L(θ)ᵀ c with c held at g(θ). That costs one kept graph and, unlike the difference of
    Tg + H² and H², loses no digits where Tg is small. Use them with
    :func:`~lightning_gp.functional.lanczos.leading_eigenpairs` and
    :func:`~lightning_gp.functional.spectrum.frobenius_norm`.

    Args:
        loss: maps a dict of parameters to a scalar.
        parameters: name -> tensor.
        reduce: as in :func:`~lightning_gp.functional.hessian_product.hessian_vector_product`; linear, such as a mean
            over ranks, so that g and H are those of the mean loss.

    Returns:
        The three operators.

    Raises:
        ValueError: the loss does not depend on the parameters.
        RuntimeError: an operation inside the loss cannot be differentiated as often as needed.

    Example:
        >>> cubic = third_order_operators(lambda p: (p["w"] ** 3).sum() / 6, {"w": torch.tensor([2.0])})
        >>> [float(operator(torch.ones(1))) for operator in cubic]  # g = 2, H = 2, T = 1
        [2.0, 4.0, 6.0]
    """
    hessian = hessian_vector_product(loss, parameters, reduce=reduce)
    constant = hessian.unflatten(hessian.gradient)

    def along_gradient(point: dict[str, Tensor]) -> Tensor:
        gradients = torch.autograd.grad(
            loss(point), list(point.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        # The quadratic term has a zero Hessian and keeps a loss whose gradient is constant differentiable.
        terms = [(g * c.to(g)).sum() for g, c in zip(gradients, constant.values(), strict=True)]
        return torch.stack(terms + [0.0 * p.square().sum() for p in point.values()]).sum()

    tg = hessian_vector_product(along_gradient, parameters, reduce=reduce)
    return ThirdOrder(
        _like(hessian, tg),
        _like(hessian, lambda vector: hessian(hessian(vector))),
        _like(hessian, lambda vector: tg(vector) + hessian(hessian(vector))),
    )


def _like(hessian: HessianVectorProduct, product: Callable[[Tensor], Tensor]) -> SymmetricOperator:
    return SymmetricOperator(product, hessian.size, hessian.dtype, hessian.device)
