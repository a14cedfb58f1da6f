"""What borders say of the papers' claims: a paired test over seeds, and the exponent of a fall.

[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective, section IX-D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_gp.trainability.refining import Criterion
from lightning_gp.trainability.result import Array, TrainabilityResult

LEVEL = 0.05
FEWEST = 5
"""Seeds below which no outcome of the test is at ``LEVEL``: p is at least 2⁻ⁿ."""
DECADE = 10.0
EXACT, DRAWN = 16, 10**5
"""Pairs up to which all patterns of signs are counted, and how many are drawn beyond."""


class Comparison(NamedTuple):
    """Borders of one kind over those of another, seed by seed.

    Attributes:
        ratios: of each seed.
        p: of the exact one-sided sign-flip test of the mean logarithm: the share of the 2ⁿ patterns of signs under
            which it is at least as large as it is.
    """

    ratios: tuple[float, ...]
    p: float

    @property
    def larger(self) -> bool:
        """Whether the first kind is larger, at ``LEVEL``."""
        return self.p <= LEVEL

    def __str__(self) -> str:
        low, high = min(self.ratios), max(self.ratios)
        spread = f" ({low:.2f} to {high:.2f}, p = {self.p:.2g})" if len(self.ratios) > 1 else ""
        return f"{float(np.median(self.ratios)):.2f} times{spread}"


def compare(first: Sequence[float] | Array, second: Sequence[float] | Array) -> Comparison:
    """Paired comparison of positive numbers, one pair for each seed.

    Of more than 16 pairs 10⁵ patterns of signs are drawn, always the same ones and the observed one among them.

    Raises:
        ValueError: if the numbers are not as many, or not positive.

    Example:
        >>> compare([2.0, 2.0, 2.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0, 1.0])
        Comparison(ratios=(2.0, 2.0, 2.0, 2.0, 4.0), p=0.03125)
    """
    above, below = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if above.shape != below.shape or not above.size or not (min(above.min(), below.min()) > 0):
        raise ValueError(f"{first} and {second} must be equally many positive numbers.")
    ratios = above / below
    logs = np.log(ratios)
    if len(logs) <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(logs))))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(DRAWN, len(logs)))
        signs[0] = 1.0
    sums = signs @ logs
    return Comparison(tuple(map(float, ratios)), float((sums >= logs.sum() - 1e-9).mean()))


class NearTheEnd(NamedTuple):
    """The border near the largest usable α against that of α = 0 and of small α.

    Attributes:
        last: the largest α at which most seeds have a β that trains; NaN if there is none.
        near: the α that count as near it: the last decade up to it, without ``small``.
        small: the α of the first decade of the map.
        chosen: for each seed, that of ``near`` with the largest median border over the *other* seeds, so that the luck
            of a seed is not what it is chosen for.
        against_zero: the borders at ``chosen`` over those of α = 0; None where nothing can be compared.
        against_small: the same over each seed's median border of ``small``.
    """

    last: float
    near: tuple[float, ...]
    small: tuple[float, ...]
    chosen: tuple[float, ...]
    against_zero: Comparison | None
    against_small: Comparison | None

    @property
    def holds(self) -> bool | None:
        """Whether it is larger than both, at ``LEVEL`` each; None where too few seeds or α decide nothing."""
        if self.against_zero is None or self.against_small is None or len(self.chosen) < FEWEST:
            return None
        return self.against_zero.larger and self.against_small.larger


def near_the_end(result: TrainabilityResult, criterion: Criterion = "diverged") -> NearTheEnd:
    """Compares the columns near the largest usable α with those that are α = 0 or nearly so [T21, section IX-D].

    Borders beyond the grid count as its ends.

    Args:
        result: a map with its line at α = 0.
        criterion: whose borders.

    Raises:
        ValueError: if the map is not finished, or has no line at α = 0.
    """
    if result.zero is None or not result.complete:
        raise ValueError("A finished map with a line at α = 0 is needed (zero_inner_lr=True).")
    alphas = result.inner_lrs
    raw = np.array([result.seed_borders(alpha, criterion) for alpha in alphas])  # (A, seeds)
    ends = float(result.outer_lrs[0]), float(result.outer_lrs[-1])
    borders = np.clip(raw, *ends)
    usable = alphas[np.median(raw, axis=1) > 0]
    small = alphas <= DECADE * alphas[0] * (1 + 1e-9)
    if not len(usable):
        return NearTheEnd(math.nan, (), tuple(map(float, alphas[small])), (), None, None)
    last = float(usable[-1])
    near = (alphas > last / DECADE * (1 + 1e-9)) & (alphas <= last) & ~small
    if not near.any():
        return NearTheEnd(last, (), tuple(map(float, alphas[small])), (), None, None)
    seeds = raw.shape[1]
    chosen = []
    for seed in range(seeds):
        others = [each for each in range(seeds) if each != seed or seeds == 1]
        chosen.append(int(np.argmax(np.where(near, np.median(np.log(borders[:, others]), axis=1), -np.inf))))
    found = borders[chosen, range(seeds)]
    return NearTheEnd(
        last,
        tuple(map(float, alphas[near])),
        tuple(map(float, alphas[small])),
        tuple(float(alphas[each]) for each in chosen),
        compare(found, np.clip(result.seed_borders(0.0, criterion), *ends)),
        compare(found, np.exp(np.median(np.log(borders[small]), axis=0))),
    )


class Fall(NamedTuple):
    """How a border falls with α.

    Attributes:
        exponent: of the steep part, NaN where it has fewer than three α.
        level: of the flat part, the median border of the first decade of α.
        alphas: those of the steep part.
        expected: the exponent that the same line has on level/(1 + α/α₀), the form of the theory's bound, where α₀ is
            where the border is half the level: on a finite range it is not quite −1.
    """

    exponent: float
    level: float
    alphas: tuple[float, ...]
    expected: float


def steep_part(alphas: Sequence[float] | Array, borders: Sequence[float] | Array, outer_lrs: Array) -> Fall:
    """The exponent with which a border falls, without its flat part.

    The positive penalty's bound, 2/(λ + αλ²), is flat up to α = 1/λ and falls like 1/α far beyond; a line through all
    of it has an exponent that says how much of the flat part was in the grid. The steep part are the α whose border is
    below **half the level** of the flat part, which is where 2/(λ + αλ²) has α > 1/λ, and above the smallest β of the
    grid. The line is that of least squares in logarithms.

    Args:
        alphas: ascending.
        borders: at each, 0 and ∞ beyond the grid.
        outer_lrs: the grid of β.

    Example:
        >>> alphas = np.array([0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0])
        >>> fall = steep_part(alphas, np.minimum(4.0, 20.0 / alphas), np.array([1e-3, 10.0]))
        >>> round(fall.exponent, 6), fall.level, fall.alphas
        (-1.0, 4.0, (100.0, 1000.0, 10000.0))
    """
    x, y = np.asarray(alphas, dtype=np.float64), np.asarray(borders, dtype=np.float64)
    bottom, top = float(outer_lrs[0]), float(outer_lrs[-1])
    level = float(np.median(np.clip(y[x <= DECADE * x[0] * (1 + 1e-9)], bottom, top)))
    steep = (y < level / 2) & (y > bottom)
    some = x[steep]
    if len(some) < 3:
        return Fall(math.nan, level, tuple(map(float, some)), math.nan)
    slope = float(np.polyfit(np.log(some), np.log(y[steep]), 1)[0])
    first = int(np.flatnonzero(steep)[0])
    if first == 0:
        return Fall(slope, level, tuple(map(float, some)), math.nan)
    before, after = min(y[first - 1], top), y[first]
    share = math.log(2 * before / level) / math.log(before / after)  # in logarithms, of the step over half the level
    knee = float(x[first - 1] * (x[first] / x[first - 1]) ** share)
    expected = float(np.polyfit(np.log(some), -np.log1p(some / knee), 1)[0])
    return Fall(slope, level, tuple(map(float, some)), expected)
