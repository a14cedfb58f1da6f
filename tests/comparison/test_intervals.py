"""Intervals against scipy's tests and against what simulated seeds and episodes are covered by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lightning_gp.comparison import difference, mean

FIRST = [[0.3, 0.9, 0.6, 0.8], [0.7, 0.4, 0.9, 0.95], [0.2, 0.5, 0.55, 0.7]]
SECOND = [[0.2, 0.8, 0.7, 0.6], [0.6, 0.3, 0.9, 0.90], [0.3, 0.1, 0.50, 0.6]]


def means(episodes):
    return [sum(each) / len(each) for each in episodes]


def half(interval):
    return (interval.high - interval.low) / 2


def test_over_seeds_is_students_interval():
    found = mean(means(FIRST))
    assert found.value == pytest.approx(np.mean(means(FIRST)), rel=1e-14)
    assert found.over_seeds == pytest.approx(half(stats.ttest_1samp(means(FIRST), 0).confidence_interval()), rel=1e-12)
    assert found.half_width == found.over_seeds
    assert found.over_episodes is None


def test_over_episodes_of_one_seed_is_that_of_test():
    found = mean(means(FIRST[:1]), FIRST[:1])
    assert found.over_seeds is None
    assert found.half_width == pytest.approx(1.96 * stats.sem(FIRST[0]), rel=1e-12)


def test_over_episodes_of_several_seeds_adds_variances():
    wanted = 1.96 * math.sqrt(sum(stats.sem(each) ** 2 for each in FIRST)) / 3
    assert mean(means(FIRST), FIRST).over_episodes == pytest.approx(wanted, rel=1e-12)


def test_a_paired_difference_is_that_of_the_paired_t_test():
    found = difference(means(FIRST), means(SECOND), FIRST, SECOND)
    test = stats.ttest_rel(means(FIRST), means(SECOND)).confidence_interval()
    assert found.value == pytest.approx((test.low + test.high) / 2, rel=1e-12)
    assert found.over_seeds == pytest.approx(half(test), rel=1e-12)
    pairs = np.array(FIRST) - np.array(SECOND)
    wanted = 1.96 * math.sqrt(sum(stats.sem(each) ** 2 for each in pairs)) / 3
    assert found.over_episodes == pytest.approx(wanted, rel=1e-12)


def test_an_unpaired_difference_is_welchs():
    found = difference(means(FIRST), means(SECOND), FIRST, SECOND, paired=False)
    test = stats.ttest_ind(means(FIRST), means(SECOND), equal_var=False).confidence_interval()
    assert found.over_seeds == pytest.approx(half(test), rel=1e-12)
    wanted = math.hypot(mean(means(FIRST), FIRST).over_episodes, mean(means(SECOND), SECOND).over_episodes)
    assert found.over_episodes == pytest.approx(wanted, rel=1e-12)


def test_paired_values_must_match():
    with pytest.raises(ValueError, match=r"shorter"):
        difference([0.1], [0.2], [[0.1, 0.2]], [[0.1]])


def test_what_diverged_is_no_number():
    assert math.isnan(mean([1.0, math.nan]).value)
    assert math.isinf(difference([1.0, math.inf], [1.0, 2.0]).value)


def test_intervals_over_seeds_cover_what_training_and_episodes_vary():
    """Of 3 seeds that vary by training and by the episodes that each draws: 95 % of the intervals hold the truth."""
    random = np.random.default_rng(0)
    count, seeds, episodes = 3000, 3, 20
    trained = random.normal(0.7, 0.05, (count, seeds, 1))
    drawn = trained + random.normal(0, 0.2, (count, seeds, episodes))
    held = {"over_seeds": 0, "over_episodes": 0}
    for each in drawn:
        found = mean(list(each.mean(1)), each.tolist())
        for name in held:
            held[name] += abs(found.value - 0.7) <= getattr(found, name)
    assert held["over_seeds"] / count == pytest.approx(0.95, abs=0.012)
    assert held["over_episodes"] / count < 0.9
