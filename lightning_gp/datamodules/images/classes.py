"""Few-shot episodes of any images that come in classes: sources in, a decoded cache between, episodes out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_gp.checks import flag, whole
from lightning_gp.datamodules.episodes.class_episodes import ClassImages
from lightning_gp.datamodules.episodes.class_splits import checked_splits
from lightning_gp.datamodules.episodes.few_shot import FewShotDataModule
from lightning_gp.datamodules.images.cache import cache_folder
from lightning_gp.datamodules.images.image_cache import cached_classes
from lightning_gp.datamodules.images.sources.image_source import Decoding, ImageSource


class ImageClassDataModule(FewShotDataModule):
    """Base of the image data sets.

    A new one says where its images are and which class belongs to which split::

        from lightning_gp.datamodules.images.sources import ImageSource, folder_source

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
        exif: whether the orientation that a camera noted is applied; part of the cache's key.
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
        exif: bool = True,
        **kwargs: Any,
    ) -> None:
        whole(1, image_size=image_size)
        flag(crop=crop, exif=exif)
        super().__init__(ways, shots, queries, environments_per_batch, **kwargs)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.crop, self.exif = crop, exif
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
        return Decoding(self.image_size, self.crop, exif=self.exif)

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
