"""A module that trains on whatever it is given, and remembers what that was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gp._lightning import LightningModule
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches
from lightning_gp.types import Examples

Row = bytes
"""One example, inputs and targets."""
Environment = tuple[tuple[Row, ...], tuple[Row, ...]]
"""The support and query examples of one environment, in order."""


def rows_of(examples: Examples | None) -> tuple[Row, ...]:
    """The inputs of each example of one environment (1, K, ...) and its target, as bytes."""
    if examples is None:
        return ()
    x, y = (each[0].detach().cpu().contiguous() for each in examples)
    return tuple(a.numpy().tobytes() + b.numpy().tobytes() for a, b in zip(x, y, strict=True))


def inputs_of(examples: Examples | None) -> set[Row]:
    """The inputs alone of each example of all environments (E, K, ...)."""
    if examples is None:
        return set()
    return {row.contiguous().numpy().tobytes() for row in examples[0].detach().cpu().flatten(0, 1)}


def environments_of(batch: EnvironmentBatch) -> list[Environment]:
    """The single environments of a batch, in order."""
    singles = (one for each in as_batches(batch) for one in each.chunks(1))
    return [(rows_of(one.support), rows_of(one.query)) for one in singles]


def as_episodes(one: list[Environment], other: list[Environment]) -> list[Environment] | None:
    """What two processes see together, where each has whole environments of its own; in no order."""
    return sorted([*one, *other])


def as_shares(one: list[Environment], other: list[Environment]) -> list[Environment] | None:
    """What two processes see together, where each has a share of every environment; None if they differ in number."""
    others = other or [((), ())] * len(one)
    if len(one) != len(others):
        return None
    return [(tuple(sorted(a + c)), tuple(sorted(b + d))) for (a, b), (c, d) in zip(one, others, strict=True)]


def sizes_of(batch: list[Environment]) -> str:
    """How large a batch is, in words."""
    return f"{len(batch)} environments of {[len(support) + len(query) for support, query in batch]} examples"


class Recorder(LightningModule):
    """Keeps the environments of each training batch in ``seen``; its one weight does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[Environment]] = []

    def training_step(self, batch: EnvironmentBatch, batch_idx: int) -> Tensor:
        """Remembers the batch."""
        self.seen.append(environments_of(batch))
        return self.weight * 1.0

    def validation_step(self, batch: Environments, batch_idx: int) -> None:
        """Lets the validation data be loaded."""

    def configure_optimizers(self) -> Any:
        """Any will do."""
        return torch.optim.SGD(self.parameters(), lr=0.0)
