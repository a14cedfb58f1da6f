"""Fishr: gradient variances that are the same in all environments.

Source:
    [R22] A. Ramé, C. Dancette, M. Cord (2022), Fishr: invariant gradient variances for out-of-distribution
    generalization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp.contracts import Dealt
from lightning_gp.environments import Environments
from lightning_gp.functional.agreement import example_gradients
from lightning_gp.modules.dispersion import DispersionModule
from lightning_gp.networks.parts import named_submodule
from lightning_gp.types import ModuleOptions, Parameters


class Fishr(DispersionModule):
    """mean_τ R_τ(θ) + λ mean_τ ‖v_τ − mean_σ v_σ‖² [R22, Eq. 4], v_τ the variance of the gradients of the examples.

    Of each example the gradient by the last layer is taken, and of these, component by component, the variance (divisor
    K) over the examples of an environment. Its gradient by all parameters takes a double backward.

    The loss of an environment must be the mean of the losses of its examples, which the first batch is asked: layers
    that look at several examples (batch normalisation) and criteria that are no such mean are refused.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        penalty_weight: λ ≥ 0; see ``InvarianceModule``, as for all that follow.
        anneal_steps: steps with λ = 1 at the start.
        rescale_loss: divide the objective by λ where that is above 1.
        l2: weight of ‖θ‖².
        dealt: how data are dealt to processes.
        head: name of the last layer in the network, such as ``"head"``, or ``"2"`` of an ``nn.Sequential``.
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler``, ``vectorize`` of ``EnvironmentModule``.

    Raises:
        ValueError: if there is no such layer, or it is not trained; see ``InvarianceModule``.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> module = Fishr(network, penalty_weight=10.0, head="2", criterion=nn.functional.mse_loss)
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.ones(2, 5, 1)))).shape
        torch.Size([])
    """

    keys = DispersionModule.keys
    handles = ("episodes", "shares")

    def __init__(
        self,
        network: nn.Module,
        penalty_weight: float = 1.0,
        anneal_steps: int = 0,
        rescale_loss: bool = False,
        l2: float = 0.0,
        dealt: Dealt | None = None,
        head: str = "head",
        **kwargs: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(network, penalty_weight, anneal_steps, rescale_loss, l2, dealt, **kwargs)
        layer = named_submodule(network, head)
        self.head = [f"{head}.{name}" for name, value in layer.named_parameters() if value.requires_grad]
        if not self.head:
            raise ValueError(f"head={head!r}: {type(layer).__name__} has no trained parameter to take gradients by.")

    @property
    def second_order(self) -> bool:
        """Training differentiates the gradients of the examples."""
        return True

    def statistic(self, parameters: Parameters, environments: Environments) -> tuple[Tensor, Tensor]:
        """R_τ, (E,), and v_τ, (E, D)."""
        x, y = self.trained_examples(environments)
        found = [self._gradients(parameters, *one) for one in zip(x, y, strict=True)]
        losses, gradients = (torch.stack(column) for column in zip(*found, strict=True))
        return self.mean_over_examples(losses.mean(1), y), self.variance_over_examples(gradients, y)

    def _gradients(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return example_gradients(self.loss, parameters, self.head, (x, y))

    def measure(self, parameters: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Loss, accuracy, and two moments of the gradients, of which ``summarize`` makes the penalty."""
        gradients = self._gradients(parameters, x, y)[1].detach().double()
        moments = {"first": gradients.mean(0), "second": gradients.square().mean(0)}
        return {**super().measure(parameters, x, y), **moments}

    def measured(self, values: dict[str, Tensor]) -> Tensor:
        """The variances, (E, D)."""
        return values.pop("second") - values.pop("first").square()

    def _try_out(self, batches: Sequence[Environments]) -> None:
        super()._try_out(batches)
        parameters = self.network_parameters()
        # Lightning evaluates in inference mode, whose tensors no graph takes.
        x, y = (each[0].clone() for each in self.trained_examples(batches[0]))
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            whole = self.loss(parameters, x, y).detach()
            try:
                mean = self._gradients(parameters, x, y)[0].mean().detach()
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"Fishr needs the gradient of each example, which {type(self.network).__name__} cannot be computed "
                    f"for ({str(error).splitlines()[0][:120]}). Use IGA, which needs those of environments."
                ) from error
        if not torch.allclose(whole, mean, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"Fishr needs the loss of each example: the mean of theirs is {mean:.6g}, but the loss of the "
                f"environment {whole:.6g}. Take out layers that look at several examples (batch normalisation) or that "
                "are random (dropout), and use a criterion that is a plain mean over examples."
            )
