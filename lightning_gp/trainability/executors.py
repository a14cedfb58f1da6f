"""Cells computed by an executor of ``concurrent.futures``: processes of this machine, or of a cluster.

The map travels pickled, with each block of cells, and is built once per process. What a process computes does not
depend on where it is, so that the submitting machine alone writes the file, and it is that of a serial run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from lightning_gp.allocator import keep_freed_memory
from lightning_gp.trainability.describe import versions


class Seeded(Protocol):
    """What a process computes: a cell of a map, or a training."""

    @property
    def seed(self) -> int: ...  # noqa: D102


Work = TypeVar("Work", bound=Seeded)
Found = TypeVar("Found")

BLOCKS = 500
"""A map goes in about so many blocks: a process that is killed loses one."""
_built: dict[str, Callable[[Any], Any]] = {}
"""The last map that this process has computed, by its checksum."""
_turn = threading.Lock()


class Job(NamedTuple):
    """A map on its way to a process.

    Attributes:
        content: ``compute``, pickled.
        name: its checksum.
        versions: of what computes, where the map comes from.
        home: machine and process that it comes from.
    """

    content: bytes
    name: str
    versions: dict[str, str]
    home: tuple[str, int]


def computed(
    compute: Callable[[Work], Found], cells: Sequence[Work], executor: Executor
) -> Iterator[tuple[Work, Found]]:
    """Outcomes as they are finished. The executor is not shut down; what has not begun when this ends is cancelled.

    Args:
        compute: trains a cell; each process gets a copy of its own.
        cells: what to compute.
        executor: of processes that have this package in the same versions.

    Raises:
        ValueError: if ``compute`` cannot be pickled, or the executor has threads of this process.
        RuntimeError: if a process has other versions.
    """
    if isinstance(executor, ThreadPoolExecutor):
        raise ValueError(_THREADS.format(type(executor).__name__))
    content = _pickled(compute)
    job = Job(content, hashlib.sha256(content).hexdigest(), versions(), _here())
    futures: list[Future[list[tuple[Work, Found]]]] = []
    futures += [executor.submit(compute_block, job, block) for block in blocks(cells)]
    try:
        for future in as_completed(futures):
            yield from future.result()
    finally:
        for future in futures:
            future.cancel()


def blocks(cells: Sequence[Work]) -> list[list[Work]]:
    """The cells in their order, cut into blocks of one seed each."""
    size = 1 + len(cells) // BLOCKS
    found: list[list[Work]] = []
    for cell in cells:
        if found and len(found[-1]) < size and found[-1][0].seed == cell.seed:
            found[-1].append(cell)
        else:
            found.append([cell])
    return found


def compute_block(job: Job, cells: Sequence[Work]) -> list[tuple[Work, Any]]:
    """What a process does; one block at a time, also where an executor gives it several threads."""
    if job.home == _here():
        raise ValueError(_THREADS.format("this executor"))
    if (own := versions()) != job.versions:
        raise RuntimeError(
            f"A worker has {own}, but the map is computed with {job.versions}: numbers of two versions would stand in "
            "one file. Install the same versions everywhere."
        )
    with _turn, one_thread():
        if job.name not in _built:
            _built.clear()
            keep_freed_memory()
            _built[job.name] = pickle.loads(job.content)
        return [(cell, _built[job.name](cell)) for cell in cells]


def own_processes(workers: int) -> ProcessPoolExecutor:
    """Processes of this machine that end with this one, even if it is killed."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_watch_parent)


@contextlib.contextmanager
def processes(workers: int, executor: Executor | None) -> Iterator[Executor | None]:
    """The user's executor, own processes for as long as they are needed, or none for a single worker."""
    if executor is not None or workers <= 1:
        yield executor
        return
    pool = own_processes(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread per process: cells are computed side by side instead, and their numbers do not depend on how."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_THREADS = (
    "{} computes in threads of this process, which share one generator of random numbers and one module. Use an "
    "executor of processes: ProcessPoolExecutor, loky, or Dask with processes=True."
)


def _pickled(compute: Callable[[Any], Any]) -> bytes:
    try:
        import cloudpickle  # type: ignore[import-untyped]

        dumps, hint = cloudpickle.dumps, ""
    except ImportError:
        dumps, hint = pickle.dumps, " With `pip install cloudpickle`, here and there, lambdas can be, too."
    try:
        content: bytes = dumps(compute)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Other processes need an objective, data and optimizer that can be pickled ({error}); build what cannot "
            f"in a function of the seed, or compute in this process.{hint}"
        ) from error
    return content


def _here() -> tuple[str, int]:
    return platform.node(), os.getpid()


def _watch_parent() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed cannot end its workers, which would wait for more cells for ever.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
