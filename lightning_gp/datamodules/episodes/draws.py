"""Random numbers that are a function of (seed, stream, episode index) alone, drawn for many episodes at once.

A generator object per episode would cost more than the episode itself, so the numbers come from a counter-based
generator: the 64-bit counter (key, episode, draw) is scrambled by the finaliser of SplitMix64
(Steele, Lea, Flood 2014, *Fast splittable pseudorandom number generators*), once per level.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNIT = 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The bijective finaliser of SplitMix64; wraps modulo 2^64."""
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache
def _key(seed: int, stream: int) -> NDArray[np.uint64]:
    return _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) ^ np.array([stream], dtype=np.uint64))


def uniforms(seed: int, stream: int, indices: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """``count`` numbers per episode, uniform in [0, 1).

    Args:
        seed: any integer, taken modulo 2^64.
        stream: separates splits that share a seed.
        indices: (E,), the numbers of the episodes; row e of the result depends on ``indices[e]`` only.
        count: how many numbers each episode needs.

    Returns:
        (E, count), float64.

    Example:
        >>> import numpy as np
        >>> both = uniforms(0, 0, np.array([3, 7]), 4)
        >>> bool((both[1] == uniforms(0, 0, np.array([7]), 4)[0]).all())
        True
    """
    episodes = _mix(_key(seed, stream) ^ _mix(indices.astype(np.uint64)))
    counters = episodes[:, None] + np.arange(count, dtype=np.uint64) * _GOLDEN
    return np.asarray((_mix(counters) >> np.uint64(11)) * _UNIT, dtype=np.float64)


def choose(numbers: NDArray[np.float64], population: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Ordered choice without replacement, one per row: the first steps of a Fisher–Yates shuffle.

    Args:
        numbers: (R, count) uniform in [0, 1).
        population: each row chooses from 0 … population − 1; one number, or (R,). At least ``count``.

    Returns:
        (R, count), the choices in random order.

    Example:
        >>> import numpy as np
        >>> sorted(choose(np.random.default_rng(0).random((1, 5)), 5)[0].tolist())
        [0, 1, 2, 3, 4]
    """
    rows, count = numbers.shape
    width = int(np.max(population))
    steps = np.arange(count)
    others = steps + (numbers * (np.reshape(population, (-1, 1)) - steps)).astype(
        np.int64
    )  # step s swaps s and others_s
    table = np.tile(np.arange(width), rows)  # the rows' populations, one after the other
    begins = width * np.arange(rows)
    chosen = np.empty((count, rows), dtype=np.int64)
    for step, place in enumerate((others + begins[:, None]).T):
        chosen[step] = table.take(place)
        table[place] = table.take(begins + step)  # position `step` is not looked at again: one side of the swap will do
    return np.ascontiguousarray(chosen.T)
