"""A line on the screen while something takes longer than a moment, so that a still progress bar has a reason."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MOMENT = 3.0
"""Seconds without a word."""


@contextmanager
def saying_so(what: str, active: bool = True) -> Iterator[None]:
    """Says after ``MOMENT`` seconds that ``what`` is measured, and in the end how long it took.

    Args:
        what: whose measurement.
        active: whether this process may print.
    """
    begin = time.perf_counter()
    timer = threading.Timer(MOMENT, _say, [f"{what} is measuring; training goes on afterwards …"])
    timer.daemon = True
    if active:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        taken = time.perf_counter() - begin
        if active and taken > MOMENT:
            _say(f"{what} took {taken:.0f} s.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
