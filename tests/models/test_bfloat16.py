"""bfloat16 compute: near float32, with statistics, softmax, time, outputs and losses in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.models import layers
from nuwaxl_jax.models import mtd_unet
from nuwaxl_jax.models import text_encoder
from nuwaxl_jax.models import tklvae
from nuwaxl_jax.training import tasks

HALF = jnp.bfloat16
STEP = 2.0**-8  # relative distance of neighbouring bfloat16 numbers, at most twice this


def _filled(init, *inputs):
    """Parameters of `init`'s tree with no zeros: every branch speaks. No compilation."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        values = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(values + (leaf.ndim == 1), jnp.float32)

    params = jax.eval_shape(init, jax.random.key(0), *inputs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    return jax.tree.map(fill, params)


def _relative(one, other):
    """Root mean square of the difference over that of `other`."""
    one, other = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64) for tree in (one, other)
    )
    return np.sqrt(np.mean((one - other) ** 2) / np.mean(other**2))


def _rounded(x):
    """Share of numbers that bfloat16 holds exactly: all of them, where an output was computed in it."""
    return float(jnp.mean(x == x.astype(HALF).astype(jnp.float32)))


UNET = dict(out_channels=3, channels=16, channel_mults=(1,), num_heads=2, prompt_levels=(True,), num_levels=2)
VAE = dict(channels=8, channel_mults=(1, 2), latent_channels=3)
TEXT = dict(vocab_size=32, max_tokens=8, width=16, num_layers=2, num_heads=2)


def _unet_inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    x_t, cond = (jax.random.normal(key, (2, 4, 4, 4, 3)) for key in keys[:2])
    mask = jnp.zeros((2, 4, 4, 4, 1)).at[:, jnp.array([0, -1])].set(1.0)
    text = jax.random.normal(keys[2], (2, 4, 5, 6))
    return x_t, jnp.array([3, 700]), text, cond * mask, mask, jnp.array([0, 1])


def _video():
    return jax.random.uniform(jax.random.key(7), (1, 3, 8, 8, 3), minval=-1.0)


def _tokens():
    return jax.random.randint(jax.random.key(1), (6, 8), 0, 32)


@pytest.mark.parametrize(
    "module,fields,inputs,rounded",
    [
        (mtd_unet.MTDUNet, UNET, _unet_inputs, 0.05),
        (tklvae.TKLVAE, VAE, lambda: (_video(),), 0.05),
        (text_encoder.TextEncoder, TEXT, lambda: (_tokens(),), 1.0),
    ],
)
def test_networks_stay_near_float32(module, fields, inputs, rounded):
    """Parameters, outputs and gradients are float32, and near; predictions, pixels and posteriors are not rounded."""
    exact, half = (module(**fields, dtype=dtype) for dtype in (jnp.float32, HALF))
    inputs = inputs()
    params = _filled(half.init, *inputs)

    def run(network):
        def loss(params):
            out = network.apply(params, *inputs)
            return sum(jnp.mean(jnp.square(x)) for x in jax.tree.leaves(out)), out

        (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return out, gradient

    (out, gradient), (wanted, wanted_gradient) = run(half), run(exact)
    for leaf in jax.tree.leaves((out, gradient)):
        assert leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all())
    assert max(map(_rounded, jax.tree.leaves(out))) <= rounded
    error, gradient_error = _relative(out, wanted), _relative(gradient, wanted_gradient)
    assert 1e-4 < error < 0.03 and gradient_error < 0.1, (error, gradient_error)


def test_time_is_embedded_in_float32():
    """In bfloat16 the steps 996 to 1000 would be one number."""
    exact, half = (mtd_unet.MTDUNet(**UNET, dtype=dtype) for dtype in (jnp.float32, HALF))
    params = _filled(exact.init, *_unet_inputs())
    t = jnp.arange(996, 1001)
    embedded = half.apply(params, t, method="_time")
    np.testing.assert_array_equal(embedded, exact.apply(params, t, method="_time"))
    assert embedded.dtype == jnp.float32 and float(jnp.abs(jnp.diff(embedded, axis=0)).max(1).min()) > 1e-3
    assert layers.sinusoid(t.astype(HALF), 16).dtype == jnp.float32


