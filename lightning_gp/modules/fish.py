"""Fish: steps from one environment to the next.

Source:
    [S22] Y. Shi et al. (2022), Gradient matching for domain generalization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp import checks
from lightning_gp.contracts import Rate
from lightning_gp.environments import Environments
from lightning_gp.functional.held_constant import recording_constants
from lightning_gp.functional.precomputed import precomputed
from lightning_gp.modules.aggregation import Aggregate, with_update
from lightning_gp.modules.named import NamedEnvironmentModule
from lightning_gp.types import ModuleOptions, Parameters


class Fish(NamedEnvironmentModule):
    """Descends along (θ − θ_E)/(αE), θ_{k+1} = θ_k − α ∇L_τ(k)(θ_k): first order, one step in each environment [S22].

    To first order in α it is the gradient of mean_τ L_τ minus a multiple of the inner products ⟨∇L_τ, ∇L_σ⟩, as the
    environments come in another order in each step. With gradient descent of rate β outside, a step is [S22]'s
    θ ← θ + ε(θ_E − θ), ε = β/(αE). α → 0 is ERM. The update is the gradient of no objective.

    Processes must share the examples of every environment (named data): a path through environments that others hold
    cannot be walked alone. Accumulated batches each walk from the same θ.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        inner_lr: α > 0.
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler`` of ``EnvironmentModule``.

    Raises:
        ValueError: if α is not above 0.

    Example:
        >>> module = Fish(nn.Linear(3, 1), inner_lr=0.1, criterion=nn.functional.mse_loss)
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.ones(2, 5, 1)))).shape
        torch.Size([])
    """

    keys = NamedEnvironmentModule.keys
    handles = ("shares",)
    couples_environments = True

    def __init__(self, network: nn.Module, inner_lr: float = 0.01, **kwargs: Unpack[ModuleOptions]) -> None:
        super().__init__(network, **kwargs)
        checks.number(above=0, inner_lr=inner_lr)
        self.save_hyperparameters()
        self.inner_lr = inner_lr

    def order(self, count: int) -> list[int]:
        """In which order this step goes through the environments: the same on all processes, and after a restart."""
        generator = torch.Generator().manual_seed(self.global_step)
        return torch.randperm(count, generator=generator).tolist()  # type: ignore[no-any-return]

    def walk(self, parameters: Parameters, environments: Sequence[Environments]) -> tuple[Tensor, Parameters]:
        """L_τ where the path meets environment τ, (E,), and the update; with a graph while it is recorded.

        Args:
            parameters: θ, (*shape).
            environments: one in each.
        """
        recording = recording_constants()
        trained = [name for name, value in self.network.named_parameters() if value.requires_grad]
        theta, losses = dict(parameters), list[Tensor]()
        total = {name: torch.zeros_like(parameters[name]) for name in trained}
        order = self.order(len(environments))
        for position in order:
            one = environments[position]
            if not recording:
                theta = {name: value.detach().requires_grad_(name in total) for name, value in theta.items()}
            with torch.enable_grad():
                loss = self.environment_losses(theta, one)
                found = torch.autograd.grad(
                    loss.sum(), [theta[name] for name in trained], create_graph=recording, materialize_grads=True
                )
            y = self.trained_examples(one)[1]
            gradients = {name: self.mean_over_examples(g, y) for name, g in zip(trained, found, strict=True)}
            losses.append(self.mean_over_examples(loss.detach(), y)[0])
            theta = {**theta, **{name: theta[name] - self.inner_lr * g for name, g in gradients.items()}}
            total = {name: total[name] + g for name, g in gradients.items()}
        places = sorted(range(len(order)), key=order.__getitem__)
        return torch.stack(losses)[places], {name: g / len(order) for name, g in total.items()}

    def environment_objectives(self, parameters: Parameters, environments: Environments) -> Tensor:
        """The losses on the path, (E,), as constants, whose mean has the update for its gradient."""
        losses, update = self.walk(parameters, list(environments.chunks(1)))
        trained = {name: parameters[name] for name in update}
        return with_update(losses, Aggregate(torch.full_like(losses, 1 / len(losses)), update), trained)

    def batch_terms(self, batches: Sequence[Environments]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss on the path, with the update for its gradient."""
        self._chunk_size = 1
        parameters = self.network_parameters()
        losses, update = self.walk(parameters, [one for each in batches for one in each.chunks(1)])
        loss = precomputed(losses.mean(), [parameters[name] for name in update], list(update.values()))
        return loss, {"loss": loss.detach()}

    def rate(self) -> Rate:
        """α; no theory of its effective curvature is known here."""

        def put(alpha: float) -> None:
            self.inner_lr = alpha

        return Rate("inner_lr", "inner rate α", lambda: (self.inner_lr,), put)
