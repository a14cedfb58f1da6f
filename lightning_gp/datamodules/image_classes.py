"""Few-shot episodes of any images that come in classes: sources in, a decoded cache between, episodes out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gp.datamodules.base import whole
from lightning_gp.datamodules.cache import cache_folder
from lightning_gp.datamodules.episodes import SPLITS, ClassImages
from lightning_gp.datamodules.few_shot import FewShotDataModule
from lightning_gp.datamodules.image_cache import cached_classes
from lightning_gp.datamodules.sources.image_source import Decoding, ImageSource


class ImageClassDataModule(FewShotDataModule):
    """Base of the image data sets.

    A new one says where its images are and which class belongs to which split::

        from lightning_gp.datamodules.sources import ImageSource, folder_source

        class Fungi(ImageClassDataModule):
            '''Few-shot episodes of mushrooms in ``root/<species>/*.jpg``.'''

            cache_name = "fungi"

            def find_source(self) -> ImageSource:
                return folder_source(self.root, depth=1)

            def class_splits(self, classes: Sequence[str]) -> dict[str, list[str]]:
                return {"train": [...], "val": [...], "test": [...]}

    The rest is here: all images are decoded once into a memory-mapped uint8 cache that every process and worker
    shares, and the episodes are gathered from it.

    Extension points:

    1. ``prepare_data()`` (optional, calls ``super``): downloads; one process per machine calls it.
    2. ``find_source()``: the images; called in every process, so it must be quick when the cache exists.
    3. ``class_splits(classes)``: the class names of each split, all among ``classes``, none in two splits.
    4. ``decoding()`` (optional): how an image becomes uint8.

    Args:
        root: folder of the data.
        ways: N, classes per episode.
        shots: K, support images per class.
        queries: Q, query images per class.
        environments_per_batch: E, over all devices.
        image_size: side in pixels.
        crop: False stretches images to the square, as is usual; True scales the shorter side and takes the centre.
        cache_dir: folder of the cache; default is the environment variable ``LIGHTNING_GP_CACHE``, else ``root``, else
            (``root`` being read-only) the user's cache folder.
        kwargs: see :class:`FewShotDataModule`.

    Raises:
        ValueError: if an argument is out of range, an image is broken, or the splits do not fit the classes.
        OSError: if images are missing, or the cache cannot be written.
    """

    cache_name = "images"

    def __init__(
        self,
        root: str | os.PathLike[str] = "data",
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        environments_per_batch: int = 4,
        image_size: int = 84,
        crop: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        whole(1, image_size=image_size)
        super().__init__(ways, shots, queries, environments_per_batch, **kwargs)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.crop = crop
        self.cache_dir = cache_dir
        self._images: ClassImages | None = None

    def find_source(self) -> ImageSource:
        """The images of all splits.

        Raises:
            FileNotFoundError: naming the folder, what should be in it and where to get it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define find_source().")

    def class_splits(self, classes: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Names of the classes of ``"train"``, ``"val"`` and ``"test"``, out of the source's ``classes``."""
        raise NotImplementedError(f"{type(self).__name__} must define class_splits(classes).")

    def decoding(self) -> Decoding:
        """Colour images of ``image_size``."""
        return Decoding(self.image_size, self.crop)

    def cache_path(self) -> Path:
        """Where caches of this data set go (the folder)."""
        return cache_folder(self.cache_dir, self.root)

    def prepare_data(self) -> None:
        """Builds the cache if there is none."""
        self.images()

    def images(self) -> ClassImages:
        """All images of all classes, memory-mapped."""
        if self._images is None:
            source, decoding = self.find_source(), self.decoding()
            self._images = cached_classes(source, decoding, self.cache_path(), self.cache_name, self.checked_splits)
        return self._images

    def checked_splits(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """The result of :meth:`class_splits`, if it fits the classes.

        Raises:
            ValueError: naming the split and the class that is wrong.
        """
        return checked_splits(self.class_splits(classes), classes, type(self).__name__)

    def load_split(self, split: str) -> ClassImages:
        """The classes of a split, in place in the cache."""
        images = self.images()
        return images.of(self.checked_splits(images.names)[split])


def checked_splits(splits: Mapping[str, Sequence[str]], classes: Sequence[str], owner: str) -> dict[str, list[str]]:
    """The splits, if each has classes, all exist and none is in two of them.

    Raises:
        ValueError: naming the split and the class that is wrong.
    """
    if set(splits) != set(SPLITS):
        raise ValueError(f"{owner}: the splits are {sorted(splits)}; they must be {', '.join(SPLITS)}.")
    known, taken = set(classes), dict[str, str]()
    for split in SPLITS:
        for name in splits[split]:
            if name not in known:
                raise ValueError(
                    f"{owner}: class {name!r} of the {split} split has no images; there are {len(classes)} classes, "
                    f"such as {list(classes)[:3]}. Add its images, or take it out of the split."
                )
            if name in taken:
                raise ValueError(
                    f"{owner}: class {name!r} is listed twice, in the splits {taken[name]} and {split}; "
                    "a class may be in one split only, and once."
                )
            taken[name] = split
    return {split: list(splits[split]) for split in SPLITS}


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuses what are no shares of a whole.

    Raises:
        ValueError: naming them.
    """
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(
            f"fractions={tuple(fractions)}; give three numbers above 0 that add up to 1: the shares of the classes "
            f"for {', '.join(SPLITS)}."
        )


def random_splits(classes: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Classes shared out at random; the same for the same names and seed on every machine.

    Args:
        classes: their names, in any order.
        fractions: of the classes in ``"train"``, ``"val"`` and ``"test"``.
        seed: of the choice.

    Raises:
        ValueError: if the fractions are no shares of a whole, or leave a split without a class.

    Example:
        >>> {split: len(names) for split, names in random_splits("abcdefghij", (0.6, 0.2, 0.2), seed=0).items()}
        {'train': 6, 'val': 2, 'test': 2}
    """
    check_fractions(fractions)
    bounds = [0, *(round(len(classes) * share) for share in np.cumsum(fractions))]
    sizes = dict(zip(SPLITS, np.diff(bounds).tolist(), strict=True))
    if min(sizes.values()) < 1:
        raise ValueError(f"fractions={tuple(fractions)} of {len(classes)} classes leave a split without any: {sizes}.")
    names = sorted(classes)
    order = np.random.RandomState(seed).permutation(len(names))  # its stream is frozen across numpy versions
    return {
        split: sorted(names[i] for i in order[start:stop])
        for split, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False)
    }
