"""What the few-shot benchmarks share: an official list of classes per split, where to get the data, completeness."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from lightning_gp.datamodules.images.classes import ImageClassDataModule
from lightning_gp.datamodules.images.sources.archives import unpack
from lightning_gp.datamodules.images.sources.image_source import Check, ImageSource


def shipped_list(name: str) -> Any:
    """The content of ``splits/<name>.json``."""
    path = resources.files("lightning_gp.datamodules.images").joinpath(f"splits/{name}.json")
    return json.loads(path.read_text("utf-8"))


class BenchmarkDataModule(ImageClassDataModule):
    """Base of the data sets that come with an official class split.

    Extension points, beside those of :class:`ImageClassDataModule`:

    1. ``title``, ``instructions``: for messages; what to get from where and where to put it.
    2. ``split_list``: the file ``splits/<split_list>.json`` with the class names of each split; or
       ``official_classes()``, if there is more to it. ``class_splits`` if the names differ from those of the source.
    3. ``images_per_class`` or ``total_images``, if the data set has a known number of them.
    4. ``locate()``: the images, or None if there are none at all.
    5. ``archive``, ``folder``, ``remote()`` (optional): an archive that holds ``folder``, and where it can be fetched.

    Args:
        args: see :class:`~lightning_gp.datamodules.images.classes.ImageClassDataModule`.
        download: whether what is missing may be fetched, if anybody hands it out.
        kwargs: see ``ImageClassDataModule``.

    Raises:
        ValueError: if an argument is out of range, or the data are incomplete; the message names what is missing.
        FileNotFoundError: if there are no data; the message says where to get them.
    """

    title = ""
    instructions = ""
    split_list = ""
    images_per_class: int | None = None
    total_images: int | None = None
    archive: str | None = None
    folder: str = ""

    def __init__(self, *args: Any, download: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.classes = self.official_classes()
        self.download = download
        self._located: ImageSource | None = None
        for split, names in self.classes.items():
            if self.ways > len(names):
                raise ValueError(
                    f"ways={self.ways}, but the {split} split of {self.title} has {len(names)} classes; "
                    f"choose ways <= {len(names)}."
                )

    def official_classes(self) -> dict[str, list[str]]:
        """Class names of each split, as published."""
        classes: dict[str, list[str]] = shipped_list(self.split_list)
        return classes

    def locate(self) -> ImageSource | None:
        """The images, or None if there is no trace of the data set in ``root``."""
        raise NotImplementedError(f"{type(self).__name__} must define locate().")

    def remote(self) -> tuple[str, str] | None:
        """Address and MD5 checksum of ``archive``, or None if nobody may hand it out."""
        return None

    def class_splits(self, classes: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The official split."""
        return self.classes

    def find_source(self) -> ImageSource:
        """The images.

        Raises:
            FileNotFoundError: saying what to get from where, and where to put it.
        """
        source, self._located = self._located or self.locate(), None
        if source is None:
            raise FileNotFoundError(self._missing())
        return source

    def prepare_data(self) -> None:
        """Unpacks the archive, fetched if allowed, if that is what is there; builds the cache."""
        if self._images is None:
            self._located = self.locate()  # kept for find_source: looking at 60,000 files once is enough
            if self._located is None:
                self._unpack_archive()
        super().prepare_data()

    def completeness(self, origin: Path, names: Iterable[str] | None = None) -> Check:
        """The check of what is found in ``origin`` as a function that can be called later; ``names`` are expected."""
        expected = [name for split in self.classes.values() for name in split] if names is None else list(names)
        return partial(check_complete, f"{self.title} in {origin}", expected, self.images_per_class, self.total_images)

    def _unpack_archive(self) -> None:
        remote = self.remote()
        if self.archive is None or (self.download and remote is None):
            raise FileNotFoundError(self._missing())
        if self.download and remote is not None:
            fetch(*remote, self.root / self.archive)
        if not (self.root / self.archive).is_file():
            raise FileNotFoundError(self._missing())
        unpack(self.root / self.archive, self.root / self.folder, self.folder)

    def _missing(self) -> str:
        refused = "download=True cannot fetch it. " if self.download and self.remote() is None else ""
        return f"No {self.title} in {self.root.absolute()}. {refused}{self.instructions}"


def fetch(address: str, md5: str, path: Path) -> None:
    """Downloads a file, unless it is there; it gets its name when it is complete.

    Raises:
        OSError: naming the address, if it does not answer or hands out another file.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    if check_integrity(path, md5):
        return
    part = path.with_name(f"{path.name}.part")
    try:
        download_url(address, str(path.parent), part.name, md5)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # the latter: the checksum is another
        raise OSError(f"Cannot fetch {address} to {path} ({error}). Fetch it by hand, or try again later.") from error
    finally:
        part.unlink(missing_ok=True)


def check_complete(
    place: str, names: Sequence[str], per_class: int | None, total: int | None, counts: Mapping[str, int]
) -> None:
    """Refuses data sets that lack classes or images.

    Args:
        place: data set and folder, for the message.
        names: of the classes that there must be.
        per_class: images that each class must have, if known.
        total: images that all classes together must have, if known.
        counts: class name → number of images.

    Raises:
        ValueError: naming the class and its number of images.
    """
    missing = [name for name in names if not counts.get(name)]
    if missing:
        raise ValueError(
            f"{place} is incomplete: {len(missing)} of its {len(names)} classes have no images, among them "
            f"{missing[0]!r}. Copy the complete data set there."
        )
    for name, count in counts.items():
        if per_class is not None and count != per_class:
            raise ValueError(
                f"{place} is incomplete: class {name!r} has {count} images, it should have {per_class}. "
                "Copy the complete data set there."
            )
    found = sum(counts.values())
    if total is not None and found != total:
        least = min(counts, key=counts.__getitem__)
        raise ValueError(
            f"{place} is incomplete: it has {found} images in {len(counts)} classes, there should be {total} (the "
            f"smallest class found is {least!r} with {counts[least]}). Copy the complete data set there."
        )
