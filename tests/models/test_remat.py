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


def _networks(presets, policy, dtype="float32"):
    config = presets.get_config("tiny")
    config.unet.remat = config.vae.remat = policy
    return networks_lib.build(config_lib.validate(config), dtype)


def _perturbed(params):
    """No zeros left: every branch speaks."""
    return jax.tree.map(lambda p: p + 0.1 * jnp.sin(1.0 + jnp.arange(p.size)).reshape(p.shape), params)


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
    """name -> (parameters, output, gradient, bytes kept) without rematerialisation."""
    results = {}
    for name, (function, init) in _functions(_networks(toons_presets, "none")).items():
        params = _perturbed(jax.jit(init)(jax.random.key(0)))
        results[name] = (params, *_loss_and_gradient(function, params), _kept_bytes(function, params))
    return results


@pytest.mark.parametrize("name", ["denoiser", "image_denoiser", "vae"])
@pytest.mark.parametrize("policy", POLICIES)
def test_same_outputs_bit_for_bit_and_same_gradients(toons_presets, plain, policy, name):
    params, out, gradient, _ = plain[name]
    function, init = _functions(_networks(toons_presets, policy))[name]
    new = jax.jit(init)(jax.random.key(0))
    assert jax.tree.structure(new) == jax.tree.structure(params)
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other), _perturbed(new), params)
    remat_out, remat_gradient = _loss_and_gradient(function, params)
    np.testing.assert_array_equal(remat_out, out)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
    assert scale > 0
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * scale),
        remat_gradient,
        gradient,
    )


@pytest.mark.parametrize(
    "name,products,blocks", [("denoiser", 0.7, 0.4), ("image_denoiser", 0.7, 0.4), ("vae", 0.8, 0.6)]
)
def test_less_is_kept_for_the_backward_pass(toons_presets, plain, name, products, blocks):
    params, _, _, kept = plain[name]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for policy, most in zip(POLICIES, (products, blocks)):
        function, _ = _functions(_networks(toons_presets, policy))[name]
        ratio = (_kept_bytes(function, params) - weights) / (kept - weights)
        assert ratio < most, (policy, ratio)


def test_sampling_compiles_to_the_same_program(toons_presets):
    def text(policy):
        networks = _networks(toons_presets, policy)
        inputs = _denoiser_inputs(networks)
        params = jax.eval_shape(networks.init_denoiser, jax.random.key(0))
        vae = jax.eval_shape(networks.init_vae, jax.random.key(0))

        def sample(params, vae, x_t, t, text, cond, cond_mask, level):
            context = networks.context(params["unet"], text, cond, cond_mask, level)
            x0 = networks.denoise_segment(params["unet"], x_t, t, level, context)
            return networks.decode(vae, x0)

        return jax.jit(sample).lower(params, vae, **inputs).compile().as_text()

    def program(policy):
        """Without the names of Python's functions."""
        return [line.split(", metadata=")[0] for line in text(policy).splitlines()]

    assert program("blocks") == program("none")


@pytest.mark.parametrize("policy", POLICIES)
def test_shipped_weights_and_checkpoints_fit(policy):
    """Names, shapes and initial values at the default sizes are those without rematerialisation."""
    config = config_lib.default()
    trees = []
    for chosen in ("none", policy):
        config.unet.remat = config.vae.remat = chosen
        networks = networks_lib.build(config)
        trees.append([jax.eval_shape(init, jax.random.key(0)) for init in (networks.init_vae, networks.init_denoiser)])
    assert trees[0] == trees[1]


def test_an_unknown_policy_is_refused():
    config = config_lib.default()
    config.vae.remat = "everything"
    with pytest.raises(config_lib.ConfigError, match="vae.remat"):
        config_lib.validate(config)
    with pytest.raises(ValueError, match="none, products, blocks"):
        remat.wrap(mtd_unet.MTDBlock, "everything")
    assert remat.wrap(tklvae.ResBlock, "none") is tklvae.ResBlock
