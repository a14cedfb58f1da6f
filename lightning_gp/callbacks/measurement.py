"""What a probe works with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_gp.callbacks.losses import ModuleLoss
from lightning_gp.callbacks.ranks import Ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Report:
    """What one measurement found: numbers and pictures by key; a picture is drawn only where a logger shows it."""

    values: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Callable[[], Figure]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """What ``Probe.measure`` works with.

    Attributes:
        loss: the module's losses as functions of its parameters.
        pieces: the probe batch of this process, in parts that are computed at once.
        counts: the weight (environments or examples) of each piece.
        total: the weight of all pieces of all processes.
        ranks: sums over processes.
    """

    loss: ModuleLoss
    pieces: list[Any]
    counts: list[int]
    total: float
    ranks: Ranks

    @classmethod
    def of(cls, loss: ModuleLoss, batches: list[Any], ranks: Ranks) -> Measurement:
        """Cuts batches into pieces and counts them over all processes."""
        pieces = [piece for batch in batches for piece in loss.pieces(batch)]
        counts = [loss.count(piece) for piece in pieces]
        return cls(loss, pieces, counts, ranks.totals(sum(counts))[0], ranks)

    def mean_loss(self, parameters: dict[str, Tensor], training: bool = False) -> Tensor:
        """This process's share of the mean loss: the sum over processes is the mean over all environments."""
        function = self.loss.objectives if training else self.loss.losses
        parts = [
            function(parameters, piece).mean() * (count / self.total)
            for piece, count in zip(self.pieces, self.counts, strict=True)
        ]
        return torch.stack(parts).sum()

    def mean_over_environments(self, values: Tensor) -> float:
        """The mean over the environments of all processes of numbers (E,), one per environment of this process."""
        values = values.detach().to(self.ranks.dtype)
        total, count = self.ranks.totals(values.sum(), values.numel())
        return total / count

    def gradients(self, split: str = "query") -> Iterator[dict[str, Tensor]]:
        """Stacks (E, *shape) of this process's environments, piece by piece.

        A scalar loss has no environments: its one stack (1, *shape) is the mean gradient over all processes.
        """
        parameters = self.loss.parameters()
        mean: dict[str, Tensor] = {}
        for piece, count in zip(self.pieces, self.counts, strict=True):
            stack = self.loss.gradients(parameters, piece, split)
            if not self.loss.scalar:
                yield stack
                continue
            weight = count / self.total
            mean = {name: weight * value + mean.get(name, 0.0) for name, value in stack.items()}
        if mean:
            yield {name: self.ranks.sum(value) for name, value in mean.items()}
