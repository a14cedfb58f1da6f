"""The paired test and the exponent on borders that are made here."""

import itertools
import math

import numpy as np
import pytest

from lightning_gp.experiments.border_tests import compare, near_the_end, steep_part
from lightning_gp.experiments.map_findings import fallen, gone, larger_near_the_end
from lightning_gp.trainability import Outcome, TrainabilityResult
from lightning_gp.trainability.storage import cells_of

ALPHAS = [float(alpha) for alpha in np.geomspace(1e-4, 1.0, 13)]
BETAS = [float(beta) for beta in np.geomspace(1e-2, 1e1, 46)]
STEP = BETAS[1] / BETAS[0]


def made(border, seeds=5, alphas=ALPHAS):
    """A map whose cells diverge above ``border(seed, α)``."""
    header = {
        "seeds": list(range(seeds)),
        "inner_lrs": list(alphas),
        "outer_lrs": BETAS,
        "zero_inner_lr": True,
        "settings": {"iterations": 1},
    }
    cells = {
        cell: Outcome(None if cell.outer_lr > border(cell.seed, cell.inner_lr) else 1.0, 2.0, 1)
        for cell in cells_of(header)
    }
    return TrainabilityResult(header, cells)


def noise(seed, alpha):
    return float(np.exp(0.3 * np.random.default_rng([seed, round(1e6 * alpha)]).normal()))


def bump(seed, alpha, height):
    """1 at small α, ``height`` at α = 0.1, nothing beyond 0.2."""
    return 0.0 if alpha > 0.2 else (height if alpha > 0.05 else 1.0) * (1 + 0.1 * seed)


def test_p_is_the_share_of_sign_patterns():
    ratios = np.array([1.5, 0.9, 2.0, 1.2, 1.01])
    logs = np.log(ratios)
    patterns = itertools.product((1, -1), repeat=5)
    share = np.mean([np.dot(pattern, logs) >= logs.sum() - 1e-12 for pattern in patterns])
    found = compare(ratios * 3, np.full(5, 3.0))
    assert found.p == share
    assert found.ratios == pytest.approx(ratios)
    assert compare([1.0] * 5, [1.0] * 5).p == 1.0
    with pytest.raises(ValueError, match="positive numbers"):
        compare([1.0, 0.0], [1.0, 1.0])


def test_many_pairs_are_drawn_instead():
    generator = np.random.default_rng(1)
    logs = generator.normal(size=17) + 0.2
    exact = np.mean(np.array(list(itertools.product((1, -1), repeat=17))) @ logs >= logs.sum() - 1e-9)
    assert compare(np.exp(logs), np.ones(17)).p == pytest.approx(exact, abs=4 * math.sqrt(exact / 1e5))
    assert compare(np.full(40, 2.0), np.ones(40)).p == 1e-5


def test_under_no_difference_small_p_is_rare():
    generator = np.random.default_rng(0)
    found = [compare(*np.exp(generator.normal(size=(2, 6)))).p for _ in range(400)]
    assert np.mean(np.array(found) <= 0.05) < 0.085  # 3/64 expected, a standard error of 1 %
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("height", "holds"), [(2.0, True), (1.0, False), (0.5, False)])
def test_a_bump_near_the_end_is_found_and_nothing_else(height, holds):
    test = near_the_end(made(lambda seed, alpha: bump(seed, alpha, height)))
    assert test.last == pytest.approx(0.1)
    assert min(test.near) > 0.01
    assert max(test.small) == pytest.approx(1e-3)
    assert test.holds is holds
    if height == 2.0:  # 2 up to a step of the grid of β, in each seed
        assert test.chosen == (pytest.approx(0.1),) * 5
        for each in (test.against_zero, test.against_small):
            assert np.log(each.ratios) == pytest.approx(np.log(2), abs=np.log(STEP))
            assert each.p == 1 / 32


def test_a_maximum_of_noise_is_no_gain():
    """The largest of many noisy columns is above the one at α = 0: what the test must not take for a gain."""
    noisy = [made(lambda seed, alpha, i=i: 0.0 if alpha > 0.2 else noise(seed + 10 * i, alpha)) for i in range(8)]
    biased = [
        float(np.median([max(m.of_seed(s).seed_borders(a)[0] for a in ALPHAS) / m.of_seed(s).seed_borders(0.0)[0]
                         for s in range(5)]))
        for m in noisy[:3]
    ]  # fmt: skip
    assert min(biased) > 1.2
    assert sum(near_the_end(each).holds for each in noisy) <= 1


