"""The condition at frames to be made: blends against NumPy's interpolation, copies beyond the given frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.models import condition
from nuwaxl_jax.models import mtd_unet


def waves(shapes):
    """Parameters of these shapes, none of them zero."""
    return jax.tree.map(lambda s: 0.3 * np.sin(1.0 + np.arange(s.size, dtype=np.float32)).reshape(s.shape), shapes)


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
    params = waves(jax.eval_shape(plain.init, jax.random.key(1), cond, t, text, cond, mask, level))
    one, other = (jax.jit(module.apply)(params, cond, t, text, cond, mask, level) for module in (plain, filled))
    np.testing.assert_array_equal(one[0], other[0])
    assert float(jnp.abs(one[1] - other[1]).max()) > 1e-3
    blended = jax.jit(plain.apply)(params, cond, t, text, condition.fill(cond, mask), mask, level)
    np.testing.assert_allclose(other[1], blended[1], atol=1e-6)


def test_how_far_a_frame_is_from_the_line():
    given = np.zeros((4, 7, 2, 2, 1), np.float32)
    given[0, [0, 6]] = given[1, [0, 6]] = 1  # two ends, at a level with a line and at one without
    given[2, 0] = 1  # the sliding window: nothing beyond the first frame
    std = np.asarray(condition.line_std(jnp.asarray(given), jnp.array([0.5, 1.0, 0.5, 0.5])))
    assert std.shape == (4, 7, 1, 1, 1)
    parabola = 0.5 * (1 - (np.arange(7) / 3 - 1) ** 2)
    np.testing.assert_allclose(std[0].ravel(), parabola, atol=1e-6)
    np.testing.assert_array_equal(std[1].ravel(), 1.0)
    np.testing.assert_array_equal(std[2].ravel(), [0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(std[3].ravel(), 1.0)


def test_the_network_starts_from_the_line_at_its_levels_alone(toons_presets):
    config = toons_presets.get_config("tiny")
    config.diffusion.line_std = (1.0, 1.0, 0.5)
    networks = networks_lib.build(config)
    config.diffusion.line_std = (1.0, 1.0, 1.0)
    without = networks_lib.build(config)
    params = waves(jax.eval_shape(networks.init_denoiser, jax.random.key(0)))
    shape = (3, 4, *networks.latent_shape)
    x_t, cond = jax.random.normal(jax.random.key(1), shape), jax.random.normal(jax.random.key(2), shape)
    mask = jnp.zeros((*shape[:-1], 1)).at[:, jnp.array([0, 3])].set(1.0)
    text = jax.random.normal(jax.random.key(3), (3, 4, 5, config.text.width))
    t, level = jnp.array([5, 20, 49]), jnp.array([0, 1, 2])
    one, other = (jax.jit(n.denoise)(params, x_t, t, text, mask * cond, mask, level) for n in (networks, without))
    np.testing.assert_array_equal(one[:2], other[:2])
    x0 = networks.diffusion.to_x0(x_t, t, one)[2]
    np.testing.assert_allclose(x0[jnp.array([0, 3])], cond[2, jnp.array([0, 3])], atol=1e-5)  # given frames are known
    network, line = networks.diffusion.to_x0(x_t, t, other)[2, 1], (2 * cond[2, 0] + cond[2, 3]) / 3
    # All is noise at the last step (zero terminal SNR): 4 / 9 of the network, the rest from the line.
    np.testing.assert_allclose(x0[1], 4 / 9 * network + 5 / 9 * line, atol=1e-5)
