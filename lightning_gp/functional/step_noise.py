"""How much the curvature along the inner loop's steps takes off what their gradients promise.

Source: "Enforcing zero-Hessian in meta-learning", 2022 [L22], section 4.2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from lightning_gp import checks
from lightning_gp.functional.adaptation import Trajectory, difference, over_environments
from lightning_gp.functional.output_jacobian import same_draws
from lightning_gp.functional.stacks import as_rows
from lightning_gp.types import Examples, Loss, Parameters


def noise_term(loss: Loss, trajectory: Trajectory, support: Examples) -> Tensor:
    """(1/S) Σ_{k<S} α gᵀHg / ‖g‖² at θ_k, H the Hessian of the inner loss, in each environment [L22, Eq. 5].

    To second order a step lowers the loss by α‖g‖² (1 − half of this): the step is a descent below 2, and best at 1.
    Computed as dᵀHd / (−gᵀd), d = θ_{k+1} − θ_k, which for d = −αg is the same, and right for a rate per parameter or
    another inner optimizer too.

    Args:
        loss: the scalar loss of one environment.
        trajectory: from ``adapt``.
        support: x (E, K, *feature), y (E, K, *target).

    Returns:
        (E,), detached; negative where the loss curves downwards. A step of 0 counts as 0, one that does not go downhill
        makes NaN.

    Raises:
        ValueError: if the path has no steps.
        RuntimeError: if an operation has no double backward.

    Example:
        >>> path = Trajectory(({"w": torch.tensor([1.0])}, {"w": torch.tensor([0.4])}), (), {})
        >>> noise_term(lambda p, x, y: 3 * p["w"] ** 2 / 2, path, (torch.ones(1, 1),) * 2)  # α = 0.2, H = 3
        tensor([0.6000])
    """
    checks.whole(1, hint="take a Trajectory that adapt() made", steps=trajectory.steps)
    return torch.stack(
        [_of_step(loss, before, after, trajectory.shared, support) for before, after in pairwise(trajectory.parameters)]
    ).mean(0)


def _of_step(loss: Loss, before: Parameters, after: Parameters, shared: Parameters, support: Examples) -> Tensor:
    step = {name: value.detach() for name, value in difference(after, before).items()}
    theta = {name: value.detach().requires_grad_() for name, value in before.items()}
    leaves, constant = list(theta.values()), {name: value.detach() for name, value in shared.items()}
    with torch.enable_grad(), same_draws(support[0]):
        total = over_environments(loss, theta, constant, *support).sum()
        gradient = torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)
        slope = _dot(gradient, step)
    curved: Iterable[Tensor] = map(torch.zeros_like, leaves)  # where the gradient is constant
    if slope.requires_grad:
        curved = torch.autograd.grad(slope.sum(), leaves, materialize_grads=True)
    bend, fall = _dot(curved, step), -slope.detach()
    still = torch.stack([as_rows(value).eq(0).all(1) for value in step.values()]).all(0)
    return torch.where(fall > 0, bend / fall, torch.where(still, 0.0, torch.nan))


def _dot(values: Iterable[Tensor], step: Parameters) -> Tensor:
    pairs = zip(values, step.values(), strict=True)
    return torch.stack([as_rows(value * each).sum(1) for value, each in pairs]).sum(0)
