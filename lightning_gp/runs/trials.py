"""Many small trainings: spread over processes, with their progress; numbers that JSON can hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from lightning_gp.allocator import keep_freed_memory

Row = Mapping[str, Any]


def spread(
    function: Callable[..., Row], jobs: Sequence[tuple[Any, ...]], workers: int, describe: Callable[[Row], str]
) -> list[Row]:
    """``function(*job)`` of each job, in processes of their own; a line is printed as each ends.

    Args:
        function: importable, as its arguments and results must be picklable.
        jobs: its arguments.
        workers: processes.
        describe: a line about a result.

    Returns:
        The results in the order of the jobs.
    """
    found: dict[int, Row] = {}
    start = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=keep_freed_memory) as pool:
        waiting = {pool.submit(function, *job): place for place, job in enumerate(jobs)}
        for done, each in enumerate(as_completed(waiting), 1):
            row = found[waiting[each]] = each.result()
            seconds = (time.perf_counter() - start) / done * (len(jobs) - done)
            print(f"{describe(row)} ({done} of {len(jobs)}, {seconds:.0f} s to go)", flush=True)
    return [found[place] for place in range(len(jobs))]


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, None for those that JSON has no word for.

    Example:
        >>> finite({"loss": float("nan"), "accuracy": 0.5})
        {'loss': None, 'accuracy': 0.5}
    """
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def smallest(rows: Sequence[Row], key: str, sign: int = 1) -> Row:
    """The row with the smallest ``sign`` times the value of ``key``; None comes last, the first of equals is taken.

    Example:
        >>> smallest([{"loss": None}, {"loss": 2.0}, {"loss": 1.0}], "loss")
        {'loss': 1.0}
    """
    return min(rows, key=lambda row: math.inf if row[key] is None else sign * row[key])


def changed_from(usual: Any, given: Any, quick: Mapping[str, Any]) -> dict[str, Any]:
    """Of the ``quick`` values those that the user did not choose: where ``given`` still has what is ``usual``.

    Args:
        usual: a dataclass of settings, with their defaults.
        given: another, of the user.
        quick: values of a trial run, by name.
    """
    return {name: value for name, value in quick.items() if getattr(given, name) == getattr(usual, name)}


def spelled_out(command: str, settings: Any, usual: Any, quick: bool, seeds: Sequence[int]) -> str:
    """The command line that makes the same numbers.

    Args:
        command: without its options.
        settings: a dataclass, what was run.
        usual: those that need not be named.
        quick: whether it was a quick run.
        seeds: of the run.
    """
    changed = {name: value for name, value in asdict(settings).items() if value != getattr(usual, name)}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
    return " ".join([command, *(["--quick"] if quick else []), f"--seeds [{','.join(map(str, seeds))}]", *options])
