"""Python's own iterators: which can be copied, so that code advances the copy."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

SAMPLES: tuple[Any, ...] = ([], (), {}, {}.items(), {}.values(), set(), "", b"", range(0), reversed([]))
ITERATORS: tuple[type, ...] = (
    *(type(iter(each)) for each in SAMPLES),
    *(enumerate, zip, map, filter, reversed, itertools.count, itertools.cycle, itertools.chain, itertools.islice),
    *(itertools.repeat, itertools.product, itertools.permutations, itertools.combinations, itertools.accumulate),
    *(itertools.compress, itertools.starmap, itertools.zip_longest),
)
"""Iterators of which a copy can be made, so that code advances the copy."""


def lent(value: object, copies: dict[int, object]) -> object:
    """A copy in the place of an iterator, the same one each time; anything else as it is.

    Args:
        value: of any type.
        copies: by the ids of the iterators; new ones are added.
    """
    if type(value) not in ITERATORS:
        return value
    if id(value) not in copies:
        copies[id(value)] = _iterator_copy(value)
    return copies[id(value)]


def _iterator_copy(iterator: Any) -> Any:
    """An iterator at the same point over the same items; the very iterator where none can be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            build, arguments, *state = iterator.__reduce__()
            again = build(*(_iterator_copy(each) if isinstance(each, ITERATORS) else each for each in arguments))
            if state and state[0] is not None:
                parts = state[0]
                again.__setstate__(
                    tuple(list(each) if isinstance(each, list) else each for each in parts)
                    if isinstance(parts, tuple)
                    else parts
                )
            return again
        except Exception:
            return iterator