def _far_from_zero(shape):
    """bfloat16 numbers of standard deviation 4 around 120, where a bfloat16 sum of them is off by far more than 4."""
    return (120.0 + 4.0 * jax.random.normal(jax.random.key(0), shape)).astype(HALF)


def test_group_norm_takes_its_moments_in_float32():
    x = _far_from_zero((2, 16, 16, 16))
    groups = layers.num_groups(16)
    module = layers.GroupNorm(dtype=HALF)
    params = module.init(jax.random.key(0), x)
    grouped = np.asarray(x, np.float64).reshape(2, -1, groups, 16 // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    wanted = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    out = module.apply(params, x)
    assert out.dtype == HALF
    np.testing.assert_allclose(np.asarray(out, np.float64), wanted, rtol=STEP, atol=2e-3)
    # What this would be with bfloat16 moments: nothing like it.
    mean_of_squares = jnp.mean(jnp.square(x), axis=(1, 2), dtype=HALF).astype(jnp.float32)
    rough = mean_of_squares - jnp.square(jnp.mean(x, axis=(1, 2), dtype=HALF).astype(jnp.float32))
    assert float(jnp.abs(rough / 16.0 - 1.0).max()) > 0.5


def test_layer_norm_takes_its_moments_in_float32():
    x = _far_from_zero((8, 256))
    module = nn.LayerNorm(epsilon=1e-5, dtype=HALF)  # as the transformers have it
    exact = np.asarray(x, np.float64)
    wanted = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    out = module.apply(module.init(jax.random.key(0), x), x)
    assert out.dtype == HALF
    np.testing.assert_allclose(np.asarray(out, np.float64), wanted, rtol=STEP, atol=2e-3)


def test_softmax_is_taken_in_float32():
    """Logits from 283 in steps of 0.35: there bfloat16 numbers are 2 apart."""
    q = jnp.ones((1, 8), HALF)  # one head of 8
    k = jnp.zeros((8, 8), HALF).at[:, 0].set(800.0).at[:, 1].set(jnp.arange(8, dtype=HALF))
    v = jax.random.normal(jax.random.key(0), (8, 8)).astype(HALF)
    logits = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T / np.sqrt(8)
    weights = np.exp(logits - logits.max())
    wanted = (weights / weights.sum()) @ np.asarray(v, np.float64)
    out = layers.attention(q, k, v, 1)
    assert out.dtype == HALF
    np.testing.assert_allclose(np.asarray(out, np.float64), wanted, atol=2 * STEP)
    rough = np.exp(np.asarray(jnp.asarray(logits, HALF), np.float64) - logits.max())
    assert np.abs((rough / rough.sum()) @ np.asarray(v, np.float64) - wanted).max() > 20 * STEP


@pytest.mark.parametrize("stage", ["vae", "denoiser"])
def test_a_training_loss_is_near_and_it_and_its_gradient_are_float32(toons_presets, stage):
    config = toons_presets.get_config("tiny")
    rng = np.random.default_rng(0)
    batch = dict(
        frames=jnp.asarray(rng.integers(0, 256, (2, 4, 16, 16, 3)), jnp.uint8),
        tokens=jnp.asarray(rng.integers(3, 9, (2, 4, config.text.max_tokens)), jnp.int32),
        level=jnp.array([0, 1], jnp.int32),
    )
    networks = networks_lib.build(config)
    vae, latent = _filled(networks.init_vae), jnp.ones(networks.latent_shape[-1])
    frozen = None if stage == "vae" else dict(vae=vae, latent_shift=0.0 * latent, latent_scale=latent)
    params = vae if stage == "vae" else _filled(networks.init_denoiser)
    losses = []
    for dtype in ("float32", "bfloat16"):
        config.train[stage].dtype = dtype
        task = tasks.build(config, stage)
        arguments = (
            params,
            frozen,
            {name: batch[name] for name in task.fields},
            jax.random.split(jax.random.key(2), 2),
        )
        for leaf in jax.tree.leaves(jax.eval_shape(jax.grad(lambda *a: task.loss(*a)[0]), *arguments)):
            assert leaf.dtype == jnp.float32
        losses.append(jax.jit(task.loss)(*arguments)[0])
    assert losses[1].dtype == jnp.float32 and 0 < abs(float(losses[1] / losses[0]) - 1) < 0.02
