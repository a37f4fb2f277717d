"""Layers against plain formulations of the same mathematics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import layers


def _plain_conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_conv2d_equals_the_plain_convolution_at_every_size(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(3, size, size, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(layers.conv2d(x, kernel), _plain_conv(x, kernel), atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_upsample_conv_equals_repeat_then_convolution(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, size, size + 1, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 5, 7)).astype(np.float32)
    expected = _plain_conv(x.repeat(2, 1).repeat(2, 2), kernel)
    np.testing.assert_allclose(layers.upsample_conv(x, kernel), expected, atol=1e-4)


def test_group_norm_is_per_item_and_equals_the_definition():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, size=(4, 5, 6, 16)).astype(np.float32)
    scale, bias = rng.normal(size=16).astype(np.float32), rng.normal(size=16).astype(np.float32)
    params = {"params": {"scale": scale, "bias": bias}}
    groups = layers.num_groups(16)
    assert groups == 8
    grouped = x.reshape(4, -1, groups, 2).astype(np.float64)
    normed = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-6)
    expected = normed.reshape(x.shape) * scale + bias
    np.testing.assert_allclose(layers.GroupNorm().apply(params, x), expected, atol=1e-4)
    x[1:] *= 50.0  # the other items change, this one does not
    np.testing.assert_allclose(layers.GroupNorm().apply(params, x)[0], expected[0], atol=1e-4)


@pytest.mark.parametrize(
    "channels,groups", [(320, 32), (128, 32), (512, 32), (48, 8), (16, 8), (3, 1), (5, 1), (10, 1)]
)
def test_number_of_groups_divides(channels, groups):
    assert layers.num_groups(channels) == groups and channels % groups == 0


def test_attention_equals_softmax_attention_with_a_mask():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 8)).astype(np.float32) for n in (5, 6, 6))
    mask = rng.random((5, 6)) < 0.7
    mask[:, 0] = True
    out = np.zeros((2, 5, 8))
    for b in range(2):
        for head in range(2):
            cut = slice(4 * head, 4 * head + 4)
            logits = np.where(mask, q[b, :, cut] @ k[b, :, cut].T / 2.0, -np.inf)
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            out[b, :, cut] = weights @ v[b, :, cut]
    np.testing.assert_allclose(layers.attention(q, k, v, 2, mask), out, atol=1e-5)


def test_temporal_conv_is_exactly_the_identity_at_init_and_a_correlation_over_frames_otherwise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 3, 4)).astype(np.float32)
    module = layers.TemporalConv()
    params = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(module.apply(params, x), x)
    kernel = rng.normal(size=(3, 4, 4)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    expected = sum(padded[:, tap : tap + 5] @ kernel[tap] for tap in range(3))
    out = module.apply({"params": {"kernel": kernel, "bias": np.zeros(4, np.float32)}}, x)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_temporal_attention_is_exactly_the_identity_at_init():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 3, 8))
    module = layers.TemporalAttention(num_heads=2)
    params = module.init(jax.random.key(1), x)
    np.testing.assert_array_equal(module.apply(params, x), x)


def test_bfloat16_compute_stays_close_and_parameters_stay_float32():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    exact, half = layers.Conv2D(8), layers.Conv2D(8, dtype=jnp.bfloat16)
    params = half.init(jax.random.key(1), x)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    out = half.apply(params, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact.apply(params, x), atol=0.05)
