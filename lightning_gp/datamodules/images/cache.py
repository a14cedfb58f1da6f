"""Decoded images as one memory-mapped uint8 array on disk, built once and never seen half-written."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

CACHE_VARIABLE = "LIGHTNING_GP_CACHE"
_ABANDONED = 3600.0  # seconds without a write after which another machine's temporary file is thought dead


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
    """The array at ``path``, memory-mapped read-only, or None if there is none of this shape or it is not whole."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):  # the latter two: not a whole .npy file
        return None
    if array.shape != shape or array.dtype != np.uint8 or array.flags.f_contiguous > array.flags.c_contiguous:
        return None
    return array if path.stat().st_size == array.offset + array.nbytes else None


def cached_array(path: Path, shape: tuple[int, ...], rows: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The array at ``path``; built from ``rows`` (each one entry of the leading axis) if it is not there.

    It is written to a temporary file beside ``path`` and moved into place when complete, so neither a killed process
    nor two that build at once can leave or show a partial array. Of several processes on a machine one builds and the
    others wait for it; where locks do not work (some network disks) all build, and the last to finish replaces the
    same content.

    Raises:
        OSError: if the folder cannot be written to or is full; the message says how to choose another.
    """
    cached = open_cache(path, shape)
    if cached is not None:
        return cached
    with _one_builder(path):
        cached = open_cache(path, shape)  # another process may have built it meanwhile
        if cached is not None:
            return cached
        with writing(path, math.prod(shape)) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
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
    array = open_cache(path, shape)
    if array is None:
        raise OSError(f"The image cache {path} cannot be read back; delete it and try again.")
    return array


@contextmanager
def writing(path: Path, size: int = 0) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path`` that takes its place when the block ends well, and is removed when it does not.

    Temporary files that killed processes left are removed first: a live one is locked by who writes it.

    Raises:
        OSError: naming ``path``, if it cannot be written or its disk has no room for ``size`` bytes.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise OSError(f"it takes {size / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left")
        file, temporary = _locked_temporary(path)
        with file:
            yield file
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


def _locked_temporary(path: Path) -> tuple[IO[bytes], str]:
    """A new file beside ``path`` that no other process removes."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.{platform.node()}.", suffix=".tmp", dir=path.parent)
        file = os.fdopen(handle, "wb")
        _lock(file, wait=True)
        if os.path.exists(name):
            return file, name
        file.close()  # before it was locked, another process took it for abandoned


@contextmanager
def _one_builder(path: Path) -> Iterator[None]:
    """Waits while another process of this machine builds ``path``. Saves work; :func:`writing` alone is safe."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # no locks here, or no writing, which `writing` says
        yield
        return
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits on it goes on alone, and finds the cache built
        lock.release()


def _lock(file: IO[bytes], wait: bool) -> bool:
    """Locks the file until it is closed or its process dies; whether that worked."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    """Removes the data set's temporary files that nobody writes any more.

    Locks are trusted among the processes of one machine; the temporary files of other machines must be old, too.
    """
    data_set = path.name.rsplit("-", 1)[0]
    for old in path.parent.glob(f"{data_set}-*.tmp"):
        try:
            ours = f".{platform.node()}." in old.name
            if ours or time.time() - old.stat().st_mtime > _ABANDONED:
                with old.open("rb") as file:
                    if _lock(file, wait=False):
                        old.unlink()  # under the lock, which its writer may be about to take
        except OSError:  # another process was faster, or it is not ours to remove
            continue
