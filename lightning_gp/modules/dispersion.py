"""``DispersionModule``: the risk of each environment plus the variance, over environments, of something about them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gp.contracts import Key
from lightning_gp.environments import Environments
from lightning_gp.functional.processes import processes, sum_over_processes
from lightning_gp.modules.invariance import InvarianceModule
from lightning_gp.types import Parameters


class DispersionModule(InvarianceModule):
    """mean_τ R_τ(θ) + λ mean_τ ‖s_τ − mean_σ s_σ‖², s_τ a statistic of environment τ that subclasses define.

    All environments of a batch are computed at once: the penalty couples them. Arguments as for ``InvarianceModule``.

    {keys}
    """

    keys = (
        *InvarianceModule.keys,
        Key("<stage>/penalty", "[0, ∞)", "of the examples of the whole epoch, for named environments"),
    )

    couples_environments = True
    handles = ("episodes", "shares")

    @abstractmethod
    def statistic(self, parameters: Parameters, environments: Environments) -> tuple[Tensor, Tensor]:
        """R_τ, (E,), and s_τ, (E,) or (E, D), of all processes' examples, differentiable."""

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """``risk``, ``penalty`` and, where it has a weight, ``weight_decay`` of each environment, (E,)."""
        risks, statistics = self.statistic(parameters, environments)
        return self.terms(parameters, risks, self.squared_deviations(statistics))

    def squared_deviations(self, statistics: Tensor) -> Tensor:
        """‖s_τ − s̄‖², (E,), s̄ the mean over all environments, of all processes."""
        mean = sum_over_processes(statistics.sum(0)) / (len(statistics) * processes())
        squares = (statistics - mean).square()
        return squares if squares.ndim == 1 else squares.flatten(1).sum(1)

    def summarize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds ``penalty`` and ``objective``, of the statistic that ``measured`` finds in the means over examples."""
        statistics = self.measured(values)
        if not self.by_name:  # episodes: which of them meet in a batch is chance, and so would be their variance
            return values
        penalty = (statistics - statistics.mean(0)).square().reshape(len(statistics), -1).sum(1)
        return {**values, "penalty": penalty, "objective": values["loss"] + self.penalty_weight * penalty}

    def measured(self, values: dict[str, Tensor]) -> Tensor:
        """s_τ, (E,) or (E, D), from what ``measure`` gave; takes out what is not to be logged."""
        return values["loss"]

    def separate(self, parameters: Parameters, environments: Environments) -> Tensor:
        """What each environment has by itself, R_τ + ‖s_τ‖²."""
        risks, statistics = self.statistic(parameters, environments)
        return risks + statistics.reshape(len(risks), -1).square().sum(1)

    def batch_terms(self, batches: Sequence[Environments]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean objective and its terms, with all environments in one graph."""
        parameters = self.network_parameters()
        self.pieces(batches)  # says how many environments `unadapted` computes at once
        risks, statistics = zip(*(self.statistic(parameters, each) for each in batches), strict=True)
        terms = self.terms(parameters, torch.cat(risks), self.squared_deviations(torch.cat(statistics)))
        return self.combined(terms).mean(), {name: value.detach().mean() for name, value in terms.items()}
