"""Few-shot image classification: what Omniglot, mini-ImageNet and any folder of classes share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_gp._lightning import pl
from lightning_gp.checks import flag, optional_whole, whole
from lightning_gp.datamodules.episodes.augmentation import (
    NUMBERS,
    Augmentation,
    NumberedEpisodes,
    augmented,
    normalized,
)
from lightning_gp.datamodules.episodes.base import EpisodeDataModule
from lightning_gp.datamodules.episodes.class_episodes import ClassImages, FewShotEpisodes
from lightning_gp.environments import Environments
from lightning_gp.types import Examples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

rank_zero_info = pl.utilities.rank_zero_info
_CONSTRUCTORS: dict[str, Callable[..., FewShotDataModule]] = {}
"""What makes a data module of data at hand; ``lightning_gp.datamodules.labelled``, which knows images, fills it."""


def to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (E, K, height, width[, 3]) → floating point (E, K, channels, height, width) in [0, 1]."""
    channels_first = x.unsqueeze(2) if x.ndim == 4 else x.movedim(-1, 2).contiguous()
    return channels_first.to(dtype).div_(255)


class FewShotDataModule(EpisodeDataModule):
    """N-way K-shot Q-query episodes; a subclass defines :meth:`load_split` (and maybe ``prepare_data``).

    A batch leaves the loader as uint8, and is turned into floating point in [0, 1] on the device: support
    x (E, N·K, channels, height, width), y (E, N·K) in 0 … N − 1; query likewise with Q for K. There, too, training
    images are augmented (support and query alike, in ways that seed and episode determine) and all are normalised.

    Args:
        ways: N, classes per episode, at least 2.
        shots: K, support images per class.
        queries: Q, query images per class.
        environments_per_batch: E, over all devices.
        random_crop: training images are shifted by up to this many pixels each way, black coming in.
        random_resized_crop: smallest share of a training image that is cut out and scaled to its size; 0 for none.
        horizontal_flip: whether every other training image is mirrored.
        color_jitter: s; brightness, contrast and saturation of training images are scaled by 1 − s … 1 + s.
        mean: of each channel, subtracted from the images of all splits, in units of [0, 1].
        std: of each channel; the images of all splits are divided by it.
        min_images: classes with fewer images are left out of their split, and said to be; None keeps all, and a class
            with fewer than ``shots + queries`` is then an error. Which class is in which split does not depend on it.
        kwargs: see :class:`EpisodeDataModule`.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if an argument is out of range; in ``setup``, if there are too few classes or images for it.
    """

    def __init__(
        self,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        environments_per_batch: int = 32,
        random_crop: int = 0,
        random_resized_crop: float = 0.0,
        horizontal_flip: bool = False,
        color_jitter: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_images: int | None = None,
        **kwargs: Any,
    ) -> None:
        whole(2, ways=ways)  # the loss of a single class is constant, and its gradient zero
        whole(1, shots=shots, queries=queries)
        optional_whole(1, min_images=min_images)
        flag(horizontal_flip=horizontal_flip)
        if (mean is None) != (std is None) or (mean and std and (len(mean) != len(std) or min(std) <= 0)):
            raise ValueError(
                f"mean={mean}, std={std}; give both, one number for each channel, std > 0, or neither (pixels then "
                "are in [0, 1])."
            )
        super().__init__(environments_per_batch=environments_per_batch, **kwargs)
        self.ways: int = ways
        self.shots, self.queries = shots, queries
        self.mean, self.std = mean, std
        self.min_images = min_images
        self.augmentation = Augmentation(random_crop, random_resized_crop, horizontal_flip, color_jitter).check()

    @staticmethod
    def from_dataset(dataset: Any, **arguments: Any) -> FewShotDataModule:
        """Episodes of any labelled map-style dataset of images, torchvision's or another.

        Args:
            dataset: items are (image, label); or a dict ``{"train": …, "val": …, "test": …}`` of such datasets that
                share no classes.
            arguments: see :class:`~lightning_gp.datamodules.LabelledDataModule`: ``ways``, ``shots``, ``queries``,
                which classes belong to which split (``split`` or ``fractions``), and more.

        Example::

            eurosat = torchvision.datasets.EuroSAT("data")
            data = FewShotDataModule.from_dataset(eurosat, ways=2, fractions=(0.5, 0.2, 0.3))
        """
        return _CONSTRUCTORS["from_dataset"](dataset, **arguments)

    @staticmethod
    def from_tensors(x: Any, y: Any, **arguments: Any) -> FewShotDataModule:
        """Episodes of vectors, sequences, signals, or whatever has one array for each example.

        Args:
            x: array or tensor (M, *shape); a memory-mapped one stays in its file.
            y: (M,), the integer label of each example, in any order.
            arguments: see :class:`~lightning_gp.datamodules.TensorDataModule`: ``ways``, ``shots``, ``queries``,
                ``split`` or ``fractions``, ``min_images``, and more.

        Example:
            >>> import torch
            >>> from lightning_gp.datamodules import FewShotDataModule
            >>> signals, labels = torch.randn(120, 2, 128), torch.arange(120) % 20
            >>> data = FewShotDataModule.from_tensors(signals, labels, ways=3, shots=1, queries=2)
            >>> data.setup("fit")
            >>> next(iter(data.train_dataloader())).support[0].shape
            torch.Size([32, 3, 2, 128])
        """
        return _CONSTRUCTORS["from_tensors"](x, y, **arguments)

    def load_split(self, split: str) -> ClassImages:
        """The images of ``"train"``, ``"val"`` or ``"test"``."""
        raise NotImplementedError(f"{type(self).__name__} must define load_split(split).")

    def make_episodes(self, split: str, length: int) -> FewShotEpisodes:
        """Episodes over the classes of ``split``."""
        numbers = NUMBERS if split == "train" and any(self.augmentation) else 0
        images = self.large_classes(split, self.load_split(split))
        self.augmentation.check(images.images.shape[1])
        return FewShotEpisodes(
            images, self.ways, self.shots, self.queries, split, length, self.seed, numbers_per_image=numbers
        )

    def large_classes(self, split: str, images: ClassImages) -> ClassImages:
        """The classes that have at least ``min_images``; says once how many there are without."""
        small = [] if self.min_images is None else np.flatnonzero(images.counts < self.min_images).tolist()
        if not small:
            return images
        first = min(small, key=lambda c: images.counts[c])
        rank_zero_info(
            f"{type(self).__name__}: {len(small)} of the {len(images.counts)} classes of the {split} split have fewer "
            f"than min_images={self.min_images} images and are left out, such as {images.names[first]!r} with "
            f"{images.counts[first]}."
        )
        left_out = {images.names[c] for c in small}
        return images.of([name for name in images.names if name not in left_out])

    def on_after_batch_transfer(self, batch: Environments | NumberedEpisodes, dataloader_idx: int) -> Environments:
        """uint8 → the floating-point type of the module's parameters (float32 without a trainer), augmented."""
        module = None if self.trainer is None else self.trainer.lightning_module
        parameters = () if module is None else module.parameters()
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
        return self.finished(batch, dtype)

    def finished(
        self, batch: Environments | NumberedEpisodes, dtype: torch.dtype = torch.float32, normalize: bool = True
    ) -> Environments:
        """The uint8 batch as floating point, augmented if it brings random numbers, and normalised."""
        exact = dtype if dtype.itemsize >= 4 else torch.float32  # half precision is for the network, not for resampling
        numbers = batch.numbers if isinstance(batch, NumberedEpisodes) else None
        shots = batch.support[0].shape[1]

        def finish(examples: Examples, own: Tensor | None) -> Examples:
            x = to_float(examples[0], exact)
            if own is not None:
                x = augmented(x, own, self.augmentation)
            if normalize and self.mean is not None and self.std is not None:
                x = normalized(x, self.mean, self.std)
            return x.to(dtype), examples[1]

        return Environments(
            finish(batch.support, None if numbers is None else numbers[:, :shots]),
            None if batch.query is None else finish(batch.query, None if numbers is None else numbers[:, shots:]),
        )

    def show_episode(self, split: str = "train", index: int = 0, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draws the support and query images of an episode, class by class, as the network sees them.

        Images are augmented, if they are in training, and not normalised.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            index: number of the episode.
            path: where to save the picture, if anywhere; the suffix says as what.

        Returns:
            A matplotlib figure.
        """
        from lightning_gp.datamodules.episodes.showing import draw_episode

        episodes = self.episodes(split)
        assert isinstance(episodes, FewShotEpisodes)
        whole(0, index=index)
        names = episodes.class_names(index)
        batch = self.finished(episodes.__getitems__([index]), normalize=False)
        figure = draw_episode(batch, names, f"{type(self).__name__}: {split} episode {index}")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure
