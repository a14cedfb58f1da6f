"""Reptile: towards the end of the inner loop, without a meta-gradient.

[N18] A. Nichol, J. Achiam, J. Schulman, "On first-order meta-learning algorithms", 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp.environments import Environments
from lightning_gp.functional.adaptation import difference, over_environments
from lightning_gp.functional.held_constant import prescribed
from lightning_gp.modules.inner_rates import InnerLR
from lightning_gp.modules.maml import MAML
from lightning_gp.types import InnerLoopOptions, Parameters


class Reptile(MAML):
    """The outer optimizer takes mean_τ (θ_0 − θ_S) for a gradient, θ_S the end of the inner loop [N18, Algorithm 2].

    With ``torch.optim.SGD`` of rate ε that is θ ← θ + ε mean_τ (θ_S − θ_0). Only support sets train; the query set, if
    there is one, gives the loss that is logged. The update is the gradient of no objective: with one inner step it is α
    times that of joint training, with more it draws gradients of one environment together [N18, section 5].

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``. All parameters that are not frozen are adapted.
        inner_lr: α, as in ``MAML``; with α = 0 nothing trains.
        inner_steps: S; 5 to 10 in [N18].
        **kwargs: of ``MAML``: ``inner_optimizer`` ([N18] takes Adam with ``betas=(0, 0.999)``), ``eval_inner_steps``,
            ``normalize``; and of ``EnvironmentModule``.

    Raises:
        ValueError: if an argument is out of range, or one that asks for a gradient through the inner loop is given.

    Example:
        >>> from lightning_gp.networks import SinusoidMLP
        >>> module = Reptile(SinusoidMLP(), inner_lr=0.01, criterion=nn.functional.mse_loss)
        >>> x = torch.zeros(3, 10, 1)
        >>> module.training_loss(Environments(support=(x, x))).shape
        torch.Size([])
    """

    def __init__(
        self, network: nn.Module, inner_lr: InnerLR = 0.01, inner_steps: int = 5, **kwargs: Unpack[InnerLoopOptions]
    ) -> None:
        super().__init__(network, inner_lr, inner_steps, first_order=True, **kwargs)
        refuse(self, "takes no gradient through the inner loop")
        if self.direction == "ascent":
            raise ValueError(
                "direction='ascent': θ_0 − θ_S leads away from where the inner loop goes, down the loss again; use "
                "MAML, whose query loss is taken where the ascent ends."
            )

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """L_τ^te(θ_S) of each environment, (E,), with the gradient θ_0 − θ_S."""
        trajectory = self.adaptation(self.loss, parameters, environments)
        start, end = trajectory.parameters[0], trajectory.parameters[-1]
        with torch.no_grad():
            losses: Tensor = over_environments(self.loss, end, trajectory.shared, *environments.split("query"))
        return {"loss": prescribed(losses, parameters, difference(start, end))}


def refuse(module: MAML, because: str) -> None:
    """Refuses arguments that have no effect on an update that is not the gradient of the query loss.

    Args:
        module: with its arguments.
        because: what the module does instead.

    Raises:
        ValueError: naming them.
    """
    given = {
        "learn_inner_lr": module.learns_rates,
        "multi_step_loss": module.multi_step_loss > 0,
        "recompute": module.recompute,
        "compile": module.compile_step,
    }
    found = ", ".join(name for name, present in given.items() if present)
    if found:
        raise ValueError(f"{type(module).__name__} {because}, so that {found} could do nothing; leave it out.")
