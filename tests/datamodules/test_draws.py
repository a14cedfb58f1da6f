"""Counter-based random numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_gp.datamodules.episodes.draws import choose, uniforms


@given(seed=st.integers(0, 2**70), indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_row_depends_on_its_index_alone(seed, indices):
    together = uniforms(seed, 1, np.array(indices), 6)
    assert (together >= 0).all()
    assert (together < 1).all()
    for row, index in zip(together, indices, strict=True):
        np.testing.assert_array_equal(row, uniforms(seed, 1, np.array([index]), 6)[0])
        np.testing.assert_array_equal(row[:3], uniforms(seed, 1, np.array([index]), 3)[0])


def test_seed_stream_and_index_all_matter():
    variants = [uniforms(s, t, np.array([i]), 4)[0] for s in range(3) for t in range(3) for i in range(3)]
    assert len({v.tobytes() for v in variants}) == 27


@pytest.mark.parametrize("axis", ["within", "across", "seeds"])
def test_numbers_are_uniform_and_uncorrelated(axis):
    if axis == "within":
        sample = uniforms(0, 0, np.arange(2), 50_000)
    elif axis == "across":
        sample = uniforms(0, 0, np.arange(50_000), 2).T
    else:
        sample = np.array([uniforms(seed, 0, np.arange(2), 1)[:, 0] for seed in range(5_000)]).T
    assert stats.kstest(sample[0], "uniform").pvalue > 1e-3
    size = sample.shape[1]
    assert abs(np.corrcoef(sample)[0, 1]) < 4 / np.sqrt(size)
    assert abs(np.corrcoef(sample[0, :-1], sample[0, 1:])[0, 1]) < 4 / np.sqrt(size)


@given(data=st.data(), count=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_choose_has_no_repeats_and_stays_in_the_population(data, count):
    populations = np.array(data.draw(st.lists(st.integers(count, 30), min_size=1, max_size=6)))
    numbers = np.random.default_rng(0).random((len(populations), count))
    numbers[0] = 1 - 2.0**-53  # the largest number that can be drawn
    for row, population in zip(choose(numbers, populations), populations, strict=True):
        assert len(set(row.tolist())) == count
        assert row.min() >= 0
        assert row.max() < population


def test_choose_takes_every_ordered_choice_equally_often():
    picks = choose(uniforms(3, 0, np.arange(60_000), 2), 4)
    _, counts = np.unique(picks[:, 0] * 4 + picks[:, 1], return_counts=True)
    assert len(counts) == 12
    assert stats.chisquare(counts).pvalue > 1e-3
