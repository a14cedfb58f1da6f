"""A DataLoader and its sampler that continue in the middle of an epoch, for episodes and named environments alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

Batch = TypeVar("Batch", covariant=True)


class ResumableSampler(DistributedSampler[int]):
    """A ``DistributedSampler`` whose next pass can leave out what has been seen.

    Lightning leaves those samplers alone; any other it wraps into a shuffle of its own, which would change what is in a
    batch.

    Attributes:
        skip: how many of this rank's items the next pass leaves out.
    """

    skip: int = 0

    def order(self) -> Iterable[int]:
        """This rank's items in the current epoch."""
        return super().__iter__()

    def __iter__(self) -> Iterator[int]:
        return islice(self.order(), self.skip, None)


class ResumableLoader(DataLoader[Batch]):
    """``DataLoader`` that Lightning can save and restore, so that a resumed run sees the batches that come next.

    The constructor is that of ``DataLoader``: Lightning may build the loader anew with a sampler of its own. Only a
    :class:`ResumableSampler` resumes.
    """

    _delivered = 0
    _resume: tuple[int, int] = (-1, 0)  # epoch, batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator starts with the first batch, not with `iter()`: Lightning calls that before it sets the epoch.
        self._delivered = 0
        if isinstance(self.sampler, ResumableSampler):
            epoch, batches = self._resume
            self._resume = (-1, 0)
            self._delivered = batches if epoch == self.sampler.epoch else 0
            self.sampler.skip = self._delivered * (self.batch_size or 1)
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and how many batches of it have been delivered."""
        epoch = self.sampler.epoch if isinstance(self.sampler, ResumableSampler) else 0
        return {"epoch": epoch, "batches": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues behind the saved batch if the next epoch asked for is the saved one."""
        self._resume = (state["epoch"], state["batches"] % max(1, len(self)))


def replicas_of(trainer: Any) -> dict[str, int]:
    """``num_replicas`` and ``rank`` for a sampler; one of one without a trainer."""
    shared: dict[str, int] | None = None if trainer is None else trainer.distributed_sampler_kwargs
    return {"num_replicas": 1, "rank": 0} if shared is None else shared


def as_it_is(batch: Any) -> Any:
    """A batch that its dataset has stacked already."""
    return batch
