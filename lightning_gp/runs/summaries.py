"""Numbers of several seeds in one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def over_seeds(values: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    """Mean, sample standard deviation (n − 1; None of one value) and the values themselves.

    Args:
        values: one of each seed.
        factor: 100 for percent.

    Example:
        >>> over_seeds([1.0, 3.0])
        {'mean': 2.0, 'std': 1.4142135623730951, 'seeds': [1.0, 3.0]}
    """
    scaled = [factor * float(value) for value in values]
    deviation = statistics.stdev(scaled) if len(scaled) > 1 else None
    return {"mean": statistics.fmean(scaled), "std": deviation, "seeds": scaled}


def as_text(mean: float, std: float | None, digits: int, factor: float = 1.0) -> str:
    """``mean ± std``.

    Example:
        >>> as_text(0.5, None, 2, 100), as_text(1, 0.25, 1)
        ('50.00', '1.0 ± 0.2')
    """
    return f"{factor * mean:.{digits}f}" + ("" if std is None else f" ± {factor * std:.{digits}f}")
