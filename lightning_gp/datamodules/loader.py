"""A DataLoader of episodes that continues in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from lightning_gp.datamodules.episodes import EpisodeSampler
from lightning_gp.environments import Environments


class EpisodeLoader(DataLoader[Environments]):
    """``DataLoader`` that Lightning can save and restore, so that a resumed run sees the episodes that come next.

    The constructor is that of ``DataLoader``: Lightning may build the loader anew with a sampler of its own.
    """

    _delivered = 0
    _resume: tuple[int, int] = (-1, 0)  # epoch, batches

    def __iter__(self) -> Iterator[Environments]:  # type: ignore[override]
        # A generator starts with the first batch, not with `iter()`: Lightning calls that before it sets the epoch.
        self._delivered = 0
        if isinstance(self.sampler, EpisodeSampler):
            epoch, batches = self._resume
            self._resume = (-1, 0)
            self._delivered = batches if epoch == self.sampler.epoch else 0
            self.sampler.skip = self._delivered * (self.batch_size or 1)
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and how many batches of it have been delivered."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "batches": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues behind the saved batch if the next epoch asked for is the saved one."""
        self._resume = (state["epoch"], state["batches"] % max(1, len(self)))
