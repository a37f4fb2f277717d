"""Which timesteps are trained."""

import jax
import numpy as np
import pytest

from nuwaxl_jax.training import draws


def _keys():
    return jax.random.split(jax.random.key(3), 40_000)


def test_without_a_shift_timesteps_are_uniform():
    t = np.asarray(draws.timesteps(_keys(), 1000))
    assert t.min() >= 0 and t.max() <= 999 and t.dtype == np.int32
    assert np.histogram(t, 10, (0, 1000))[0] == pytest.approx(4000, rel=0.06)


@pytest.mark.parametrize("shift", [0.5, 2.0, 5.0])
def test_shifted_timesteps_have_the_density_of_the_map(shift):
    t = np.asarray(draws.timesteps(_keys(), 1000, shift))
    assert t.min() >= 0 and t.max() <= 999
    edges = np.linspace(0, 1, 11)
    before = edges / (shift - (shift - 1) * edges)  # the inverse map: how much of u lies below
    assert np.histogram(t, 10, (0, 1000))[0] / len(t) == pytest.approx(np.diff(before), abs=0.01)
    assert np.median(t) == pytest.approx(1000 * shift / (1 + shift), abs=12)
