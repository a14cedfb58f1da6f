"""The images of a source, decoded once on all cores into one memory-mapped array.

What is on the disk, beside each other: ``<name>-<size>px-<key>.npy``, the images class after class, and the same with
``.json``, the classes and their numbers of images. The key is a hash of the source's stamp (for files: their names,
sizes and times of modification) and of the decoding; changed files or settings are another cache, and the old one may
be deleted.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_gp.datamodules.episodes.class_episodes import ClassImages
from lightning_gp.datamodules.images.cache import cached_array, writing
from lightning_gp.datamodules.images.sources.image_source import Decoding, ImageSource

_CHUNK = 16  # images per task: Python's part per task is then small beside the decoding


class Decoded(NamedTuple):
    """Image ``number`` of class ``name``: ``pixels``, or the ``error`` that names its file."""

    name: str
    number: int
    pixels: NDArray[np.uint8] | None
    error: ValueError | None


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(source: ImageSource, decoding: Decoding, title: str) -> Iterator[Decoded]:
    """All images in order of class and number, with a progress bar.

    Threads do it: PIL decodes and scales without the interpreter's lock, so they keep all cores busy, and unlike
    processes they need no ``if __name__ == "__main__"`` in the user's script.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    def chunk(items: list[tuple[str, int]]) -> list[Decoded]:
        done = []
        for name, index in items:
            try:
                done.append(Decoded(name, index, source.decode(name, index, decoding), None))
            except ValueError as error:
                done.append(Decoded(name, index, None, error))
        return done

    threads = cores() if source.concurrent else 1
    items = ((name, index) for name, count in source.counts.items() for index in range(count))
    waiting: deque[Future[list[Decoded]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        with tqdm(total=sum(source.counts.values()), desc=title, unit="image", delay=1) as bar:
            while batch := list(islice(items, _CHUNK)):
                waiting.append(pool.submit(chunk, batch))
                if len(waiting) < 4 * threads:  # bounds what is decoded and not yet written
                    continue
                for result in waiting.popleft().result():
                    bar.update()
                    yield result
            for future in waiting:
                for result in future.result():
                    bar.update()
                    yield result
    finally:
        pool.shutdown(cancel_futures=True)


def cache_file(source: ImageSource, decoding: Decoding, folder: Path, name: str) -> Path:
    """Where :func:`cached_classes` has its array."""
    return folder / f"{name}-{decoding.size}px-{source.fingerprint(decoding)}.npy"


def cached_classes(
    source: ImageSource,
    decoding: Decoding,
    folder: Path,
    name: str,
    check: Callable[[Sequence[str]], object] = lambda names: None,
) -> ClassImages:
    """All images of ``source``, memory-mapped from the cache in ``folder``, which is built if there is none.

    Args:
        source: of the images.
        decoding: how they become uint8.
        folder: of the cache.
        name: of the data set, in the file's name.
        check: called with the names of the classes before anything is decoded; may raise.

    Returns:
        The classes in order of name.

    Raises:
        ValueError: if there are no images, or naming the file that is broken.
        OSError: if the folder cannot be written.
    """
    path = cache_file(source, decoding, folder, name)
    index = path.with_suffix(".json")
    try:
        counts: dict[str, int] = json.loads(index.read_text("utf-8"))
    except (OSError, ValueError):
        counts = {}
    if not counts:
        counts = dict(source.counts)
        if not counts:
            raise ValueError(f"{source.origin} holds no images; check that root is the folder above the class folders.")
    check(list(counts))
    if not index.exists():
        with writing(index) as file:
            file.write(json.dumps(counts, indent=0).encode())

    def rows() -> Iterator[NDArray[np.uint8]]:
        for image in decode_all(source, decoding, f"Decoding {name}"):
            if image.error is not None:
                raise image.error
            assert image.pixels is not None
            yield image.pixels

    numbers = np.array(list(counts.values()), dtype=np.int64)
    images = cached_array(path, (int(numbers.sum()), *decoding.shape), rows())
    return ClassImages(images, numbers, list(counts))
