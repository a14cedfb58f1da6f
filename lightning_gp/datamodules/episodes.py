"""Episodes as items of a map-style dataset, and the sampler that walks them.

Item *i* is the episode determined by (seed, split, i) alone, so that the same run on one or many devices, with any
number of workers, sees the same episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_gp.datamodules.augmentation import NumberedEpisodes
from lightning_gp.datamodules.cache import open_cache
from lightning_gp.datamodules.draws import choose, uniforms
from lightning_gp.environments import Environments

SPLITS = ("train", "val", "test")
_AUGMENTATION = len(SPLITS)  # its random numbers are another stream than those of the splits


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


class ClassImages(NamedTuple):
    """The images of some classes, each class's one after the other.

    Attributes:
        images: uint8, (M, height, width) for grey or (M, height, width, 3) for colour; may be memory-mapped.
        counts: (C,), the number of images of each class.
        names: of the C classes.
        starts: (C,), the row of ``images`` at which each class begins; None if classes follow on each other.
    """

    images: NDArray[np.uint8]
    counts: NDArray[np.int64]
    names: Sequence[str]
    starts: NDArray[np.int64] | None = None

    def first_rows(self) -> NDArray[np.int64]:
        """(C,), the row at which each class begins."""
        return np.cumsum(self.counts) - self.counts if self.starts is None else self.starts

    def of(self, names: Sequence[str]) -> ClassImages:
        """The classes ``names`` alone, in this order; their images stay where they are."""
        place = {name: i for i, name in enumerate(self.names)}
        chosen = np.array([place[name] for name in names], dtype=np.int64)
        return ClassImages(self.images, self.counts[chosen], list(names), self.first_rows()[chosen])


class FewShotEpisodes(EpisodeDataset):
    """N-way K-shot episodes of a set of classes.

    Classes are drawn without replacement and labelled 0 … N − 1 in the random order of the draw; a class's support
    and query images are drawn together without replacement, so they are disjoint.

    Args:
        data: the images of the split.
        ways: N, classes per episode.
        shots: K, support images per class.
        queries: Q, query images per class.
        split: see :class:`EpisodeDataset`, as are ``length`` and ``seed``.
        length: episodes in one pass.
        seed: of the episodes.
        numbers_per_image: how many random numbers for augmentation come with each image; with any, batches are
            :class:`~lightning_gp.datamodules.augmentation.NumberedEpisodes`.

    Raises:
        ValueError: if the split has fewer than ``ways`` classes or a class fewer than ``shots + queries`` images.
    """

    def __init__(
        self,
        data: ClassImages,
        ways: int,
        shots: int,
        queries: int,
        split: str,
        length: int,
        seed: int,
        numbers_per_image: int = 0,
    ) -> None:
        super().__init__(split, length, seed)
        if ways > len(data.counts):
            raise ValueError(
                f"ways={ways}, but the {split} split has {len(data.counts)} classes; choose ways <= {len(data.counts)}."
            )
        smallest = int(np.argmin(data.counts))
        if shots + queries > data.counts[smallest]:
            raise ValueError(
                f"shots + queries = {shots} + {queries} = {shots + queries}, but class {data.names[smallest]!r} of the "
                f"{split} split has {data.counts[smallest]} images; choose shots + queries <= {data.counts[smallest]}."
            )
        self.data = data
        self.ways, self.shots, self.queries = ways, shots, queries
        self.numbers_per_image = numbers_per_image
        self._starts = data.first_rows()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is not forked opens the memory-mapped cache itself instead of being sent a copy of it.
        images = self.data.images
        if isinstance(images, np.memmap) and isinstance(images.base, mmap):
            return {**self.__dict__, "data": self.data._replace(images=(images.filename, images.shape))}
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.data.images, tuple):
            path, shape = self.data.images
            images = open_cache(Path(path), shape)
            if images is None:
                raise FileNotFoundError(f"The image cache {path} is gone; build it again with prepare_data().")
            self.data = self.data._replace(images=images)

    def choose(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which classes (E, N) and which rows of ``data.images`` (E, N, K + Q) make up the episodes."""
        episodes, per_class = len(indices), self.shots + self.queries
        numbers = self.uniforms(indices, self.ways * (1 + per_class))
        classes = choose(numbers[:, : self.ways], len(self.data.counts))
        flat = classes.reshape(-1)
        images = choose(numbers[:, self.ways :].reshape(-1, per_class), self.data.counts[flat])
        images += self._starts[flat, None]
        return classes, images.reshape(episodes, self.ways, per_class)

    def class_names(self, index: int) -> list[str]:
        """Of the N classes of episode ``index``, in the order of their labels."""
        classes, _ = self.choose(np.array([index]))
        return [self.data.names[c] for c in classes[0]]

    def draw(self, indices: NDArray[np.int64]) -> Environments:
        """Support x (E, N·K, height, width[, 3]) uint8, y (E, N·K) int64; query likewise with Q for K."""
        _, images = self.choose(indices)

        def gather(rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
            rows = rows.reshape(len(indices), -1)
            x = self.data.images.take(rows, axis=0)  # faster than indexing with an array; reads only these rows
            y = np.tile(np.arange(self.ways).repeat(rows.shape[1] // self.ways), (len(rows), 1))
            return torch.from_numpy(np.asarray(x)), torch.from_numpy(y)

        return Environments(gather(images[:, :, : self.shots]), gather(images[:, :, self.shots :]))

    def __getitems__(self, indices: Sequence[int]) -> Environments:
        """The episodes, stacked; with their random numbers if they are to be augmented."""
        episodes = super().__getitems__(indices)
        if not self.numbers_per_image or episodes.query is None:
            return episodes
        count = self.ways * (self.shots + self.queries)
        numbers = uniforms(self.seed, _AUGMENTATION, np.asarray(indices, np.int64), count * self.numbers_per_image)
        shaped = torch.from_numpy(numbers.astype(np.float32)).view(len(indices), count, -1)
        return NumberedEpisodes(episodes.support, episodes.query, shaped)  # type: ignore[return-value]


class EpisodeSampler(DistributedSampler[int]):
    """Walks episode numbers in order: epoch e of training is [e·n, (e+1)·n), evaluation is always [0, n).

    Rank r of R takes every R-th number, so that with batches of B / R per rank, the ranks' batches of step t together
    are the batch of B that one process would draw at step t. It is a ``DistributedSampler`` because Lightning leaves
    those alone; any other sampler it wraps into a shuffle of its own, which would change what is in a batch.

    Args:
        episodes: n, the number of episodes in an epoch, over all ranks; divisible by ``num_replicas``.
        fresh: whether each epoch brings new episodes (training) or the same ones (evaluation).
        num_replicas: R, number of processes that share the episodes.
        rank: r, of this process.

    Attributes:
        skip: how many of this rank's episodes the next pass leaves out, to resume in the middle of an epoch.

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
        if episodes % num_replicas:
            raise ValueError(
                f"{episodes} episodes cannot be shared equally by {num_replicas} devices; "
                f"use a multiple of {num_replicas}."
            )
        super().__init__(range(episodes), num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.episodes = episodes
        self.fresh = fresh
        self.skip = 0

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.episodes if self.fresh else 0
        return iter(range(start + self.rank, start + self.episodes, self.num_replicas)[self.skip :])
