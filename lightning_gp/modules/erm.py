"""Empirical risk minimisation, the baseline of meta-learning and of invariance alike.

Source:
    [T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient
    norm regularization perspective.
"""

from __future__ import annotations

from torch import Tensor

from lightning_gp.environments import Environments
from lightning_gp.modules.named import NamedEnvironmentModule
from lightning_gp.types import Parameters


class ERM(NamedEnvironmentModule):
    """Empirical risk minimisation over all environments, mean_τ L_τ(θ): the baseline of both MAML and IRM [T21].

    It is MAML with inner rate 0 and IRMv1 with penalty weight 0, and like them it trains on the query sets where there
    are any. Validation and test report each environment by name, as ``NamedEnvironmentModule`` does, where the data
    module has ``environment_names``; otherwise environments are episodes, and their mean is reported. Arguments as for
    ``EnvironmentModule``.
    """

    handles = ("episodes", "shares")

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """L_τ(θ) of each environment over all processes' examples, (E,)."""
        losses = self.environment_losses(parameters, environments)
        return {"loss": self.mean_over_examples(losses, self.trained_examples(environments)[1])}
