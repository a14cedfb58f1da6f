"""Trees of images, one folder per class, read from the disk or straight from zip archives."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LARGEST_IMAGE = 64 * 2**20  # bytes; refuses archives made to exhaust memory


class ImageFile(NamedTuple):
    """One image: ``path`` of the folder or archive, ``member`` in it, ``stamp`` that changes with its content."""

    container: Path
    member: str
    stamp: str

    def __str__(self) -> str:
        return str(self.container / self.member)


ClassTree = Mapping[str, Sequence[ImageFile]]
"""Class name → its images in order of name."""


def scan_folder(folder: Path, depth: int, suffix: str = ".png") -> dict[str, list[ImageFile]]:
    """Classes are the folders ``depth`` levels below ``folder``; names are their relative paths."""
    tree: dict[str, list[ImageFile]] = {}

    def walk(current: str, parts: tuple[str, ...]) -> None:
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if len(parts) < depth and entry.is_dir():
                    walk(entry.path, (*parts, entry.name))
                elif len(parts) == depth and entry.name.lower().endswith(suffix):
                    status = entry.stat()
                    member = "/".join((*parts, entry.name))
                    image = ImageFile(folder, member, f"{status.st_size} {status.st_mtime_ns}")
                    tree.setdefault("/".join(parts), []).append(image)

    walk(str(folder), ())
    return tree


def scan_zip(archive: Path, top: str, depth: int, suffix: str = ".png") -> dict[str, list[ImageFile]]:
    """As :func:`scan_folder`, of the folder ``top`` inside an archive. Nothing is unpacked to the disk.

    Raises:
        ValueError: naming the archive, if it is truncated or no zip file.
    """
    tree: dict[str, list[ImageFile]] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = sorted(opened.infolist(), key=lambda info: info.filename)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is truncated or no zip archive ({error}); fetch it again.") from error
    for info in infos:
        parts = info.filename.split("/")
        if len(parts) == depth + 2 and parts[0] == top and info.filename.lower().endswith(suffix):
            image = ImageFile(archive, info.filename, f"{info.file_size} {info.CRC:08x}")
            tree.setdefault("/".join(parts[1:-1]), []).append(image)
    return tree


def fingerprint(tree: ClassTree, *settings: object) -> str:
    """A short hash of the files (names, sizes, times or checksums) and the settings of decoding."""
    digest = hashlib.sha256(repr(settings).encode())
    for name in sorted(tree):
        for image in tree[name]:
            digest.update(f"{name} {image.member} {image.stamp}\n".encode())
    return digest.hexdigest()[:16]


class ImageReader:
    """Reads images of a tree; keeps archives open until it is closed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._archives: dict[Path, zipfile.ZipFile] = {}

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, image: ImageFile) -> bytes:
        """The bytes of the file."""
        if image.container.is_dir():
            return (image.container / image.member).read_bytes()
        if image.container not in self._archives:
            self._archives[image.container] = self._stack.enter_context(zipfile.ZipFile(image.container))
        archive = self._archives[image.container]
        size = archive.getinfo(image.member).file_size
        if size > _LARGEST_IMAGE:
            raise ValueError(f"{size} bytes are too many for an image")
        return archive.read(image.member)

    def decode_grey(self, image: ImageFile, size: int) -> NDArray[np.uint8]:
        """The image as uint8 (size, size), resized with PIL's Lanczos filter as is usual in the field.

        Raises:
            ValueError: naming the file, if it is broken.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.read(image))) as opened:
                grey = opened.convert("L")
                if grey.size != (size, size):
                    grey = grey.resize((size, size), Image.Resampling.LANCZOS)
                return np.asarray(grey)
        except (
            OSError,
            ValueError,
            SyntaxError,
            zipfile.BadZipFile,
            zlib.error,
            Image.DecompressionBombError,
        ) as error:
            raise ValueError(f"{image} is no readable image ({error}); replace it by an intact copy.") from error


def decode_classes(tree: ClassTree, size: int, description: str) -> Iterator[NDArray[np.uint8]]:
    """The images of each class, in order of class names, as uint8 (images, size, size), with a progress bar."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    with ImageReader() as reader, tqdm(total=sum(map(len, tree.values())), desc=description, unit="image") as bar:
        for name in sorted(tree):
            yield np.stack([reader.decode_grey(image, size) for image in tree[name]])
            bar.update(len(tree[name]))
