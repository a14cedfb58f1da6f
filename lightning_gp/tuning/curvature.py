"""What curvatures and kernels at given weights say about learning rates, beside what is tried.

[Z22] Y. Zou, F. Liu, Q. Li (2022), Unraveling model-agnostic meta-learning via the adaptation learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gp.environments import Environments, chunks_of
from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.theory.learning_rates import critical_outer_lr
from lightning_gp.theory.optimal_adaptation import network_adaptation_lr
from lightning_gp.tuning.trials import Tunable
from lightning_gp.types import Parameters

MAX_ROWS = 500
"""Outputs of an environment's support set beyond which its tangent kernel is left out."""


def support_curvatures(module: Tunable, environments: Environments) -> Tensor:
    """λ_max of each environment's support loss by the adapted parameters, (E,), float64."""
    shared, adapted = _split(module)

    def largest(one: Environments) -> Tensor:
        def loss(parameters: Parameters) -> Tensor:
            value: Tensor = module.environment_losses({**shared, **parameters}, one, "support")
            return value.mean()

        return hessian_eigenvalues(loss, adapted, k=1).values[0]

    return torch.stack([largest(one) for one in chunks_of(environments, 1)])


def outer_bound(module: Tunable, trained: Sequence[Tensor], batch: Environments, inner_lr: float) -> float | None:
    """β_c(α) by the theory, from the two largest curvatures of the mean query loss at trained weights; None for none.

    Negative eigenvalues are left out of account, as in ``callbacks.LearningRateBounds``. Beyond α_c the simplified
    theory has no bound; then that of α = 0 is given.
    """
    names = [name for name, value in module.network_parameters().items() if value.requires_grad]
    trained_by_id = dict(zip(map(id, module.trained_parameters()), trained, strict=True))
    own = module.network_parameters()
    parameters = {name: trained_by_id[id(own[name])] for name in names}
    frozen = {name: value.detach() for name, value in own.items() if name not in parameters}

    def loss(parameters: Parameters) -> Tensor:
        value: Tensor = module.environment_losses({**frozen, **parameters}, batch, "query")
        return value.mean()

    eigenvalues = hessian_eigenvalues(loss, parameters, k=min(2, sum(v.numel() for v in parameters.values()))).values
    if not bool(eigenvalues.isfinite().all()):
        return None
    theory = module.rate()
    if theory.kind is None:
        return None
    largest = eigenvalues.clamp(min=0)
    bounds = [float(critical_outer_lr(largest, rate, theory.kind, theory.steps)) for rate in (inner_lr, 0.0)]
    return next((bound for bound in bounds if 0 < bound < math.inf), None)


def tangent_kernel_rate(module: Tunable, environments: Environments) -> float | None:
    """``theory.network_adaptation_lr`` on the support sets; None where the kernel would be too large."""
    shared, adapted = _split(module)
    x, y = environments.support
    with torch.no_grad():
        rows = module.predict({**shared, **adapted}, x[0]).numel()
    if rows > MAX_ROWS:
        return None
    value = network_adaptation_lr(
        lambda parameters, inputs: module.predict({**shared, **parameters}, inputs), module.criterion, adapted, x, y
    )
    return float(value)


def _split(module: Tunable) -> tuple[Parameters, Parameters]:
    """The parameters that the inner loop leaves alone, and those that it adapts, detached."""
    parameters = {name: value.detach() for name, value in module.network_parameters().items()}
    names = module.inner_loop().adapted
    adapted = {name: parameters[name] for name in (parameters if names is None else names)}
    return {name: value for name, value in parameters.items() if name not in adapted}, adapted
