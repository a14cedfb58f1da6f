"""Mean and confidence interval over episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class EpisodeStatistics(Metric):
    """Mean of a number over episodes, and the half-width of its 95 % confidence interval, 1.96 · s / √n.

    Sums are kept in float64 and added over processes, so any split of the episodes gives the same numbers.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Adds the values of some episodes, (E,)."""
        values = values.detach().to(self.total.dtype)
        self.count += values.numel()
        self.total += values.sum()
        self.squares += values.square().sum()

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean and the half-width; the latter is NaN for a single episode."""
        mean = self.total / self.count
        variance = (self.squares - self.count * mean.square()).clamp(min=0) / (self.count - 1)
        return mean, 1.96 * (variance / self.count).sqrt()