def test_a_gain_in_one_seed_of_five_does_not_hold():
    lucky = made(lambda seed, alpha: bump(0, alpha, 5.0 if seed == 2 else 1.0))
    assert near_the_end(lucky).holds is False


def test_a_gain_over_alpha_zero_alone_does_not_hold():
    """As where α = 0 has bad luck, and the small α, the same problem, have not."""
    test = near_the_end(made(lambda seed, alpha: 0.5 if alpha == 0 else bump(seed, alpha, 1.0)))
    assert (test.against_zero.larger, test.against_small.larger, test.holds) == (True, False, False)


def test_few_seeds_or_no_alpha_decide_nothing():
    finding, numbers = larger_near_the_end(made(lambda seed, alpha: bump(seed, alpha, 2.0), seeds=4), "paper")
    assert (finding.agrees, numbers["holds"]) == (None, None)
    assert "a test needs 5 seeds" in finding.found
    assert near_the_end(made(lambda seed, alpha: 0.0)).holds is None
    small = made(lambda seed, alpha: 1.0, alphas=[0.1, 0.2])
    assert "the grid has no other α near it" in larger_near_the_end(small, "paper")[0].found
    with pytest.raises(ValueError, match="A finished map"):
        near_the_end(TrainabilityResult(small.header, {}))


def test_gone_is_the_opposite():
    agrees = [gone(made(lambda seed, alpha, h=h: bump(seed, alpha, h)))[0].agrees for h in (2.0, 1.0, 0.5)]
    assert agrees == [False, True, True]


@pytest.mark.parametrize("knee", [0.003, 0.3, 3.0])
def test_exponent_of_the_theorys_bound(knee):
    """level/(1 + α/α₀): flat below α₀, −1 above; the mixture of both depends on the grid, the steep part does not."""
    alphas = np.geomspace(1e-3, 1e3, 19)
    borders = 5.0 / (1 + alphas / knee)
    level = float(np.median(borders[alphas <= 1e-2]))
    fall = steep_part(alphas, borders, np.array([1e-9, 1e3]))
    assert fall.level == level
    assert fall.alphas == tuple(alphas[borders < level / 2])
    slopes = np.diff(np.log(borders)) / np.diff(np.log(alphas))
    assert slopes.min() <= fall.exponent <= slopes[np.flatnonzero(borders < level / 2)[0] - 1]
    assert -1 < fall.exponent < -0.85
    assert fall.expected == pytest.approx(fall.exponent, abs=0.03)
    mixed = float(np.polyfit(np.log(alphas), np.log(borders), 1)[0])
    assert abs(mixed) < abs(fall.exponent)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_a_power_law_behind_a_flat_part_is_exact(power):
    alphas = np.geomspace(1e-2, 1e4, 25)
    borders = 4.0 * np.minimum(1.0, alphas**-power)
    assert steep_part(alphas, borders, np.array([1e-12, 1e3])).exponent == pytest.approx(-power)
    cut = steep_part(alphas, np.where(borders > 1e-3, borders, 0.0), np.array([1e-3, 1e3]))
    assert cut.exponent == pytest.approx(-power)  # what is below the grid is left out
    assert max(cut.alphas) < 1e4 or power == 0.5


def test_what_does_not_fall_has_no_exponent():
    fall = steep_part([0.1, 1.0, 10.0, 100.0], [2.0, 2.0, math.inf, 2.0], np.array([0.1, 9.0]))
    assert math.isnan(fall.exponent)
    finding, numbers = fallen(made(lambda seed, alpha: 1.0), "paper", "diverged")
    assert (finding.agrees, numbers["exponent"]) == (False, None)
    assert "too few α" in finding.found


def test_a_fall_in_words():
    falling = made(lambda seed, alpha: (1 + 0.1 * seed) / (1 + alpha / 3e-3))
    finding, numbers = fallen(falling, "paper", "diverged")
    assert finding.agrees
    assert numbers["exponent"] == pytest.approx(numbers["exponent_of_the_theorys_form_there"], abs=0.05)
    assert numbers["exponent"] < -0.8
    assert len(numbers["exponent_by_seed"]) == 5
    assert "over seeds" in finding.found
