"""Rematerialisation: same parameters, outputs and gradients, less kept for the backward pass, sampling as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.models import mtd_unet
from nuwaxl_jax.models import remat
from nuwaxl_jax.models import tklvae

POLICIES = ("products", "blocks")


def _networks(presets, policy):
    config = presets.get_config("tiny")
    config.unet.update(channel_mults=(1,), prompt_levels=(True,))
    config.unet.remat = config.vae.remat = policy
    return networks_lib.build(config_lib.validate(config))


def _filled(init):
    """Parameters of `init`'s tree with no zeros: every branch speaks. No compilation."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        values = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(values + (leaf.ndim == 1), jnp.float32)

    return jax.tree.map(fill, jax.eval_shape(init, jax.random.key(0)))


def _denoiser_inputs(networks, length=4):
    shape = (2, length, *networks.latent_shape)
    keys = jax.random.split(jax.random.key(3), 3)
    x_t, cond = (jax.random.normal(key, shape) for key in keys[:2])
    mask = jnp.zeros((*shape[:-1], 1)).at[:, jnp.array([0, -1])].set(1.0)
    text = jax.random.normal(keys[2], (2, length, 5, networks.text_encoder.width))
    return dict(
        x_t=x_t, t=jnp.array([3, 40]), text=text, cond=cond * mask, cond_mask=mask, level=jnp.array([0, 1], jnp.int32)
    )


def _video(networks):
    size = networks.frame_size
    return jax.random.uniform(jax.random.key(7), (1, 4, size, size, 3), minval=-1.0)


def _functions(networks):
    """What training differentiates: name -> (function of parameters, its parameters' initialiser)."""
    inputs, video = _denoiser_inputs(networks), _video(networks)
    images = [x.reshape(-1, *x.shape[2:]) for x in (inputs["x_t"], inputs["text"])]

    def vae(params):
        mean, logvar = networks.encode(params, video)
        return networks.decode(params, mean + jnp.exp(0.5 * logvar))

    return {
        "denoiser": (lambda params: networks.denoise(params, **inputs), networks.init_denoiser),
        "image_denoiser": (
            lambda params: networks.denoise_images(params, images[0], jnp.repeat(inputs["t"], 4), images[1]),
            networks.init_denoiser,
        ),
        "vae": (vae, networks.init_vae),
    }


def _kept_bytes(function, params):
    """Bytes that the backward pass of `function` keeps, parameters included."""
    kept = jax.eval_shape(lambda p: jax.vjp(function, p)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def _loss_and_gradient(function, params):
    def loss(params):
        out = function(params)
        return jnp.mean(jnp.square(out) * jnp.sin(jnp.arange(out.size)).reshape(out.shape)), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return out, gradient


@pytest.fixture(scope="module")
def plain(toons_presets):
    """Without rematerialisation: name -> (parameters, function)."""
    functions = _functions(_networks(toons_presets, "none"))
    return {name: (_filled(init), function) for name, (function, init) in functions.items()}


@pytest.mark.parametrize("name", ["denoiser", "vae"])
def test_the_gradient_is_the_same_up_to_the_order_of_sums(toons_presets, plain, name):
    params, function = plain[name]
    out, gradient = _loss_and_gradient(function, params)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
    assert scale > 1e-3
    for policy in POLICIES:
        remat_out, remat_gradient = _loss_and_gradient(_functions(_networks(toons_presets, policy))[name][0], params)
        np.testing.assert_allclose(remat_out, out, atol=1e-5)
        for one, other in zip(jax.tree.leaves(remat_gradient), jax.tree.leaves(gradient)):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "name,products,blocks", [("denoiser", 0.7, 0.4), ("image_denoiser", 0.7, 0.4), ("vae", 0.8, 0.6)]
)
def test_less_is_kept_for_the_backward_pass(toons_presets, plain, name, products, blocks):
    params, function = plain[name]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    kept = _kept_bytes(function, params)
    for policy, most in zip(POLICIES, (products, blocks)):
        function, _ = _functions(_networks(toons_presets, policy))[name]
        ratio = (_kept_bytes(function, params) - weights) / (kept - weights)
        assert ratio < most, (policy, ratio)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_gradient_it_is_the_same_program(toons_presets, policy):
    """So sampling costs nothing more, and its outputs are the same bit for bit."""

    def program(networks):
        params, vae = (jax.eval_shape(f, jax.random.key(0)) for f in (networks.init_denoiser, networks.init_vae))

        def sample(params, vae, x_t, t, text, cond, cond_mask, level):
            context = networks.context(params["unet"], text, cond, cond_mask, level)
            x0 = networks.denoise_segment(params["unet"], x_t, t, level, context)
            return networks.encode(vae, networks.decode(vae, x0))

        return (params, vae), jax.jit(sample).lower(params, vae, **_denoiser_inputs(networks)).as_text()

    tree, text = program(_networks(toons_presets, policy))
    plain_tree, plain_text = program(_networks(toons_presets, "none"))
    assert text == plain_text
    assert tree == plain_tree  # names and shapes: weights and checkpoints of one policy serve every other


def test_an_unknown_policy_is_refused():
    config = config_lib.default()
    config.vae.remat = "everything"
    with pytest.raises(config_lib.ConfigError, match="vae.remat"):
        config_lib.validate(config)
    with pytest.raises(ValueError, match="none, products, blocks"):
        remat.wrap(mtd_unet.MTDBlock, "everything")
    assert remat.wrap(tklvae.ResBlock, "none") is tklvae.ResBlock
