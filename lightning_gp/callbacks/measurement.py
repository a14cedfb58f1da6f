"""What a probe works with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_gp.callbacks.isolation import random_state, set_random_state
from lightning_gp.callbacks.losses import AnyLoss, Skipped
from lightning_gp.callbacks.probe_batch import ProbeBatch
from lightning_gp.callbacks.shards import Parts, spread
from lightning_gp.functional.processes import Ranks
from lightning_gp.types import Split

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
        shares: of each piece, the part of its examples that this process holds; 1 unless the module ``shares_examples``
            of the same environments with other processes.
        again: puts back what a piece has changed, so that the next begins with the same state; random numbers go on.
    """

    loss: AnyLoss
    pieces: list[Any]
    counts: list[int]
    total: float
    ranks: Ranks
    shares: list[float]
    again: Callable[[], None]

    def replay(self) -> Callable[[], None]:
        """What makes code run as it would run now, whenever it is called: from the same state and random numbers."""
        device = self.loss.module.device
        random = random_state(device)

        def begin() -> None:
            self.again()
            set_random_state(device, random)

        return begin

    @classmethod
    def of(cls, loss: AnyLoss, batch: ProbeBatch, ranks: Ranks, again: Callable[[], None]) -> Measurement:
        """Cuts a probe batch into pieces and counts them over all processes."""
        kept = zip(batch.batches, batch.indices, strict=True)
        return cls.of_pieces(loss, [piece for each, index in kept for piece in loss.pieces(each, index)], ranks, again)

    @classmethod
    def of_pieces(cls, loss: AnyLoss, pieces: list[Any], ranks: Ranks, again: Callable[[], None]) -> Measurement:
        """Counts pieces over all processes."""
        counts = [loss.count(piece) for piece in pieces]
        if spread(loss.module):
            check_as_many(ranks, len(pieces))
        shares = [1.0] * len(pieces)
        if loss.shares_examples and ranks.world > 1:
            sizes = [float(piece.split("query")[1].shape[1]) for piece in pieces]
            shares = [size / total for size, total in zip(sizes, ranks.totals(*sizes), strict=True)]
        return cls(loss, pieces, counts, ranks.totals(sum(counts))[0], ranks, shares, again)

    @property
    def shared(self) -> bool:
        """Whether every process has the same environments, and of each a part of the examples only."""
        return any(share != 1 for share in self.shares)

    @property
    def spread(self) -> bool:
        """Whether every process has a part of each parameter only, and gradients are ``Parts``."""
        return spread(self.loss.module)

    def mean_loss(self, parameters: dict[str, Tensor], training: bool = False, split: Split = "query") -> Tensor:
        """This process's share of the mean loss: the sum over processes is the mean over all environments.

        Args:
            parameters: θ, (*shape).
            training: the objective in place of the loss.
            split: whose loss.
        """
        loss = self.loss.objectives if training else partial(self.loss.losses, split=split)
        parts, kept = [], 0
        for piece, weight, count in zip(self.pieces, self._weights(training), self.counts, strict=True):
            with suppress(Skipped):
                parts.append(loss(parameters, piece).mean() * weight)
                kept += count
        total = torch.stack(parts).sum() if parts else torch.stack([p.sum() * 0 for p in parameters.values()]).sum()
        return total if self.loss.by_environment else total * (self.total / self._kept(kept))

    def _kept(self, count: float) -> float:
        """How much of the probe batch the module has not passed over, in all processes."""
        (kept,) = self.ranks.totals(count)
        if not kept:
            raise Skipped
        return kept

    def _weights(self, training: bool) -> list[float]:
        """Of each piece; objectives of shared environments are those of all processes' examples already."""
        if training or not self.shared:
            return [count / self.total for count in self.counts]
        own = sum(self.counts)
        return [share * count / own for share, count in zip(self.shares, self.counts, strict=True)]

    def mean_over_environments(self, values: Tensor) -> float:
        """The mean over the environments of all processes of numbers (E,), one per environment of this process."""
        values = values.detach().to(self.ranks.dtype)
        total, count = self.ranks.totals(values.sum(), values.numel())
        return total / count

    def all_environments(self, rows: Tensor) -> Tensor:
        """The rows (E, ...), one per environment of this process, of the environments of all processes.

        Of what is made from ``gradients``, which gives those of all processes where these share parameters or examples.
        """
        return rows if self.shared or self.spread else self.ranks.concatenate(rows)

    def gradients(self, split: Split = "query") -> Iterator[dict[str, Tensor]]:
        """Stacks (E, *shape) of this process's environments, piece by piece; of shared ones over all their examples.

        A scalar loss has no environments: its one stack (1, *shape) is the mean gradient over all processes. Of sharded
        parameters stacks are ``Parts``, of the environments of all processes.
        """
        parameters = self.loss.parameters()
        mean: dict[str, Tensor] = {}
        kept = 0
        for piece, count, share in zip(self.pieces, self.counts, self.shares, strict=True):
            try:
                stack = self.loss.gradients(parameters, piece, split)
            except Skipped:
                continue
            finally:
                if self.loss.live:
                    self.again()
            if self.shared:
                stack = {name: self.ranks.sum(share * value) for name, value in stack.items()}
            if not self.loss.scalar:
                yield stack
                continue
            kept += count
            weight = 1 if self.spread else count  # shards are weighted before they are summed
            mean = {name: weight * value + mean.get(name, 0.0) for name, value in stack.items()}
        if self.loss.scalar:
            total = self._kept(kept)
            mean = mean or {name: torch.zeros_like(value).unsqueeze(0) for name, value in parameters.items()}
            if self.spread:
                yield Parts({name: value / total for name, value in mean.items()})
            else:
                yield {name: self.ranks.sum(value / total) for name, value in mean.items()}


def check_as_many(ranks: Ranks, pieces: int) -> None:
    """Refuses, under shards, processes that would run the module a different number of times and wait for each other.

    Args:
        ranks: all of them.
        pieces: forward passes of this process.
    """
    number, squares = ranks.totals(pieces, pieces**2)
    if number**2 != squares * ranks.world:
        raise ValueError(
            "Sharded parameters are gathered for every forward pass, so that all processes need equally many batches "
            f"in their parts of the probe batch; here it is {pieces}, elsewhere another number. Leave probe_size=None "
            "(one whole batch)."
        )
