"""The gradient of a loss at the end of a proximal inner loop, from the condition that holds there.

[R19] A. Rajeswaran, C. Finn, S. Kakade, S. Levine, "Meta-learning with implicit gradients", NeurIPS 2019 (iMAML).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import over_environments
from lightning_gp.functional.conjugate_gradients import conjugate_gradients
from lightning_gp.types import Loss, Parameters


def implicit_gradient(
    loss: Loss,
    end: Parameters,
    shared: Parameters,
    environments: Environments,
    proximal: float,
    steps: int,
    tol: float = 0.0,
    create_graph: bool = False,
) -> tuple[Tensor, Parameters]:
    """L_τ^te(θ*) and its gradient by θ, θ* = argmin_φ L_τ^tr(φ) + λ/2 ‖φ − θ‖², in each environment [R19, Eq. 6].

    From ∇L_τ^tr(θ*) + λ(θ* − θ) = 0 follows ∇_θ L_τ^te(θ*) = (I + H/λ)⁻¹ v with H = ∇²L_τ^tr(θ*), v = ∇L_τ^te(θ*), and
    by parameters φ that are not adapted ∂_φ L_τ^te − (∂_φ ∇L_τ^tr)ᵀ (λ + H)⁻¹ v. The inverse is taken by conjugate
    gradients on one graph of ∇L_τ^tr that is kept. How θ* was found does not matter, and its path is not needed.

    Args:
        loss: the scalar loss of one environment.
        end: θ*, tensors (E, *shape).
        shared: the parameters that are not adapted, (*shape).
        environments: E of them.
        proximal: λ > 0.
        steps: of conjugate gradients.
        tol: see ``conjugate_gradients``.
        create_graph: let the result be differentiated by what ``end`` and ``shared`` are made of.

    Returns:
        The losses (E,), without a graph, and the gradients by all parameters, tensors (E, *shape).

    Example:
        >>> x = torch.ones(1, 1)
        >>> data = Environments((x, x), (x, 3 * x))
        >>> loss = lambda p, x, y: 0.5 * (p["w"] * x - y).square().sum()
        >>> losses, gradient = implicit_gradient(loss, {"w": torch.ones(1)}, {}, data, proximal=1.0, steps=1)
        >>> losses.item(), gradient["w"].item()
        (2.0, -1.0)
    """
    count = environments.support[0].shape[0]
    everything = {**end, **{name: value.expand(count, *value.shape) for name, value in shared.items()}}
    if not create_graph:
        everything = {name: value.detach() for name, value in everything.items()}
    everything = {n: value if value.requires_grad else value.requires_grad_() for n, value in everything.items()}
    theta = [everything[name] for name in end]
    with torch.enable_grad():
        losses: Tensor = over_environments(loss, everything, {}, *environments.split("query"))
        values = list(everything.values())
        outer = torch.autograd.grad(losses.sum(), values, create_graph=create_graph, materialize_grads=True)
        inner_loss = over_environments(loss, everything, {}, *environments.support).sum()
        inner = torch.autograd.grad(inner_loss, theta, create_graph=True, materialize_grads=True)

    def products(vector: Parameters, inputs: list[Tensor]) -> list[Tensor]:
        pairs = [(g, vector[name]) for name, g in zip(end, inner, strict=True) if g.requires_grad]
        if not pairs or not inputs:  # a loss linear in θ
            return [torch.zeros_like(each) for each in inputs]
        gradients, vectors = zip(*pairs, strict=True)
        with torch.enable_grad():
            return list(
                torch.autograd.grad(
                    gradients, inputs, vectors, retain_graph=True, create_graph=create_graph, materialize_grads=True
                )
            )

    def multiply(vector: Parameters) -> Parameters:
        found = products(vector, theta)
        return {name: vector[name] + own / proximal for name, own in zip(end, found, strict=True)}

    right = dict(zip(everything, outer, strict=True))
    with torch.set_grad_enabled(create_graph):
        solved = conjugate_gradients(multiply, {name: right[name] for name in end}, steps, tol)
        mixed = products(solved, [everything[name] for name in shared])
        fixed = {name: right[name] - own / proximal for name, own in zip(shared, mixed, strict=True)}
    return losses.detach(), {**solved, **fixed}
