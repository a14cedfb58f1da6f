"""Empirical risk minimisation, the baseline of meta-learning and of invariance alike.

Source:
    [T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient
    norm regularization perspective.
"""

from __future__ import annotations

from torch import Tensor

from lightning_gp.environments import EnvironmentBatch, Environments
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.named import NamedEnvironmentModule


class ERM(NamedEnvironmentModule):
    """Empirical risk minimisation over all environments, mean_τ L_τ(θ): the baseline of both MAML and IRM [T21].

    It is MAML with inner rate 0 and IRMv1 with penalty weight 0. Validation and test report each environment by name,
    as ``NamedEnvironmentModule`` does, where the data module has ``environment_names``; otherwise environments are
    episodes, and their mean is reported. Arguments as for ``EnvironmentModule``.
    """

    @property
    def _named(self) -> bool:
        return bool(getattr(getattr(self._trainer, "datamodule", None), "environment_names", None))

    def evaluate(self, environments: Environments) -> dict[str, Tensor]:
        """Loss and accuracy of each environment, (E,)."""
        return super().evaluate(environments) if self._named else EnvironmentModule.evaluate(self, environments)

    def _evaluate_batch(self, batch: EnvironmentBatch) -> None:
        super()._evaluate_batch(batch) if self._named else EnvironmentModule._evaluate_batch(self, batch)

    def _log_statistics(self, stage: str) -> None:
        super()._log_statistics(stage) if self._named else EnvironmentModule._log_statistics(self, stage)
