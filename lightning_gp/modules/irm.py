"""Invariant risk minimisation and its relatives: risks of several environments, and a penalty that couples them.

Sources:
    [A19] M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant risk minimization.
    [K21] D. Krueger et al. (2021), Out-of-distribution generalization via risk extrapolation (REx).
    [G21] I. Gulrajani, D. Lopez-Paz (2021), In search of lost domain generalization (DomainBed).
    [T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient
    norm regularization perspective.

**Which metric a checkpoint should watch.** None that needs the test environment: data modules of this package keep it
out of training and validation. Of the metrics of the training environments, ``val/loss`` and ``val/accuracy`` (also the
worst one's) prefer ERM by construction, because a spurious feature *does* help there; with such a selection IRM has
been found no better than ERM on colored MNIST [G21]. ``val/objective``, the risk plus the penalty at its full weight,
is what IRM itself wants small: watch that, on held-out examples of the training environments, or keep the last step. It
grows with the penalty weight: to choose between weights leave a training environment out (``leave_out`` of the data
modules) and watch ``val/loss``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_gp.contracts import Dealt, Key
from lightning_gp.environments import Environments
from lightning_gp.functional.penalties import halves, scale_gradient
from lightning_gp.modules.accuracy import accuracy
from lightning_gp.modules.dispersion import DispersionModule
from lightning_gp.modules.invariance import InvarianceModule
from lightning_gp.types import ModuleOptions, Parameters


class IRMv1(InvarianceModule):
    """IRMv1: mean_τ [ R_τ(θ) + λ (∂R_τ(w·f_θ)/∂w at w = 1)² ], w a scalar on the logits [A19, Eq. 4; T21, Eq. 11].

    The derivative has a closed form (``functional.scale_gradient``), so a step needs no double backward. With
    ``penalty_weight=0`` it is ERM.

    {keys}

    Args:
        network: the network; see ``EnvironmentModule``.
        penalty_weight: λ ≥ 0, named α in [T21]; see ``InvarianceModule``, as for all that follow.
        anneal_steps: steps with λ = 1 at the start; 190 in [A19]'s experiment.
        rescale_loss: divide the objective by λ where that is above 1, as [A19]'s experiment does.
        l2: weight of ‖θ‖².
        dealt: how data are dealt to processes.
        unbiased: estimate the penalty on mini-batches without bias, by two halves (``functional.irmv1_penalty``).
        **kwargs: ``criterion``, ``optimizer``, ``lr_scheduler``, ``vectorize`` of ``EnvironmentModule``.

    Raises:
        ValueError: if a number is negative, an option unknown, or a subclass overrides ``loss``.

    Example:
        >>> from lightning_gp import Environments
        >>> module = IRMv1(nn.Linear(3, 1), penalty_weight=10.0, criterion=nn.BCEWithLogitsLoss())
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.zeros(2, 5, 1)))).shape
        torch.Size([])
    """

    keys = (
        *InvarianceModule.keys,
        Key("<stage>/penalty", "[0, ∞)", "of the examples of the whole epoch in one mean"),
    )

    def __init__(
        self,
        network: nn.Module,
        penalty_weight: float = 1.0,
        anneal_steps: int = 0,
        rescale_loss: bool = False,
        l2: float = 0.0,
        dealt: Dealt | None = None,
        unbiased: bool = False,
        **kwargs: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(network, penalty_weight, anneal_steps, rescale_loss, l2, dealt, **kwargs)
        self.unbiased = unbiased

    handles = ("episodes", "shares")

    def penalties(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(∂R_τ/∂w)² of each environment, (E,), over all processes' examples."""
        pairs = [halves(z, y, self.unbiased) for z, y in zip(logits, targets, strict=True)]
        derivatives = []
        for half in range(2 if self.unbiased else 1):
            z, y = (torch.stack([pair[half][i] for pair in pairs]) for i in (0, 1))
            derivatives.append(self.mean_over_examples(self.each(self._scale_gradient, z, y), y))
        return derivatives[0] * derivatives[-1]

    def _scale_gradient(self, logits: Tensor, targets: Tensor) -> Tensor:
        return scale_gradient(logits, targets, self.criterion)

    def measure(self, parameters: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Loss, accuracy, and ``scale_gradient``, of which ``summarize`` makes the penalty."""
        loss, outputs = self.loss_and_outputs(parameters, x, y)
        values = {"loss": loss, **accuracy(outputs, y, self.criterion)}
        return {**values, "scale_gradient": self._scale_gradient(outputs, y)}

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds ``penalty`` and ``objective``: squared after averaging, so no batch size biases them."""
        penalty = values.pop("scale_gradient").square()
        return {**values, "penalty": penalty, "objective": values["loss"] + self.penalty_weight * penalty}


class REx(DispersionModule):
    """Variance risk extrapolation: mean_τ R_τ + λ Var_τ(R_τ), the variance with divisor E [K21, section 3.2].

    Arguments as for ``InvarianceModule``. All environments of a batch are computed at once: the penalty couples them.

    Example:
        >>> from lightning_gp import Environments
        >>> module = REx(nn.Linear(3, 1), penalty_weight=10.0, criterion=nn.functional.mse_loss)
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.zeros(2, 5, 1)))).shape
        torch.Size([])
    """

    handles = ("episodes", "shares")

    def statistic(self, parameters: Parameters, environments: Environments) -> tuple[Tensor, Tensor]:
        """The risks, twice."""
        risks = self.risks(*self.logits(parameters, environments))
        return risks, risks
