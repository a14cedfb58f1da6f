"""Episodes as items of a map-style dataset, and the sampler that walks them.

Item *i* is the episode determined by (seed, split, i) alone, so that the same run on one or many devices, with any
number of workers, sees the same episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lightning_gp.checks import whole
from lightning_gp.datamodules.episodes.draws import uniforms
from lightning_gp.datamodules.loader import ResumableSampler
from lightning_gp.environments import Environments

SPLITS = ("train", "val", "test")


class EpisodeDataset(Dataset[Environments]):
    """Base of all episode datasets: subclasses turn episode numbers into one stacked batch.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; episodes of different splits are independent.
        length: the number of episodes in one pass. Larger indices are episodes, too: later epochs use them.
        seed: decides, with the split and the index, which episode an item is.

    Raises:
        ValueError: if the split is unknown.
    """

    def __init__(self, split: str, length: int, seed: int) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}.")
        whole(1, length=length)
        whole(0, seed=seed)
        self.split = split
        self.length = length
        self.seed = seed

    def draw(self, indices: NDArray[np.int64]) -> Environments:
        """The episodes ``indices`` (E,), stacked. To be written by subclasses with :meth:`uniforms` as randomness."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(indices).")

    def uniforms(self, indices: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """(E, count) numbers in [0, 1) that depend on (seed, split, index) alone."""
        return uniforms(self.seed, SPLITS.index(self.split), indices, count)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Environments:
        # torch's DataLoader calls this with all indices of a batch; the collate function then has nothing to do.
        return self.draw(np.asarray(indices, dtype=np.int64))

    def __getitem__(self, index: int) -> Environments:
        batch = self.__getitems__([index])
        (xs, ys), query = batch.support, batch.query
        return Environments((xs[0], ys[0]), None if query is None else (query[0][0], query[1][0]))


class EpisodeSampler(ResumableSampler):
    """Walks episode numbers in order: epoch e of training is [e·n, (e+1)·n), evaluation is always [0, n).

    Rank r of R takes every R-th number, so that with batches of B / R per rank, the ranks' batches of step t together
    are the batch of B that one process would draw at step t.

    Args:
        episodes: n, the number of episodes in an epoch, over all ranks; divisible by ``num_replicas``.
        fresh: whether each epoch brings new episodes (training) or the same ones (evaluation).
        num_replicas: R, number of processes that share the episodes.
        rank: r, of this process.

    Raises:
        ValueError: if the episodes cannot be shared equally.

    Example:
        >>> sampler = EpisodeSampler(4, fresh=True, num_replicas=2, rank=1)
        >>> list(sampler)
        [1, 3]
        >>> sampler.set_epoch(1)
        >>> list(sampler)
        [5, 7]
    """

    def __init__(self, episodes: int, fresh: bool, num_replicas: int = 1, rank: int = 0) -> None:
        whole(1, episodes=episodes, num_replicas=num_replicas)
        whole(0, rank=rank)
        if rank >= num_replicas:
            raise ValueError(f"rank={rank} must be below num_replicas={num_replicas}.")
        if episodes % num_replicas:
            raise ValueError(
                f"{episodes} episodes cannot be shared equally by {num_replicas} devices; "
                f"use a multiple of {num_replicas}."
            )
        super().__init__(range(episodes), num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.episodes = episodes
        self.fresh = fresh

    def order(self) -> Iterable[int]:
        """This rank's episodes of the epoch."""
        start = self.epoch * self.episodes if self.fresh else 0
        return range(start + self.rank, start + self.episodes, self.num_replicas)
