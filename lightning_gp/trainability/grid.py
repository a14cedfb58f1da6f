"""The learning rates of a map.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective: grids step through 1 … 9 in each decade.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_gp.checks import whole


def decades(low: float, high: float) -> list[float]:
    """1 … 9 times each power of ten between ``low`` and ``high``, both included [T21, section IX-D].

    Args:
        low: the smallest rate.
        high: the largest rate.

    Returns:
        The rates, ascending; as exact as decimal numbers are read.

    Raises:
        ValueError: if the range is not positive, empty, or holds no such number.

    Example:
        >>> decades(8e-3, 2e-2)
        [0.008, 0.009, 0.01, 0.02]
    """
    _check_range(low, high)
    exponents = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2)
    rates = [float(f"{digit}e{exponent}") for exponent in exponents for digit in range(1, 10)]
    slack = 1e-9
    rates = [rate for rate in rates if low * (1 - slack) <= rate <= high * (1 + slack)]
    if not rates:
        raise ValueError(f"No number 1 … 9 times a power of ten lies between {low:g} and {high:g}; give a list.")
    return rates


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """``count`` rates from ``low`` to ``high`` with equal ratios.

    Raises:
        ValueError: if the range is not positive or empty, or ``count`` < 2.

    Example:
        >>> log_spaced(0.01, 1.0, 3)
        [0.01, 0.1, 1.0]
    """
    _check_range(low, high)
    if count < 2:
        raise ValueError(f"{count} rates cannot span {low:g} … {high:g}; use at least 2, or give a list.")
    step = (math.log10(high) - math.log10(low)) / (count - 1)
    # Six digits are plenty for a grid, and read well in files and pictures.
    return [float(f"{10 ** (math.log10(low) + index * step):.6g}") for index in range(count)]


def parse_rates(text: str | float | Sequence[float]) -> list[float]:
    """A grid from the command line.

    Args:
        text: ``"1e-4:9e-1"`` for 1 … 9 in each decade, ``"1e-4:9e-1:30"`` for 30 with equal ratios, ``"0.1,0.2"``, or
            numbers.

    Returns:
        The rates, in the given order.

    Raises:
        ValueError: if the text is none of these.

    Example:
        >>> parse_rates("1e-1:3e-1"), parse_rates("0.5, 1")
        ([0.1, 0.2, 0.3], [0.5, 1.0])
    """
    if not isinstance(text, str):
        return [float(text)] if isinstance(text, (int, float)) else [float(rate) for rate in text]
    try:
        if ":" not in text:
            return [float(part) for part in text.strip("[] ").split(",")]
        low, high, *count = text.split(":")
        numbers, counts = (float(low), float(high)), [int(part) for part in count]
    except ValueError:
        numbers, counts = (0.0, 0.0), [0, 0]
    if len(counts) > 1:
        raise ValueError(
            f"{text!r} is no grid; write LOW:HIGH (1 … 9 in each decade), LOW:HIGH:COUNT, or numbers with commas."
        )
    return log_spaced(*numbers, counts[0]) if counts else decades(*numbers)


def check_rates(name: str, rates: Sequence[float]) -> tuple[float, ...]:
    """The rates of one axis.

    Raises:
        ValueError: if there are none, they do not ascend, or one is not a finite positive number.
    """
    values = tuple(float(rate) for rate in rates)
    if not values:
        raise ValueError(f"{name} is empty; give at least one rate, or a range such as '1e-4:9e-1'.")
    for value in values:
        if not 0 < value < math.inf:
            raise ValueError(f"{name} contains {value:g}, which a logarithmic axis cannot show; give rates above 0.")
    for before, after in zip(values, values[1:], strict=False):
        if not before < after:
            raise ValueError(f"{name} must ascend, but {before:g} comes before {after:g}; sort it, without repeats.")
    return values


def _check_range(low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"The range {low:g}:{high:g} must have 0 < low < high.")


def parse_shard(text: str) -> tuple[int, int]:
    """``"2/3"`` → (2, 3).

    Raises:
        ValueError: if it is not of that form, or not a share from 1 to n.
    """
    index, _, shards = text.partition("/")
    if not (index.isdecimal() and shards.isdecimal() and 1 <= int(index) <= int(shards)):
        raise ValueError(f"shard={text!r} must be i/n with 1 <= i <= n, such as 1/4.")
    return int(index), int(shards)


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of several runs.

    Raises:
        TypeError: if one is no whole number.
        ValueError: if there are none, or two are equal.
    """
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)} must be at least one, and all must differ.")
    numbered: dict[str, Any] = {f"seeds[{index}]": seed for index, seed in enumerate(seeds)}
    whole(0, **numbered)
    return tuple(seeds)


def seed_list(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds from the command line: a count n is 0 … n − 1.

    Raises:
        TypeError: if one is no whole number.
        ValueError: if there are none, or two are equal.

    Example:
        >>> seed_list(2), seed_list([5])
        ((0, 1), (5,))
    """
    if isinstance(seeds, Sequence):
        return check_seeds(seeds)
    whole(1, seeds=seeds)
    return tuple(range(seeds))
