"""Few-shot episodes: which classes and which of their examples make up each, and their gathering into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gp.datamodules.episodes.augmentation import NumberedEpisodes
from lightning_gp.datamodules.episodes.datasets import SPLITS, EpisodeDataset
from lightning_gp.datamodules.episodes.draws import choose, uniforms
from lightning_gp.datamodules.episodes.mapped import packed, unpacked
from lightning_gp.environments import Environments

_AUGMENTATION = len(SPLITS)  # its random numbers are another stream than those of the splits


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
            :class:`~lightning_gp.datamodules.episodes.augmentation.NumberedEpisodes`.

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
        # A worker process that is not forked opens the memory-mapped file itself instead of being sent a copy of it.
        return {**self.__dict__, "data": self.data._replace(images=packed(self.data.images))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, data=state["data"]._replace(images=unpacked(state["data"].images)))

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

    def examples(self, rows: NDArray[np.int64]) -> Tensor:
        """The inputs in these rows of ``data.images``; the axes of ``rows``, then those of an example."""
        # `take` is faster than indexing with an array, and reads only these rows of a file.
        return torch.from_numpy(np.asarray(self.data.images.take(rows, axis=0)))

    def draw(self, indices: NDArray[np.int64]) -> Environments:
        """Support x (E, N·K, height, width[, 3]) uint8, y (E, N·K) int64; query likewise with Q for K."""
        _, images = self.choose(indices)

        def gather(rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
            rows = rows.reshape(len(indices), -1)
            y = np.tile(np.arange(self.ways).repeat(rows.shape[1] // self.ways), (len(rows), 1))
            return self.examples(rows), torch.from_numpy(y)

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
