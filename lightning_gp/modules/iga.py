"""Inter-environment gradient alignment.

Source:
    [K20] M. Koyama, S. Yamaguchi (2020), When is invariance useful in an out-of-distribution generalization problem?
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gp.environments import Environments
from lightning_gp.functional.agreement import differentiable_gradients
from lightning_gp.functional.stacks import as_rows
from lightning_gp.modules.dispersion import DispersionModule
from lightning_gp.types import Parameters


class IGA(DispersionModule):
    """mean_τ R_τ(θ) + λ mean_τ ‖∇R_τ(θ) − mean_σ ∇R_σ(θ)‖² [K20]: environments that pull the same way.

    The penalty is the trace of the covariance of the environments' gradients, by all trained parameters; its gradient
    takes a double backward. Arguments as for ``InvarianceModule``.

    {keys}

    Example:
        >>> module = IGA(torch.nn.Linear(3, 1), penalty_weight=10.0, criterion=torch.nn.functional.mse_loss)
        >>> module.training_loss(Environments((torch.zeros(2, 5, 3), torch.zeros(2, 5, 1)))).shape
        torch.Size([])
    """

    keys = DispersionModule.keys
    handles = ("episodes", "shares")

    @property
    def second_order(self) -> bool:
        """Training differentiates the gradients of the environments."""
        return True

    def statistic(self, parameters: Parameters, environments: Environments) -> tuple[Tensor, Tensor]:
        """R_τ, (E,), and ∇R_τ, (E, D)."""
        x, y = self.trained_examples(environments)
        size = self._chunk_size or len(x)
        found = [self._gradients(parameters, *part) for part in zip(x.split(size), y.split(size), strict=True)]
        risks, gradients = (torch.cat(column) for column in zip(*found, strict=True))
        return self.mean_over_examples(risks, y), self.mean_over_examples(gradients, y)

    def _gradients(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        risks, gradients = differentiable_gradients(self.loss, parameters, (x, y))
        trained = [name for name, value in self.network.named_parameters() if value.requires_grad]
        return risks, torch.cat([as_rows(gradients[name]) for name in trained], 1)

    def measure(self, parameters: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Loss, accuracy, and the gradient, of which ``summarize`` makes the penalty."""
        _, gradients = self._gradients(parameters, x.unsqueeze(0), y.unsqueeze(0))
        return {**super().measure(parameters, x, y), "gradient": gradients[0].detach()}

    def measured(self, values: dict[str, Tensor]) -> Tensor:
        """The gradients, (E, D)."""
        return values.pop("gradient")
