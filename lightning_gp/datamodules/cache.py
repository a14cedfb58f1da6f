"""Decoded images as one memory-mapped uint8 array on disk, built once and never seen half-written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CACHE_VARIABLE = "LIGHTNING_GP_CACHE"


def cache_folder(cache_dir: str | os.PathLike[str] | None, root: Path) -> Path:
    """Where caches go: ``cache_dir``, else the environment variable ``LIGHTNING_GP_CACHE``, else ``root``.

    If ``root`` cannot be written to, the user's cache folder takes its place.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if os.access(root, os.W_OK):
        return root
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_gp"


def open_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array at ``path``, memory-mapped read-only, or None if there is none of this shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):  # the latter two: not a whole .npy file
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def cached_array(path: Path, shape: tuple[int, ...], rows: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The array at ``path``; built from ``rows`` (each one entry of the leading axis) if it is not there.

    It is written to a temporary file beside ``path`` and moved into place when complete, so neither a killed process
    nor two that build at once can leave or show a partial array: the last to finish replaces the same content.

    Raises:
        OSError: if the folder cannot be written to; the message says how to choose another.
    """
    cached = open_cache(path, shape)
    if cached is not None:
        return cached
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            written = 0
            for row in rows:
                if row.shape != shape[1:] or row.dtype != np.uint8:
                    raise ValueError(
                        f"Expected rows of shape {shape[1:]} and dtype uint8, got {row.shape} {row.dtype}."
                    )
                file.write(np.ascontiguousarray(row).tobytes())
                written += 1
            if written != shape[0]:
                raise ValueError(f"Expected {shape[0]} rows for {path}, got {written}.")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's is private to the user, a shared root is not
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(
                f"Cannot write the image cache {path}: {error}. Choose another folder with cache_dir=… or the "
                f"environment variable {CACHE_VARIABLE}."
            ) from error
        raise
    array = open_cache(path, shape)
    if array is None:
        raise OSError(f"The image cache {path} cannot be read back; delete it and try again.")
    return array
