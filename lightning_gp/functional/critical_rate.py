"""The rate at which a loss turns up along a direction, from forward passes alone.

Source: critical sharpness, arXiv 2601.16979 (2026).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from lightning_gp import checks


class Turn(NamedTuple):
    """Where a function of a rate is back at its start.

    Attributes:
        rate: the smallest such rate; ∞ if it never rises up to ``largest``, 0 if it rises at once, NaN if the start is
            not finite.
        evaluations: of the function.
    """

    rate: float
    evaluations: int


def turning_rate(
    loss: Callable[[float], float], guess: float, tol: float = 0.02, span: float = 2.0**20, steps: int = 60
) -> Turn:
    """The smallest η > 0 with L(θ − η d) > L(θ): where the loss along a direction is back at its start.

    Bracketed by doubling or halving a guess, then bisected. For a quadratic it is 2 gᵀd / dᵀHd; along an eigenvector of
    curvature λ with d the gradient 2/λ, the critical rate of gradient descent. On a loss with several dips along d the
    first rise that the bracket sees is found.

    Args:
        loss: η ↦ L(θ − η d); a loss that is not finite counts as risen.
        guess: a rate to start from, such as the one in use.
        tol: relative error of the result.
        span: how far above and below the guess is searched.
        steps: at most so many halvings in the bisection.

    Returns:
        The rate, and how often the loss was computed.

    Raises:
        ValueError: if the guess is not a positive number, or ``tol`` is out of range.

    Example:
        >>> turn = turning_rate(lambda rate: (1 - 4 * rate) ** 2, guess=0.1)  # curvature 8, d the gradient / 2
        >>> abs(turn.rate - 0.5) < 0.01
        True
    """
    checks.whole(1, steps=steps)
    if not (math.isfinite(guess) and guess > 0):
        raise ValueError(f"guess={guess!r} must be a positive rate, such as the one in use.")
    if not 0 < tol < 1:
        raise ValueError(f"tol={tol!r} is a relative error; take 0 < tol < 1, e.g. 0.02.")
    start = loss(0.0)
    count = 1
    if not math.isfinite(start):
        return Turn(math.nan, count)

    def risen(rate: float) -> bool:
        nonlocal count
        count += 1
        value = loss(rate)
        return not value <= start  # NaN has risen

    low, high = 0.0, guess
    if risen(guess):
        low = guess / 2
        while low > guess / span and risen(low):
            low, high = low / 2, low
        if low <= guess / span:
            return Turn(0.0, count)
    else:
        low, high = guess, 2 * guess
        while high < guess * span and not risen(high):
            low, high = high, 2 * high
        if high >= guess * span:
            return Turn(math.inf, count)
    for _ in range(steps):
        if high <= low * (1 + tol):
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if risen(middle) else (middle, high)
    return Turn(math.sqrt(low * high), count)
