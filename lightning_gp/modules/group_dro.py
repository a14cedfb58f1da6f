"""Distributionally robust optimisation over environments.

Source:
    [S20] S. Sagawa et al. (2020), Distributionally robust neural networks for group shifts.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.functional.weightings import group_dro_weights
from lightning_gp.modules.erm import ERM
from lightning_gp.types import ModuleOptions


class GroupDRO(ERM):
    """Σ_τ w_τ L_τ(θ), w ∝ exp(η L_τ) held constant: the gradient of (1/η) log mean_τ exp(η L_τ), a soft worst case.

    The weights are those of the losses at hand, so that a step depends on its batch alone; [S20]'s also remember the
    losses of earlier steps. η = 0 is ``ERM``, a large η the worst environment alone. The same weights on any other
    algorithm: ``weighting="group_dro"``.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        eta: η ≥ 0.
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler`` of ``EnvironmentModule``.

    Raises:
        ValueError: if η is negative.

    Example:
        >>> from lightning_gp import Environments
        >>> module = GroupDRO(nn.Linear(3, 1), eta=2.0, criterion=nn.functional.mse_loss)
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.ones(2, 5, 1)))).shape
        torch.Size([])
    """

    keys = ERM.keys
    handles = ("episodes", "shares")
    couples_environments = True

    def __init__(self, network: nn.Module, eta: float = 1.0, **kwargs: Unpack[ModuleOptions]) -> None:
        super().__init__(network, **kwargs)
        checks.number(minimum=0, eta=eta)
        self.save_hyperparameters()
        self.eta = eta
        self.weighting = partial(group_dro_weights, eta=eta)

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds ``objective``, whose mean is the weighted loss."""
        weights = torch.softmax(self.eta * values["loss"], 0)
        return {**values, "objective": len(weights) * weights * values["loss"]}
