"""What a researcher would change, from the numbers of a card."""

from __future__ import annotations

import math
from collections.abc import Mapping

ROOM, EDGE = 0.1, 1.05
"""Below the first a larger rate would converge by a wide margin; above the second steps overshoot."""


def advice(values: Mapping[str, float]) -> list[str]:
    """Sentences, the most urgent first.

    Args:
        values: by key, as the callbacks log them.

    Example:
        >>> advice({"learning_rates/edge": 2.0, "learning_rates/outer_critical": 0.1, "learning_rates/outer": 0.2})
        ['The outer rate 0.2 is 2 times the largest that converges here (0.1): take less, such as 0.05.']
    """
    return [*_outer(values), *_inner(values), *_environments(values), *_trust(values)]


def _outer(values: Mapping[str, float]) -> list[str]:
    edge = values.get("learning_rates/edge", math.nan)
    critical, rate = values.get("learning_rates/outer_critical", math.nan), values.get("learning_rates/outer", math.nan)
    if edge > EDGE:
        return [
            f"The outer rate {rate:.3g} is {edge:.3g} times the largest that converges here ({critical:.3g}): take "
            f"less, such as {critical / 2:.2g}."
        ]
    if edge < ROOM and math.isfinite(critical):
        return [
            f"There is room: the outer rate {rate:.3g} is {edge:.2g} of the largest that converges here "
            f"({critical:.3g}). A few times more is stable; whether it trains better is for trials to say."
        ]
    if edge <= EDGE:
        return [f"The outer rate {rate:.3g} is stable here, at {edge:.2g} of the critical one ({critical:.3g})."]
    return []


def _inner(values: Mapping[str, float]) -> list[str]:
    ratio = values.get("learning_rates/inner_ratio", math.nan)
    if not ratio > 1:
        return []
    critical = values["learning_rates/inner_critical"]
    return [
        f"The inner rate is {ratio:.3g} times 1/λ_max = {critical:.3g} of the sharpest environment. A first-order "
        "inner loop of an odd number of steps, or a negative penalty, has no minimum there; MAML with its second "
        "derivatives does."
    ]


def _environments(values: Mapping[str, float]) -> list[str]:
    cosine = values.get("gradients/cosine", math.nan)
    if cosine < 0:
        return [
            f"The gradients of environments oppose each other (mean cosine {cosine:.2g}): what one gains another loses."
        ]
    if cosine < 0.1:
        return [f"The gradients of environments have little in common (mean cosine {cosine:.2g})."]
    return []


def _trust(values: Mapping[str, float]) -> list[str]:
    doubtful = [key for key in ("learning_rates/converged", "curvature/converged") if values.get(key) == 0]
    if not doubtful:
        return []
    return [
        f"Not as exact as asked for: {', '.join(key.partition('/')[0] for key in doubtful)} (see the residuals). Take "
        "more products, or double precision."
    ]
