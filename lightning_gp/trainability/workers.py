"""Cells computed in several processes."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any

import torch

from lightning_gp.allocator import keep_freed_memory
from lightning_gp.trainability.engine import Outcome
from lightning_gp.trainability.storage import Cell

if TYPE_CHECKING:
    from lightning_gp.trainability.map import TrainabilityMap

_map: Any = None


def in_processes(trainability: TrainabilityMap, cells: Sequence[Cell], workers: int) -> Iterator[tuple[Cell, Outcome]]:
    """Outcomes as they are finished.

    Raises:
        ValueError: if the map cannot be pickled.
    """
    try:
        content = pickle.dumps(trainability)
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


def _prepare(content: bytes) -> None:
    global _map
    torch.set_num_threads(1)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _map = pickle.loads(content)


def _end_with_parent() -> None:
    # A parent that is killed cannot end its workers, which would wait for more cells for ever.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _compute(cell: Cell) -> Outcome:
    outcome: Outcome = _map.compute(cell)
    return outcome
