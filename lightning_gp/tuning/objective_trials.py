"""Trials of an objective, by the engine of the maps: the same weights and batches, drawn once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from lightning_gp.modules.schedulers import with_rate
from lightning_gp.theory.optimizers import update_rule
from lightning_gp.trainability.engine import CellTrainer
from lightning_gp.trainability.stream import BatchStream
from lightning_gp.tuning.curvature import outer_bound
from lightning_gp.tuning.trials import DIVERGENCE, Trials
from lightning_gp.tuning.tunable import Tunable, only_optimizer


class ObjectiveTrials(Trials):
    """Runs short trainings of a copy of an objective with the module's own optimizer.

    Seed s trains on batches of its own, those that follow the batches of seed s − 1.

    Args:
        module: what is trained; it is changed, so give a copy.
        stream: the batches.
        iterations, progress, varies: see ``Trials``.
        seeds: of whatever is random in training.
    """

    def __init__(
        self,
        module: Tunable,
        stream: BatchStream,
        iterations: int,
        seeds: Sequence[int],
        progress: Callable[[str], None] | None = None,
        varies: bool = True,
    ) -> None:
        super().__init__(iterations, progress, varies)
        self.module, self.stream = module, stream
        self.optimizer = type(only_optimizer(module)).__name__
        self.trainers = [
            CellTrainer(module, stream.later(i * (iterations + 1)), self._build, DIVERGENCE, seed, varies)
            for i, seed in enumerate(seeds)
        ]

    def _build(self, parameters: list[nn.Parameter], outer_lr: float) -> torch.optim.Optimizer:
        return with_rate(only_optimizer(self.module), outer_lr)

    def first_loss(self, inner_lr: float) -> float:
        """As the engine has it."""
        return self.trainers[0].first_loss(inner_lr)

    def losses(self, inner_lr: float, outer_lr: float) -> Iterator[float | None]:
        """Afterwards the last trainer holds the trained weights, unless training diverged."""
        for trainer in self.trainers:
            late: list[float] = []

            def look(iteration: int, loss: float, late: list[float] = late) -> None:
                if iteration >= self.late_from:
                    late.append(loss)

            outcome = trainer(inner_lr, outer_lr, self.iterations, look)
            yield None if outcome.diverged else statistics.fmean(late)

    def bound(self, inner_lr: float, outer_lr: float) -> float | None:
        """By the curvature of the objective at the trained weights, on the first batch."""
        batch = next(self.stream.first(1))[0]
        adaptive = not update_rule(only_optimizer(self.module)).moves
        for _ in range(0 if adaptive else 4):
            if self(inner_lr, outer_lr) is not None:
                return outer_bound(self.module, self.trainers[-1].trained, batch)
            outer_lr /= 10
        return None
