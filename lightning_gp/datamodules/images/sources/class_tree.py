"""Trees of images, one folder per class, read from the disk or straight from zip archives."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

_LARGEST_IMAGE = 64 * 2**20  # bytes; refuses archives made to exhaust memory

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class ImageFile(NamedTuple):
    """One image: ``path`` of the folder or archive, ``member`` in it, ``stamp`` that changes with its content."""

    container: Path
    member: str
    stamp: str

    def __str__(self) -> str:
        return str(self.container / self.member)


ClassTree = Mapping[str, Sequence[ImageFile]]
"""Class name → its images in order of name."""


def scan_folder(
    folder: Path, depth: int, suffixes: Sequence[str] = IMAGE_SUFFIXES, classes: Sequence[str] | None = None
) -> dict[str, list[ImageFile]]:
    """Classes are the folders ``depth`` levels below ``folder``; names are their relative paths.

    Hidden files and folders (such as those that macOS leaves) are passed over; folders without images are no class.

    Args:
        folder: that holds the tree.
        depth: of the class folders.
        suffixes: of image files, in small letters.
        classes: if given, only these are looked into; those that do not exist are left out.
    """
    tree: dict[str, list[ImageFile]] = {}
    endings = tuple(suffixes)

    def walk(current: str, parts: tuple[str, ...]) -> None:
        with os.scandir(current) as listing:
            entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda e: e.name)
        if len(parts) < depth:
            for entry in entries:
                if entry.is_dir():
                    walk(entry.path, (*parts, entry.name))
            return
        name = "/".join(parts)
        images = [entry for entry in entries if entry.name.lower().endswith(endings)]
        if images:
            tree[name] = [image_file(folder, f"{name}/{entry.name}", entry.stat()) for entry in images]

    if classes is None:
        walk(str(folder), ())
    else:
        for name in sorted(classes):
            if (folder / name).is_dir():
                walk(str(folder / name), tuple(name.split("/")))
    return tree


def image_file(folder: Path, member: str, status: os.stat_result) -> ImageFile:
    """The file ``member`` below ``folder``, stamped by size and time of modification."""
    return ImageFile(folder, member, f"{status.st_size} {status.st_mtime_ns}")


def scan_zip(
    archive: Path, top: str, depth: int, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> dict[str, list[ImageFile]]:
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
        hidden = any(part.startswith(".") for part in parts)
        if len(parts) == depth + 2 and parts[0] == top and not hidden and parts[-1].lower().endswith(tuple(suffixes)):
            image = ImageFile(archive, info.filename, f"{info.file_size} {info.CRC:08x}")
            tree.setdefault("/".join(parts[1:-1]), []).append(image)
    return tree


class ImageReader:
    """Reads images of a tree, from several threads if need be; keeps archives open until it is closed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._opening = threading.Lock()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._archives.clear()

    def read(self, image: ImageFile) -> bytes:
        """The bytes of the file."""
        if image.container.suffix != ".zip" or image.container.is_dir():
            return (image.container / image.member).read_bytes()
        with self._opening:
            if image.container not in self._archives:
                self._archives[image.container] = self._stack.enter_context(zipfile.ZipFile(image.container))
            archive = self._archives[image.container]
        size = archive.getinfo(image.member).file_size
        if size > _LARGEST_IMAGE:
            raise ValueError(f"{size} bytes are too many for an image")
        return archive.read(image.member)
