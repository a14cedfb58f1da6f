"""The largest curvature of each environment's own loss, which the bounds of several environments need.

Source: S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning, Eq. 23-26:
α and β converge for every environment if they do for the largest eigenvalue of any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from lightning_gp.environments import Environments
from lightning_gp.functional.curvature import hessian_eigenvalues
from lightning_gp.types import Parameters


def environment_curvatures(
    losses: Callable[[Parameters, Environments], Tensor],
    parameters: Parameters,
    environments: Environments,
    names: Collection[str] | None = None,
    *,
    tol: float = 1e-2,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """λ_max of the Hessian of each environment's loss, by all parameters or by those that the inner loop adapts.

    Args:
        losses: ``losses(parameters, environments)``, (E,), such as ``module.environment_losses``.
        parameters: θ, (*shape); those that are not differentiated by are taken as constants.
        environments: measured one by one.
        names: of the parameters to differentiate by; None for all.
        tol: relative error allowed.
        reduce: applied to every flat vector, such as a sum over processes.

    Returns:
        (E,), float64; NaN where a loss or its derivatives are not finite.

    Example:
        >>> def losses(p, environments):
        ...     return (environments.support[0] * p["w"] ** 2).flatten(1).mean(1) / 2
        >>> x = torch.tensor([[2.0], [5.0]])
        >>> environment_curvatures(losses, {"w": torch.ones(1)}, Environments((x, x))).tolist()
        [2.0, 5.0]
    """
    chosen = set(parameters) if names is None else set(names)
    fixed = {name: value.detach() for name, value in parameters.items() if name not in chosen}
    varied = {name: value for name, value in parameters.items() if name in chosen}

    def largest(one: Environments) -> Tensor:
        def loss(theta: Parameters) -> Tensor:
            return losses({**fixed, **theta}, one).mean()

        return hessian_eigenvalues(loss, varied, k=1, tol=tol, reduce=reduce).values[0]

    return torch.stack([largest(one) for one in environments.chunks(1)])
