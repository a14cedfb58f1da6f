"""Means and differences over seeds and test episodes, with 95 % confidence intervals.

Each seed trains once and draws test episodes of its own, so that its mean differs from another seed's by both: by how
training went, and by which episodes it was tested on. Student's interval over seeds therefore covers both. An interval
over episodes takes the trained weights as they are, and is the narrower one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import NamedTuple

from scipy.stats import t as student  # type: ignore[import-untyped]

NORMAL = 1.96
"""Of the package's intervals over episodes."""


class Estimate(NamedTuple):
    """A mean or a difference of means.

    Attributes:
        value: the estimate.
        over_seeds: half-width of its 95 % interval over seeds; None of a single seed.
        over_episodes: half-width of that over test episodes, the weights taken as they are; None where they are not
            known.
    """

    value: float
    over_seeds: float | None
    over_episodes: float | None

    @property
    def half_width(self) -> float | None:
        """Over seeds, or over episodes of a single seed."""
        return self.over_episodes if self.over_seeds is None else self.over_seeds


class Row(NamedTuple):
    """What was trained, and how well it did.

    Attributes:
        name: of the config or change.
        estimate: the mean.
        minus: its difference to the baseline; None for the baseline itself.
        paired: whether both were tested on the same episodes.
    """

    name: str
    estimate: Estimate
    minus: Estimate | None
    paired: bool


def mean(seeds: Sequence[float], episodes: Sequence[Sequence[float]] = ()) -> Estimate:
    """The mean over seeds, (1/n) Σ_s m_s ± t_{n−1} √(v/n), v the variance of the m_s with divisor n − 1.

    Over episodes the half-width is 1.96 √(Σ_s v_s/k_s) / n, v_s the variance of the k_s episodes of a seed.

    Args:
        seeds: m_s, the mean of each seed.
        episodes: of each seed, the values of its episodes; empty if they are not known.

    Raises:
        ValueError: if there are no seeds.

    Example:
        >>> mean([1.0, 3.0]).value, round(mean([1.0, 3.0]).over_seeds, 3)
        (2.0, 12.706)
    """
    if not seeds:
        raise ValueError("seeds=[] has no number in it; give the mean of at least one seed.")
    over_seeds = _t(len(seeds) - 1) * math.sqrt(variance(seeds) / len(seeds)) if len(seeds) > 1 else None
    return Estimate(fmean(seeds), over_seeds, _over_episodes(episodes))


def difference(
    first: Sequence[float],
    second: Sequence[float],
    first_episodes: Sequence[Sequence[float]] = (),
    second_episodes: Sequence[Sequence[float]] = (),
    paired: bool = True,
) -> Estimate:
    """The mean of the first minus that of the second.

    Paired, it is the ``mean`` of the differences of each seed, and of each episode. Else the variances of both are
    added, and the degrees of freedom over seeds are Welch's.

    Args:
        first: means of each seed.
        second: of the same seeds in the same order, if paired.
        first_episodes: of each seed, the values of its episodes; empty if they are not known.
        second_episodes: likewise.
        paired: whether seed by seed both were tested on the same episodes.

    Raises:
        ValueError: if what is paired is not equally long.

    Example:
        >>> difference([0.9, 0.7], [0.8, 0.6]).over_seeds < 1e-9
        True
    """
    if paired:
        values = [a - b for a, b in zip(first, second, strict=True)]
        episodes = []
        if first_episodes and second_episodes:
            pairs = [zip(a, b, strict=True) for a, b in zip(first_episodes, second_episodes, strict=True)]
            episodes = [[a - b for a, b in each] for each in pairs]
        return mean(values, episodes)
    over_seeds = None
    if len(first) > 1 and len(second) > 1:
        parts = [(variance(each) / len(each), len(each) - 1) for each in (first, second)]
        total = sum(part for part, _ in parts)
        freedom = total**2 / sum(part**2 / degrees for part, degrees in parts) if total else 1.0
        over_seeds = _t(freedom) * math.sqrt(total)
    halves = [_over_episodes(first_episodes), _over_episodes(second_episodes)]
    over_episodes = None if None in halves else math.hypot(*(half for half in halves if half is not None))
    return Estimate(fmean(first) - fmean(second), over_seeds, over_episodes)


def _over_episodes(episodes: Sequence[Sequence[float]]) -> float | None:
    if not episodes or min(map(len, episodes)) < 2:
        return None
    return NORMAL * math.sqrt(sum(variance(each) / len(each) for each in episodes)) / len(episodes)


def _t(degrees: float) -> float:
    return float(student.ppf(0.975, degrees))
