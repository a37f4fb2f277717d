"""Attention's formulations agree, and each platform gets its own when a program is lowered for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import layers


def _inputs(dtype, queries=80, keys=64, channels=32, lead=(2, 3)):
    shapes = ((*lead, queries, channels), (*lead, keys, channels), (*lead, keys, channels))
    return tuple(jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes))


def _jaxs(q, k, v, num_heads, mask=None, implementation="xla"):
    """`jax.nn.dot_product_attention` on our shapes."""
    split = (x.reshape(-1, x.shape[-2], num_heads, x.shape[-1] // num_heads) for x in (q, k, v))
    return jax.nn.dot_product_attention(*split, mask=mask, implementation=implementation).reshape(q.shape)


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_ours_is_jaxs_and_so_is_its_gradient(dtype, tolerance, masked):
    q, k, v = _inputs(dtype)
    mask = (jax.random.uniform(jax.random.key(9), (80, 64)) < 0.5).at[:, 0].set(True) if masked else None

    def loss(attention, *arrays):
        out = attention(*arrays, 4, mask if attention is layers.attention or mask is None else mask[None, None])
        return jnp.sum(jnp.sin(jnp.arange(out.size)).reshape(out.shape) * out.astype(jnp.float32)), out

    results = [
        jax.value_and_grad(functools.partial(loss, f), argnums=(0, 1, 2), has_aux=True)(q, k, v)
        for f in (layers.attention, _jaxs)
    ]
    ((_, ours), our_gradient), ((_, theirs), their_gradient) = results
    assert ours.dtype == dtype
    for one, other in zip((ours, *our_gradient), (theirs, *their_gradient)):
        scale = float(jnp.abs(other.astype(jnp.float32)).max())
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), atol=tolerance * scale)


@pytest.mark.parametrize(
    "dtype,queries,keys,channels,suits",
    [
        (jnp.bfloat16, 80, 64, 32, True),
        (jnp.float16, 1024, 77, 320, True),  # Stable Diffusion's first level: heads of 80
        (jnp.float32, 80, 64, 32, False),
        (jnp.bfloat16, 16, 16, 32, False),  # frames of a segment
        (jnp.bfloat16, 80, 63, 32, False),
        (jnp.bfloat16, 80, 64, 24, False),  # heads of 6
        (jnp.bfloat16, 80, 64, 1024, False),  # heads of 256
    ],
)
def test_what_cudnn_is_asked_for(dtype, queries, keys, channels, suits):
    shape = (2, queries, channels)
    q, k = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((2, keys, channels), dtype)
    assert layers._suits_cudnn(q, k, 4) == suits


def test_the_platform_lowered_for_decides_and_not_the_one_jax_runs_on(monkeypatch):
    """With CUDA at hand: its kernel (a sine stands in for it) in programs for CUDA, none of it in those for others."""
    monkeypatch.setattr(layers, "_has_cudnn", lambda: True)
    monkeypatch.setattr(layers, "cudnn_attention", lambda q, k, v, num_heads: jnp.sin(q))
    attend = jax.jit(lambda *arrays: layers.attention(*arrays, 4))

    def text(platform, dtype=jnp.bfloat16, **sizes):
        return attend.trace(*_inputs(dtype, **sizes)).lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.sine" in text("cuda") and "stablehlo.exponential" not in text("cuda")
    for platform in ("cpu", "tpu", "rocm"):
        assert "stablehlo.sine" not in text(platform) and "stablehlo.exponential" in text(platform)
    assert "stablehlo.sine" not in text("cuda", dtype=jnp.float32)
    assert "stablehlo.sine" not in text("cuda", queries=16, keys=16)
    # And the gradient finds its way through the choice.
    q, k, v = _inputs(jnp.bfloat16)
    chosen = jax.grad(lambda q: layers.attention(q, k, v, 4).astype(jnp.float32).sum())(q)
    plain = jax.grad(lambda q: layers.plain_attention(q, k, v, 4).astype(jnp.float32).sum())(q)
    np.testing.assert_array_equal(chosen, plain)


def test_long_sequences_go_by_chunks_to_the_same_result():
    q, k, v = _inputs(jnp.float32, queries=96, keys=40)

    def loss(attention, *arrays):
        out = attention(*arrays, 4)
        return jnp.sum(jnp.sin(jnp.arange(out.size)).reshape(out.shape) * out), out

    chunked = functools.partial(layers.chunked_attention, chunk=32)
    (ours, plain) = (
        jax.value_and_grad(functools.partial(loss, f), argnums=(0, 1, 2), has_aux=True)(q, k, v)
        for f in (chunked, layers.plain_attention)
    )
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain)):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))

    def text(queries, keys):
        return str(jax.make_jaxpr(lambda *a: layers.attention(*a, 4))(*_inputs(jnp.float32, queries, keys, 8)))

    assert "scan" in text(1024, 1024)  # 32 x 32 latents
    for queries, keys in ((256, 256), (1024, 77), (16, 16), (1025, 1025)):
        assert "scan" not in text(queries, keys)


@pytest.mark.skipif(not layers._has_cudnn(), reason="needs an NVIDIA GPU")
def test_cudnns_is_the_plain_one():
    q, k, v = _inputs(jnp.bfloat16, queries=256, keys=77, channels=160)

    def loss(attention, *arrays):
        return jnp.sum(jnp.square(attention(*arrays, 4).astype(jnp.float32)))

    ours, plain = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f), argnums=(0, 1, 2)))(q, k, v)
        for f in (layers.attention, layers.plain_attention)
    )
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-2)
    for one, other in zip(ours[1], plain[1]):
        one, other = (x.astype(jnp.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=2e-2 * float(jnp.abs(other).max()))
