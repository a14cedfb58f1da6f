"""The MAML gradient written out: one Hessian-vector product per inner step, nothing kept but the path.

With v_S = ∇L^te(θ_S) and the inner step θ_{k+1} = θ_k − α g(θ_k), the chain rule gives

    v_k = v_{k+1} − (∂g/∂θ)(θ_k)ᵀ (α v_{k+1}),        ∇L̃ = v_0,        ∂L̃/∂α = −Σ_k g(θ_k) ∘ v_{k+1}

(C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning", 2017, Eq. 1, differentiated). Each product recomputes
its inner step, so memory does not grow with S; or, under ``torch.compile``, the compiler decides what to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.gradient_steps import constant_rate, stepped
from lightning_gp.types import Examples, Loss, MetaGradient, Parameters, Rates

Total = Callable[[Parameters, Parameters], tuple[Tensor, Tensor]]
"""``total(theta, shared)``: a scalar to differentiate, and the losses of the environments that it adds up."""
Pullback = Callable[[Parameters], tuple[Parameters, Parameters]]
"""Multiplies a vector by the Jacobian of the gradient, by ``theta`` and by ``shared``."""


class InnerStep(NamedTuple):
    """θ_k, g_k where the rates are learned, and the pullback of the gradient at θ_k where it is kept."""

    theta: Parameters
    gradient: Parameters
    pullback: Pullback | None


def meta_gradient(
    loss: Loss,
    parameters: Parameters,
    support: Examples,
    query: Examples,
    lr: Rates,
    steps: int = 1,
    *,
    weight: float = 1.0,
    first_order: bool = False,
    adapted: Collection[str] | None = None,
    rate_gradients: bool = False,
    traceable: bool = False,
) -> MetaGradient:
    """Value and gradient of weight · Σ_τ L_τ^te(θ_S), θ_{k+1} = θ_k − α ∇L_τ^tr(θ_k) [Finn et al., 2017].

    Args:
        loss: the scalar loss of one environment; it is run again for each inner step, so it must not be random.
        parameters: θ_0, tensors (*shape).
        support: x (E, K, *feature), y (E, K, *target).
        query: x (E, Q, *feature), y (E, Q, *target).
        lr: the inner rate α, see ``adapt``.
        steps: S ≥ 1.
        weight: factor of the sum; 1/E for the mean.
        first_order: leave out the Hessian-vector products (FOMAML).
        adapted: names that the inner loop updates; None for all.
        rate_gradients: also give the gradient by the inner rates.
        traceable: use ``torch.func``, which ``torch.compile`` can trace; it keeps more in memory when not compiled.

    Returns:
        Losses and gradients; nothing in them carries a graph.
    """
    names = set(parameters) if adapted is None else set(adapted)
    count = support[0].shape[0]
    shared = {name: value.detach() for name, value in parameters.items() if name not in names}
    theta = {name: value.detach().expand(count, *value.shape) for name, value in parameters.items() if name in names}
    rates = {name: constant_rate(lr, name) for name in theta}
    rate = next(iter(rates.values()))
    uniform = not any(isinstance(value, Tensor) or value != rate for value in rates.values())
    gradient_of, gradient_and_pullback_of = (_traced, _traced_pair) if traceable else (_recorded, _recorded_pair)

    def inner(theta: Parameters, shared: Parameters) -> tuple[Tensor, Tensor]:
        losses = over_environments(loss, theta, shared, *support)
        return losses.sum(), losses

    def outer(theta: Parameters, shared: Parameters) -> tuple[Tensor, Tensor]:
        losses = over_environments(loss, theta, shared, *query)
        return weight * losses.sum(), losses

    def descend(theta: Parameters, path: list[InnerStep] | None) -> Parameters:
        """The inner loop: returns θ_S, and puts what the way back needs into ``path``."""
        for _ in range(steps):
            pullback = None
            if traceable and not first_order:
                gradient, pullback = gradient_and_pullback_of(inner, theta, shared)
            else:
                gradient = gradient_of(inner, theta, shared)[0]
            if path is not None:
                path.append(InnerStep(theta, gradient if rate_gradients else {}, pullback))
            theta = {name: stepped(theta[name], gradient[name], rates[name]) for name in theta}
        return theta

    # Memory peaks in the query's activations: unless compiled, only θ_S is kept beside them, and the path walked again.
    path: list[InnerStep] = []
    v, shared_gradient, losses = gradient_of(outer, descend(theta, path if traceable else None), shared)
    if not traceable and (rate_gradients or not first_order):
        descend(theta, path)
    rate_gradient = {name: torch.zeros_like(parameters[name]) for name in v} if rate_gradients else {}
    while path:
        theta, gradient, pullback = path.pop()
        rate_gradient = {name: total - (gradient[name] * v[name]).sum(0) for name, total in rate_gradient.items()}
        if first_order:
            continue
        pullback = pullback or gradient_and_pullback_of(inner, theta, shared)[1]
        products, shared_products = pullback(v if uniform else {name: rates[name] * v[name] for name in v})
        factor = rate if uniform else 1.0  # one number for all parameters commutes with the product
        if not path:
            # At θ_0 only the sums over environments are wanted, which are smaller than what they sum.
            v, products = ({name: value.sum(0) for name, value in values.items()} for values in (v, products))
        v = {name: stepped(v[name], products[name], factor) for name in v}
        shared_gradient = {n: stepped(value, shared_products[n], factor) for n, value in shared_gradient.items()}

    total = {**shared_gradient, **({name: value.sum(0) for name, value in v.items()} if first_order else v)}
    return MetaGradient(losses, {name: total[name] for name in parameters}, rate_gradient)


# Two ways to differentiate: recorded by autograd, which frees what the next line does not need, or by torch.func,
# which the compiler can see through.


def _leaves(values: Parameters) -> Parameters:
    return {name: value.detach().requires_grad_() for name, value in values.items()}


def _recorded(total: Total, theta: Parameters, shared: Parameters) -> tuple[Parameters, Parameters, Tensor]:
    theta, shared = _leaves(theta), _leaves(shared)
    with torch.enable_grad():
        value, losses = total(theta, shared)
        gradients = torch.autograd.grad(value, [*theta.values(), *shared.values()], materialize_grads=True)
    return *_split(gradients, theta, shared), losses.detach()


def _recorded_pair(total: Total, theta: Parameters, shared: Parameters) -> tuple[Parameters, Pullback]:
    theta, shared = _leaves(theta), _leaves(shared)
    with torch.enable_grad():
        value, _ = total(theta, shared)
        gradient = torch.autograd.grad(value, list(theta.values()), create_graph=True, materialize_grads=True)

    def pullback(vector: Parameters) -> tuple[Parameters, Parameters]:
        inputs = [*theta.values(), *shared.values()]
        products = torch.autograd.grad(gradient, inputs, [vector[name] for name in theta], materialize_grads=True)
        return _split(products, theta, shared)

    return dict(zip(theta, gradient, strict=True)), pullback


def _split(values: tuple[Tensor, ...], theta: Parameters, shared: Parameters) -> tuple[Parameters, Parameters]:
    cut = len(theta)
    return dict(zip(theta, values[:cut], strict=True)), dict(zip(shared, values[cut:], strict=True))


def _traced(total: Total, theta: Parameters, shared: Parameters) -> tuple[Parameters, Parameters, Tensor]:
    (theta_gradient, shared_gradient), losses = torch.func.grad(total, argnums=(0, 1), has_aux=True)(theta, shared)
    return theta_gradient, shared_gradient, losses


def _traced_pair(total: Total, theta: Parameters, shared: Parameters) -> tuple[Parameters, Pullback]:
    def gradient(theta: Parameters, shared: Parameters) -> Any:
        return torch.func.grad(total, has_aux=True)(theta, shared)[0]

    value, pullback = torch.func.vjp(gradient, theta, shared)[:2]
    return value, pullback
