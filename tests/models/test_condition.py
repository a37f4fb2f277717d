"""The condition at frames to be made: blends against NumPy's interpolation, copies beyond the given frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import condition
from nuwaxl_jax.models import mtd_unet


@pytest.mark.parametrize("given", [(0, 6), (0,), (6,), (2, 5), (0, 3, 4, 6), tuple(range(7))])
def test_it_is_numpys_interpolation_held_at_the_ends(given):
    values = np.random.default_rng(0).normal(size=(7, 2, 2, 3)).astype(np.float32)
    mask = np.zeros((1, 7, 2, 2, 1), np.float32)
    mask[:, list(given)] = 1
    out = np.asarray(condition.fill(jnp.asarray(values[None] * mask), jnp.asarray(mask)))[0]
    flat = values.reshape(7, -1)
    wanted = np.stack([np.interp(np.arange(7), given, flat[list(given), i]) for i in range(flat.shape[1])], axis=1)
    np.testing.assert_allclose(out.reshape(7, -1), wanted, atol=1e-6)


def test_given_frames_stay_and_a_clip_with_none_is_left_alone():
    cond = jax.random.normal(jax.random.key(0), (2, 4, 2, 2, 3))  # pixel hand-over: not zero where masked
    mask = jnp.zeros((2, 4, 2, 2, 1)).at[0, jnp.array([0, 3])].set(1.0)
    out = condition.fill(cond, mask)
    np.testing.assert_array_equal(out[0, jnp.array([0, 3])], cond[0, jnp.array([0, 3])])
    np.testing.assert_array_equal(out[1], cond[1])
    assert not np.allclose(out[0, 1], cond[0, 1])


def test_each_level_has_its_own_fill():
    fields = dict(out_channels=3, channels=8, channel_mults=(1, 2), num_heads=2, prompt_levels=(True, True))
    plain = mtd_unet.MTDUNet(**fields, cond_channels=4, num_levels=2)
    filled = mtd_unet.MTDUNet(**fields, cond_channels=4, num_levels=2, condition_fill=("zero", "linear"))
    cond = jax.random.normal(jax.random.key(0), (2, 4, 4, 4, 3))
    mask = jnp.zeros((2, 4, 4, 4, 1)).at[:, jnp.array([0, 3])].set(1.0)
    cond, text, t, level = cond * mask, jnp.ones((2, 4, 5, 6)), jnp.array([3, 700]), jnp.array([0, 1])
    params = plain.init(jax.random.key(1), cond, t, text, cond, mask, level)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.sin(1.0 + jnp.arange(p.size)).reshape(p.shape), params)
    one, other = (module.apply(params, cond, t, text, cond, mask, level) for module in (plain, filled))
    np.testing.assert_array_equal(one[0], other[0])
    assert float(jnp.abs(one[1] - other[1]).max()) > 1e-3
    blended = plain.apply(params, cond, t, text, condition.fill(cond, mask), mask, level)
    np.testing.assert_allclose(other[1], blended[1], atol=1e-6)
