"""The batches that every cell of a map sees: the same ones, drawn once where memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_gp._lightning import LightningDataModule
from lightning_gp.checks import whole
from lightning_gp.environments import EnvironmentBatch, Environments, as_batches
from lightning_gp.trainability.recording import tensors_of

Data: TypeAlias = LightningDataModule | Environments | Sequence[EnvironmentBatch]
"""A DataModule (its training batches, epoch after epoch), one batch for all iterations, or batches that repeat."""
Batch: TypeAlias = list[Environments]

BUDGET = 2**29
"""Bytes of batches that are kept; what is beyond is drawn again for each cell."""


class BatchStream:
    """The training batches of one seed, from the first iteration on, as often as asked for.

    Args:
        data: see ``Data``.
        device: where the batches are wanted.
        budget: bytes of a DataModule's batches to keep, as they leave its loader (images as uint8).

    Raises:
        ValueError: if there is no batch.
        TypeError: if a batch is not of type ``Environments``, or there is no sequence of them.

    Example:
        >>> x = torch.zeros(2, 3, 1)
        >>> stream = BatchStream(Environments((x, x)))
        >>> len(list(stream.first(4)))
        4
    """

    def __init__(self, data: Data, device: torch.device | str = "cpu", budget: int = BUDGET) -> None:
        whole(0, budget=budget)
        self.device, self.budget = torch.device(device), budget
        self._kept: list[Batch] = []
        self._bytes = 0
        self._last: tuple[Batch, Batch] | None = None  # as drawn, and as moved
        self._module: LightningDataModule | None = None
        if isinstance(data, LightningDataModule):
            self._module = data
            data.prepare_data()
            data.setup("fit")
            return
        if not isinstance(data, (Environments, Sequence)):
            raise TypeError(
                f"Batches are a DataModule, Environments or a list of Environments, but got {type(data).__name__}."
            )
        batches = [data] if isinstance(data, Environments) else list(data)
        self._kept = [_moved(as_batches(batch), self.device) for batch in batches]
        if not self._kept:
            raise ValueError("There is no batch to train on; give at least one Environments.")

    def first(self, count: int) -> Iterator[Batch]:
        """The batches of iterations 0 … ``count`` − 1, each a list of stacked ``Environments``."""
        if self._module is None:
            yield from itertools.islice(itertools.cycle(self._kept), count)
            return
        kept = len(self._kept)
        for batch in self._kept[:count]:
            yield self._finished(batch)
        if count > kept:
            for drawn in itertools.islice(self._drawn(), kept, count):
                yield self._finished(self._new(drawn))

    def later(self, start: int) -> BatchStream:
        """The same batches from iteration ``start`` on; what is drawn is kept once for both.

        Args:
            start: of the first batch.
        """
        return _Later(self, start) if start else self

    def _new(self, drawn: Batch) -> Batch:
        """A batch behind those that are kept; kept as well, if there is room."""
        if self._last is None or not _same(self._last[0], drawn):  # a full batch is moved and counted once
            moved = _moved(drawn, self.device)
            self._bytes += sum(tensor.nbytes for tensor in tensors_of(moved))
            self._last = drawn, moved
        batch = self._last[1]
        if self._bytes <= self.budget:
            self._kept.append(batch)
        return batch

    def _drawn(self) -> Iterator[Batch]:
        """From the first iteration on, epoch after epoch."""
        assert self._module is not None
        loader = self._module.train_dataloader()
        for epoch in itertools.count():
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(epoch)
            empty = True
            for batch in loader:
                empty = False
                yield as_batches(batch)
            if empty:
                raise ValueError(f"{type(self._module).__name__} has no training batch.")

    def _finished(self, batch: Batch) -> Batch:
        assert self._module is not None
        return [self._module.on_after_batch_transfer(environments, 0) for environments in batch]


class _Later(BatchStream):
    def __init__(self, stream: BatchStream, start: int) -> None:
        self.device, self.stream, self.start = stream.device, stream, start

    def first(self, count: int) -> Iterator[Batch]:
        return itertools.islice(self.stream.first(self.start + count), self.start, None)


def _same(left: Batch, right: Batch) -> bool:
    pairs = itertools.zip_longest(tensors_of(left), tensors_of(right))
    return all(one is other for one, other in pairs)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)  # type: ignore[no-any-return]
