"""Confidence intervals: around the value, the same each time, as wide as normal theory says, narrow for pairs."""

import numpy as np
import pytest

from nuwaxl_jax.evaluation import frechet
from nuwaxl_jax.evaluation import intervals


def _width(interval):
    return interval[1] - interval[0]


def _sets(n=40, d=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), 1.5 * rng.normal(size=(n, d)) + 0.3


def test_the_value_is_inside_also_of_a_biased_statistic():
    one, other = _sets(12, 20)  # few samples of many features, where drawn sets are far from the whole
    value = frechet.distance_of_samples(one, other)
    low, high = intervals.of(frechet.distance_of_samples, one, other)
    assert low < value < high
    low, high = intervals.of_mean(one[:, 0])
    assert low < one[:, 0].mean() < high


def test_the_same_each_time_and_another_of_another_seed():
    sets = _sets()
    first = intervals.of(frechet.distance_of_samples, *sets, seed=3)
    assert intervals.of(frechet.distance_of_samples, *sets, seed=3) == first
    assert intervals.of(frechet.distance_of_samples, *sets, seed=4) != first
    assert intervals.of_mean(sets[0][:, 0]) == intervals.of_mean(sets[0][:, 0])


@pytest.mark.parametrize("n", [50, 400, 3200])
def test_of_a_mean_as_wide_as_normal_theory_says(n):
    values = np.random.default_rng(n).normal(2.0, 3.0, size=n)
    expected = 2 * 1.96 * values.std(ddof=1) / np.sqrt(n)
    widths = [_width(intervals.of_mean(values, seed=seed)) for seed in range(8)]
    assert np.mean(widths) == pytest.approx(expected, rel=0.12)
    assert max(widths) < 1.4 * expected and min(widths) > 0.6 * expected


def test_videos_are_drawn_and_not_their_frames():
    """Sixteen equal frames of a video say as much as one."""
    videos = np.random.default_rng(1).normal(size=(60, 1))
    mean = lambda x: float(x.mean())  # noqa: E731
    assert intervals.of(mean, np.repeat(videos, 16, axis=1)) == pytest.approx(intervals.of(mean, videos))


def test_pairs_of_almost_equal_videos_are_told_apart_more_surely():
    one, _ = _sets(60)
    other = one + 0.01 * np.random.default_rng(2).normal(size=one.shape) + 0.1
    widths = [_width(intervals.of(frechet.distance_of_samples, one, other, paired=paired)) for paired in (True, False)]
    assert 0 < widths[0] < 0.1 * widths[1]


def test_paired_sets_are_drawn_alike():
    one = np.arange(20.0)
    seen = []

    def statistic(a, b):
        seen.append((a, b))
        return float((a - b).mean())

    assert intervals.of(statistic, one, one + 3.0, paired=True) == pytest.approx((-3.0, -3.0))
    assert len(seen) == 1 + intervals.REPLICATES
    assert all(np.array_equal(a + 3.0, b) for a, b in seen) and len({a.tobytes() for a, _ in seen}) > 90


def test_too_few_videos_have_no_interval():
    """Of two there is one pair alone to draw from: an interval of no width would say that nothing is uncertain."""
    assert intervals.of(frechet.distance_of_samples, *_sets(4), paired=True) is None
    low, high = intervals.of(frechet.distance_of_samples, *_sets(5), paired=True)
    assert np.isfinite([low, high]).all() and low < high
    assert intervals.of_mean(np.array([1.0])) is None
    assert intervals.rounded(None) is None
    assert intervals.rounded((0.12345678, 2.0)) == [0.123457, 2.0]
