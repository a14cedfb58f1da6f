"""Empirical risk minimisation, the baseline of meta-learning and of invariance alike.

Source:
    [T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient
    norm regularization perspective.
"""

from __future__ import annotations

from torch import Tensor

from lightning_gp.environments import Environments, examples_of
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.named import NamedEnvironmentModule
from lightning_gp.types import Parameters


class ERM(NamedEnvironmentModule):
    """Empirical risk minimisation over all environments, mean_τ L_τ(θ): the baseline of both MAML and IRM [T21].

    It is MAML with inner rate 0 and IRMv1 with penalty weight 0. Validation and test report each environment by name,
    as ``NamedEnvironmentModule`` does, where the data module has ``environment_names``; otherwise environments are
    episodes, and their mean is reported. Arguments as for ``EnvironmentModule``.
    """

    @property
    def by_name(self) -> bool:
        """Whether the data module names its environments."""
        return bool(getattr(getattr(self._trainer, "datamodule", None), "environment_names", None))

    @property
    def shares_examples(self) -> bool:
        """Named environments are shared by all processes; episodes are a process's own."""
        return self.by_name and super().shares_examples

    def environment_objectives(self, parameters: Parameters, environments: Environments) -> Tensor:
        """L_τ(θ) of each environment over all processes' examples, (E,)."""
        losses = self.environment_losses(parameters, environments)
        return self.mean_over_examples(losses, examples_of(environments, "query")[1])

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Loss and accuracy of each environment, (E,)."""
        return super().evaluate(environments) if self.by_name else EnvironmentModule.evaluate(self, environments)
