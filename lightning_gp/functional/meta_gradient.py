"""The MAML gradient written out: one Hessian-vector product per inner step, nothing kept but the path.

With v_S = ∇L^te(θ_S) and the inner step θ_{k+1} = θ_k − α g(θ_k), the chain rule gives

    v_k = v_{k+1} − (∂g/∂θ)(θ_k)ᵀ (α v_{k+1}),        ∇L̃ = v_0,        ∂L̃/∂α = −Σ_k g(θ_k) ∘ v_{k+1}

(C. Finn, P. Abbeel, S. Levine, 2017; the products are those of A. Rajeswaran et al., "Meta-learning with implicit
gradients", 2019, section 2, without its approximation). Each product may recompute its inner step, so memory does not
grow with S; and since no graph outlives this function, the whole of it compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gp.environments import Examples
from lightning_gp.functional.adaptation import Loss, Parameters, Rates, over_environments, rate_of


class MetaGradient(NamedTuple):
    """The query losses and their mean's gradient.

    Attributes:
        losses: adapted query loss of each environment, (E,).
        parameters: gradient of ``losses.sum()`` by θ_0, tensors (*shape).
        rates: gradient of ``losses.sum()`` by the inner rate of each adapted parameter, elementwise, (*shape).
    """

    losses: Tensor
    parameters: Parameters
    rates: Parameters


def meta_gradient(
    loss: Loss,
    parameters: Parameters,
    support: Examples,
    query: Examples,
    lr: Rates,
    steps: int = 1,
    *,
    first_order: bool = False,
    adapted: Collection[str] | None = None,
    recompute: bool = True,
) -> MetaGradient:
    """Value and gradient of Σ_τ L_τ^te(θ_S), θ_{k+1} = θ_k − α ∇L_τ^tr(θ_k) [T21, Eq. 3-5].

    Args:
        loss: the scalar loss of one environment.
        parameters: θ_0, tensors (*shape).
        support: x (E, K, *feature), y (E, K, *target).
        query: x (E, Q, *feature), y (E, Q, *target).
        lr: the inner rate α, see ``adapt``.
        steps: S ≥ 1.
        first_order: leave out the Hessian-vector products (FOMAML).
        adapted: names that the inner loop updates; None for all.
        recompute: run each inner step again for its Hessian-vector product instead of keeping its graph.

    Returns:
        Losses and gradients; nothing in them carries a graph.
    """
    names = set(parameters) if adapted is None else set(adapted)
    count = support[0].shape[0]
    shared = {name: value.detach() for name, value in parameters.items() if name not in names}
    theta = {
        name: value.detach().expand(count, *value.shape) for name, value in parameters.items() if name in names
    }
    rates = {name: _detached(rate_of(lr, name)) for name in theta}

    def inner(theta: Parameters, shared: Parameters) -> Parameters:
        def total(theta: Parameters) -> Tensor:
            return over_environments(loss, theta, shared, *support).sum()

        gradient: Parameters = torch.func.grad(total)(theta)
        return gradient

    path: list[tuple[Parameters, Parameters, Callable[..., Any] | None]] = []
    for _ in range(steps):
        backward = None
        if first_order or recompute:
            gradient = inner(theta, shared)
        else:
            gradient, backward = torch.func.vjp(inner, theta, shared)
        path.append((theta, gradient, backward))
        theta = {name: theta[name] - rates[name] * gradient[name] for name in theta}

    def outer(theta: Parameters, shared: Parameters) -> tuple[Tensor, Tensor]:
        losses = over_environments(loss, theta, shared, *query)
        return losses.sum(), losses

    (v, shared_gradient), losses = torch.func.grad(outer, argnums=(0, 1), has_aux=True)(theta, shared)
    rate_gradient = {name: torch.zeros_like(parameters[name]) for name in v}
    while path:
        theta, gradient, backward = path.pop()  # popped, so that each step's graph is freed as soon as it was used
        rate_gradient = {name: rate_gradient[name] - (gradient[name] * v[name]).sum(0) for name in v}
        if first_order:
            continue
        if backward is None:
            _, backward = torch.func.vjp(inner, theta, shared)
        scaled = {name: rates[name] * v[name] for name in v}
        theta_product, shared_product = backward(scaled)
        v = {name: v[name] - theta_product[name] for name in v}
        shared_gradient = {name: shared_gradient[name] - shared_product[name] for name in shared_gradient}

    total = {name: value.sum(0) for name, value in v.items()}
    ordered = {name: (total if name in total else shared_gradient)[name] for name in parameters}
    return MetaGradient(losses, ordered, rate_gradient)


def _detached(rate: float | Tensor) -> float | Tensor:
    return rate.detach() if isinstance(rate, Tensor) else rate
