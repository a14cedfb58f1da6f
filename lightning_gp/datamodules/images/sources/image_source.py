"""Where images come from, and how they are decoded: the only thing a new data set has to say about its files.

A source knows its classes, reads one image at a time, and has a stamp that changes when its files do, so that the
decoded cache (:mod:`lightning_gp.datamodules.images.image_cache`) is built once for each state of the files.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.images.sources.class_tree import (
    IMAGE_SUFFIXES,
    ClassTree,
    ImageReader,
    scan_folder,
    scan_zip,
)
from lightning_gp.datamodules.images.sources.eight_bit import NotEightBitError, eight_bit

Check = Callable[[Mapping[str, int]], None]
"""Given class name → number of images, raises a ``ValueError`` if the data set is not complete."""


class Decoding(NamedTuple):
    """How an image becomes uint8 (size, size) or (size, size, 3); part of the key of the cache.

    Attributes:
        size: side in pixels.
        crop: False stretches the image to the square, as the usual preparations of mini-ImageNet do; True scales the
            shorter side to ``size`` and takes the centre. Images that have the size already are left as they are.
        grey: one channel instead of three.
        invert: 255 − value (Omniglot's ink is black).
        exif: whether the orientation that a camera noted is applied.
    """

    size: int
    crop: bool = False
    grey: bool = False
    invert: bool = False
    exif: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a decoded image."""
        return (self.size, self.size) if self.grey else (self.size, self.size, 3)

    def apply(self, image: Any) -> NDArray[np.uint8]:
        """The image, decoded; scaled with PIL's Lanczos filter as is usual in the field.

        Raises:
            NotEightBitError: if it would lose something; see :func:`eight_bit`. Grey becomes colour without loss.
        """
        from PIL import Image, ImageChops

        image = eight_bit(image, self.exif)
        if self.grey and image.mode == "RGB":
            red, green, blue = image.split()
            if any(ImageChops.difference(red, other).getbbox() for other in (green, blue)):
                raise NotEightBitError("it is in colour where grey is expected; convert all images to one of them")
        image = image.convert("L" if self.grey else "RGB")
        if image.size != (self.size, self.size):
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side) if self.crop else None
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(image)
        return 255 - pixels if self.invert else pixels


class ImageSource(ABC):
    """Images by class. A subclass defines ``counts``, ``stamp``, ``read`` and ``describe``.

    Attributes:
        origin: what messages call it, such as the folder's path.
        concurrent: whether several threads may ``read`` at once.
    """

    origin: str = "the images"
    concurrent: bool = True

    @property
    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Class name → number of images, in order of name. May be slow: it is not asked for if there is a cache."""

    @abstractmethod
    def stamp(self) -> str:
        """Changes when the files do. Fast: names, sizes and times of files, not their content."""

    @abstractmethod
    def read(self, name: str, index: int) -> bytes | NDArray[np.uint8] | Any:
        """Image ``index`` of class ``name``: an encoded file, a uint8 (height, width[, 3]) array or a PIL image."""

    @abstractmethod
    def describe(self, name: str, index: int) -> str:
        """The file (and member) that image is in, for error messages."""

    def fingerprint(self, decoding: Decoding) -> str:
        """A short hash of ``stamp`` and decoding, which names the cache."""
        return hashlib.sha256(f"{self.stamp()} {decoding!r}".encode()).hexdigest()[:16]

    def decode(self, name: str, index: int, decoding: Decoding) -> NDArray[np.uint8]:
        """Image ``index`` of class ``name`` as uint8 of shape ``decoding.shape``.

        Raises:
            ValueError: naming the file, if it is broken, or would lose something as 8-bit.
        """
        from PIL import Image

        try:
            return decoding.apply(self.read(name, index))
        except NotEightBitError as error:
            raise ValueError(f"{self.describe(name, index)} cannot be used: {error}.") from error
        except (
            OSError,
            ValueError,
            TypeError,
            SyntaxError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            Image.DecompressionBombError,
        ) as error:
            raise ValueError(
                f"{self.describe(name, index)} is no readable image ({error}); replace it by an intact copy."
            ) from error


class FileSource(ImageSource):
    """Image files, on the disk or in zip archives (see :mod:`lightning_gp.datamodules.images.sources.class_tree`).

    Args:
        tree: class name → files. Their stamps make up the source's.
        origin: see :class:`ImageSource`.
    """

    def __init__(self, tree: ClassTree, origin: str | os.PathLike[str]) -> None:
        self.tree = {name: tree[name] for name in sorted(tree)}
        self.origin = str(origin)
        self._reader = ImageReader()

    @property
    def counts(self) -> Mapping[str, int]:
        """See :class:`ImageSource`."""
        return {name: len(files) for name, files in self.tree.items()}

    def stamp(self) -> str:
        """Hash of names and, on the disk, sizes and times of the files; in an archive, sizes and checksums."""
        digest = hashlib.sha256()
        for name, files in self.tree.items():
            digest.update("\n".join((name, *(f"{file.member} {file.stamp}" for file in files), "")).encode())
        return digest.hexdigest()

    def read(self, name: str, index: int) -> bytes:
        """The bytes of the file."""
        return self._reader.read(self.tree[name][index])

    def describe(self, name: str, index: int) -> str:
        """Path of the file, or of the archive and the member in it."""
        return str(self.tree[name][index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": ImageReader()}  # open archives stay in their process


def folder_source(
    folder: Path, depth: int = 1, classes: Sequence[str] | None = None, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> FileSource:
    """The classes are the folders ``depth`` levels below ``folder``, named by their relative paths.

    Args:
        folder: that holds the tree.
        depth: 1 for ``class/*.jpg``, 2 for ``split/class/*.jpg``.
        classes: look only into these, if given (those that do not exist are left out).
        suffixes: of image files, in small letters.
    """
    return FileSource(scan_folder(folder, depth, suffixes, classes), folder)


def zip_source(archive: Path, top: str, depth: int = 1, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> FileSource:
    """As :func:`folder_source`, of the folder ``top`` in a zip archive, which is not unpacked."""
    return FileSource(scan_zip(archive, top, depth, suffixes), archive)


def file_stamp(*paths: Path) -> str:
    """Name, size and time of modification of each file: the stamp of a source that keeps its images in a few files."""
    states = [(path, path.stat()) for path in paths]
    return "\n".join(f"{path.name} {state.st_size} {state.st_mtime_ns}" for path, state in states)
