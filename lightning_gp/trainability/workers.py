"""Cells computed in several processes."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process

import torch

from lightning_gp.allocator import keep_freed_memory
from lightning_gp.trainability.engine import Outcome
from lightning_gp.trainability.storage import Cell

Compute = Callable[[Cell], Outcome]
_compute_cell: Compute


def in_processes(compute: Compute, cells: Sequence[Cell], workers: int) -> Iterator[tuple[Cell, Outcome]]:
    """Outcomes as they are finished.

    Args:
        compute: trains a cell; each process gets a copy of its own.
        cells: what to compute.
        workers: processes.

    Raises:
        ValueError: if ``compute`` cannot be pickled.
    """
    try:
        content = pickle.dumps(compute)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"workers={workers} needs an objective, data and optimizer that can be pickled ({error}). Define functions "
            "at the top level of a module, not as lambda, or use workers=1."
        ) from error
    with ProcessPoolExecutor(
        min(workers, len(cells)), mp_context=get_context("spawn"), initializer=_prepare, initargs=(content,)
    ) as pool:
        jobs = {pool.submit(_compute, cell): cell for cell in cells}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _compute(cell: Cell) -> Outcome:
    return _compute_cell(cell)


def _prepare(content: bytes) -> None:
    global _compute_cell
    torch.set_num_threads(1)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _compute_cell = pickle.loads(content)


def _end_with_parent() -> None:
    # A parent that is killed cannot end its workers, which would wait for more cells for ever.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
