"""Means over episodes and over examples; sums are float64 and added over processes: any split gives the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class _Sums(Metric):
    """Sums that are kept in float64 and added over processes."""

    full_state_update = False
    names: tuple[str, ...] = ("count", "total")
    count: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.names:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """The mean, () or (*shape)."""
        mean: Tensor = self.total / self.count
        return mean


class EpisodeMean(_Sums):
    """Mean of a number over episodes."""

    def update(self, values: Tensor) -> None:
        """Adds the values of some episodes, (E,)."""
        self.count += values.numel()
        self.total += values.detach().to(self.total.dtype).sum()


class EpisodeInterval(EpisodeMean):
    """Half-width of the 95 % confidence interval of a mean over episodes, 1.96 · s / √n; NaN for a single one."""

    names = ("count", "total", "squares")
    squares: Tensor

    def update(self, values: Tensor) -> None:
        """Adds the values of some episodes, (E,)."""
        super().update(values)
        self.squares += values.detach().to(self.squares.dtype).square().sum()

    def compute(self) -> Tensor:
        """The half-width, ()."""
        mean = self.total / self.count
        variance = (self.squares - self.count * mean.square()).clamp(min=0) / (self.count - 1)
        half_width: Tensor = 1.96 * (variance / self.count).sqrt()
        return half_width


class ExampleMean(_Sums):
    """Mean over examples of a number, or of several, known batch by batch."""

    def update(self, mean: Tensor, examples: int) -> None:
        """Adds the mean over some ``examples``, (1, *shape)."""
        self.total = self.total + mean.detach().squeeze(0).to(self.total.dtype) * examples
        self.count += examples
