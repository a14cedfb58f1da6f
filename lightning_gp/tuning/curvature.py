"""What curvatures and kernels at given weights say about learning rates, beside what is tried.

[Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gp.contracts import Adapts
from lightning_gp.environments import Environments
from lightning_gp.functional.curvature_by_environment import environment_curvatures
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.update_curvature import UpdateJacobian, leading_curvature
from lightning_gp.theory.optimal_adaptation import network_adaptation_lr
from lightning_gp.theory.optimizers import UpdateRule, update_rule
from lightning_gp.tuning.tunable import Tunable, only_optimizer
from lightning_gp.types import Criterion, Parameters

MAX_ROWS = 500
"""Outputs of an environment's support set beyond which its tangent kernel is left out."""


def support_curvatures(module: Adapts, environments: Environments) -> Tensor:
    """λ_max of each environment's support loss by the adapted parameters, (E,), float64."""
    parameters = {name: value.detach() for name, value in module.network_parameters().items()}
    with plain_kernels(second_order=True):
        return environment_curvatures(
            lambda theta, one: module.environment_losses(theta, one, "support"),
            parameters,
            environments,
            module.inner_loop().adapted,
            tol=1e-3,
        )


def outer_bound(
    module: Tunable, trained: Sequence[Tensor], batch: Environments, rule: UpdateRule | None = None
) -> float | None:
    """β_c of the module's own objective and optimizer at trained weights, as ``LearningRateBounds`` has it.

    None for an optimizer with second moments, unless its ``rule`` is given, and where nothing bounds β.
    """
    rule = update_rule(only_optimizer(module)) if rule is None else rule
    if not rule.moves:
        return None
    own = module.network_parameters()
    at = dict(zip(map(id, module.trained_parameters()), trained, strict=True))
    moved = {name: value for name, value in own.items() if id(value) in at}
    parameters = {name: at[id(value)].detach() for name, value in moved.items()}
    fixed = {name: value.detach() for name, value in own.items() if name not in moved}

    def objective(theta: Parameters) -> Tensor:
        return module.environment_objectives({**fixed, **theta}, batch).mean()

    with plain_kernels(second_order=True):
        found = leading_curvature(
            UpdateJacobian(objective, parameters),
            rule.root_scales(moved),
            rule.coupled_decay(moved),
            rule.critical_rate,
            tol=1e-3,
        )
    rate = rule.critical_rate(found.value) if found.value == found.value else math.inf
    return rate if rate < math.inf else None


def tangent_kernel_rate(module: Adapts, criterion: Criterion, environments: Environments) -> float | None:
    """``theory.network_adaptation_lr`` on the support sets; None where the kernel would be too large."""
    parameters = {name: value.detach() for name, value in module.network_parameters().items()}
    names = module.inner_loop().adapted
    adapted = {name: parameters[name] for name in (parameters if names is None else names)}
    shared = {name: value for name, value in parameters.items() if name not in adapted}
    x, y = environments.support
    with torch.no_grad():
        rows = module.predict({**shared, **adapted}, x[0]).numel()
    if rows > MAX_ROWS:
        return None
    value = network_adaptation_lr(
        lambda theta, inputs: module.predict({**shared, **theta}, inputs), criterion, adapted, x, y
    )
    return float(value)
