"""The AND-mask: only what environments agree on is learned.

Source:
    [P21] G. Parascandolo et al. (2021), Learning explanations that are hard to vary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.functional.agreement import agreeing
from lightning_gp.modules.aggregation import Aggregate
from lightning_gp.modules.erm import ERM
from lightning_gp.types import ModuleOptions, Parameters


class ANDMask(ERM):
    """Descends along m ⊙ mean_τ ∇L_τ(θ), m = 1 where enough environments have gradients of one sign, else 0 [P21].

    The update is the gradient of no objective. It is made of the environments' gradients one after the other, each of
    which is kept; over processes it is that of all environments and examples.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        agreement: the share of environments whose signs must agree, in (0, 1]; [P21]'s τ is 2·agreement − 1.
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler`` of ``EnvironmentModule``.

    Raises:
        ValueError: if ``agreement`` is out of range.

    Example:
        >>> from lightning_gp import Environments
        >>> module = ANDMask(nn.Linear(3, 1), criterion=nn.functional.mse_loss)
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.ones(2, 5, 1)))).shape
        torch.Size([])
    """

    keys = ERM.keys
    handles = ("episodes", "shares")
    couples_environments = True

    def __init__(self, network: nn.Module, agreement: float = 1.0, **kwargs: Unpack[ModuleOptions]) -> None:
        super().__init__(network, **kwargs)
        checks.number(above=0, maximum=1, agreement=agreement)
        self.save_hyperparameters()
        self.agreement = agreement

    def aggregate(self, losses: Tensor, gradients: Parameters) -> Aggregate:
        """The masked mean."""
        update = {name: agreeing(value, self.agreement) * value.mean(0) for name, value in gradients.items()}
        return Aggregate(torch.full_like(losses, 1 / len(losses)), update)
