"""Few-shot episodes of data at hand: any dataset whose items are (image, label), or arrays.

This module stands above episodes and images, so it is here that ``FewShotDataModule`` learns to make them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gp.checks import whole
from lightning_gp.datamodules.episodes.class_splits import check_fractions, random_splits
from lightning_gp.datamodules.episodes.datasets import SPLITS
from lightning_gp.datamodules.episodes.few_shot import _CONSTRUCTORS, FewShotDataModule
from lightning_gp.datamodules.episodes.tensors import TensorDataModule
from lightning_gp.datamodules.images.classes import ImageClassDataModule
from lightning_gp.datamodules.images.sources.dataset_source import DatasetSource
from lightning_gp.datamodules.images.sources.image_source import Decoding, ImageSource


class LabelledDataModule(ImageClassDataModule):
    """Few-shot episodes of a labelled dataset; see :meth:`FewShotDataModule.from_dataset`.

    The dataset's classes become those of the splits, so they must not be split by image: give the whole dataset (or
    a dict of datasets with classes of their own). Its items are read once, into the cache. Of what a dataset is made of
    nothing is known in general, so the cache is keyed by its type, length, labels, 16 of its images and, if it lists
    them (``samples``), its files' sizes and times. After changing other images in place, delete the cache.

    Args:
        dataset: map-style, items (image, label): the image a PIL image, a uint8 array or tensor (height, width[, 3]) or
            (1 or 3, height, width), or a floating-point one in [0, 1]; the label an integer. Or a dict of three such
            datasets, ``"train"``, ``"val"`` and ``"test"``. Give it no random transform and no normalisation: those
            are arguments here.
        split: class names (or labels) of ``"train"``, ``"val"`` and ``"test"``; None shares them out at random.
        fractions: of the classes in each split, if ``split`` is None.
        split_seed: of the random split. Apart from ``seed``: other episodes do not mean other test classes.
        class_names: of the labels 0, 1, …; None takes the dataset's own ``classes``, else the numbers.
        image_size: side in pixels; None takes the first image's.
        cache_dir: folder of the cache; default is the environment variable ``LIGHTNING_GP_CACHE``, else the dataset's
            ``root``, else the user's cache folder.
        exif: whether the orientation that a camera noted is applied.
        kwargs: see :class:`ImageClassDataModule`, ``root`` apart.

    Raises:
        TypeError: if the dataset has no length or its items are not (image, label).
        ValueError: if an image cannot be used, or the splits do not fit the classes.
    """

    cache_name = "labelled"
    unsaved = ("dataset",)  # checkpoints hold no data

    def __init__(
        self,
        dataset: Any,
        split: Mapping[str, Sequence[str | int]] | None = None,
        fractions: tuple[float, float, float] = (0.64, 0.16, 0.2),
        split_seed: int = 0,
        class_names: Sequence[str] | None = None,
        image_size: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        exif: bool = True,
        **kwargs: Any,
    ) -> None:
        parts: dict[str, Any] = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
        if isinstance(dataset, Mapping) and set(parts) != set(SPLITS):
            raise ValueError(f"dataset has the keys {sorted(parts)}; a dict must have {', '.join(SPLITS)}.")
        check_fractions(fractions)
        whole(0, split_seed=split_seed)
        self.source = DatasetSource(parts, class_names, exif)
        first = self.source.pixels(next(iter(parts)), 0, exif)
        _check_sides(first.shape[:2], parts[next(iter(parts))][0][0], image_size)
        super().__init__(
            getattr(next(iter(parts.values())), "root", None) or Path("/"),
            image_size=min(first.shape[:2]) if image_size is None else image_size,
            cache_dir=cache_dir,
            exif=exif,
            **kwargs,
        )
        self.grey = self.source.grey
        self.by_split = isinstance(dataset, Mapping)
        self.split, self.fractions, self.split_seed = split, fractions, split_seed

    def find_source(self) -> ImageSource:
        """The dataset."""
        return self.source

    def decoding(self) -> Decoding:
        """Grey if the first image is."""
        return Decoding(self.image_size, self.crop, self.grey, exif=self.exif)

    def class_splits(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """As given, or at random."""
        if self.by_split:
            return self.source.classes_of_parts()
        if self.split is None:
            return random_splits(classes, self.fractions, self.split_seed)
        return {split: [self.source.class_name(name) for name in names] for split, names in self.split.items()}


def _check_sides(sides: tuple[int, ...], image: Any, image_size: int | None) -> None:
    """Refuses an array without channels that is no square and may be a signal, unless its size as an image is given.

    Raises:
        ValueError: naming the shape.
    """
    axes = getattr(image, "ndim", 3)
    if image_size is None and ((axes == 2 and sides[0] != sides[1]) or max(sides) > 4 * min(sides)):
        raise ValueError(
            f"The first item has the shape {tuple(sides)}: if it is an image, say with image_size=… what square it "
            "becomes; FewShotDataModule.from_tensors takes signals whole."
        )


_CONSTRUCTORS.update(from_dataset=LabelledDataModule, from_tensors=TensorDataModule)
__all__ = ["FewShotDataModule", "LabelledDataModule", "TensorDataModule"]
