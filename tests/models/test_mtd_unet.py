"""MTD U-Net: identity at init, prompt locality, symmetric injection, context computed once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import mtd_unet

FIELDS = dict(
    out_channels=3, channels=8, channel_mults=(1, 2), num_heads=2, prompt_levels=(True, True), cond_channels=4
)


def _inputs(batch=2, length=4):
    keys = jax.random.split(jax.random.key(0), 3)
    x_t = jax.random.normal(keys[0], (batch, length, 4, 4, 3))
    text = jax.random.normal(keys[1], (batch, length, 5, 6))
    cond = jax.random.normal(keys[2], x_t.shape)
    mask = jnp.zeros((*x_t.shape[:-1], 1)).at[:, jnp.array([0, -1])].set(1.0)
    t, level = jnp.array([3, 700])[:batch], jnp.array([0, 1])[:batch]
    return dict(x_t=x_t, t=t, text=text, cond=cond * mask, cond_mask=mask, level=level)


def _perturbed(params, scale=0.1):
    """No zeros left: every branch speaks."""
    return jax.tree.map(lambda p: p + scale * jnp.sin(1.0 + jnp.arange(p.size)).reshape(p.shape), params)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def _apply(module, params, method=None, **inputs):
    return module.apply(params, method=method, **inputs)


def _init(module):
    return jax.jit(module.init)(jax.random.key(1), **_inputs())


def _part(module, params):
    """Those of `params` that `module`, with fewer layers, has."""

    def shared(ours, theirs):
        return {k: shared(v, theirs[k]) if isinstance(v, dict) else theirs[k] for k, v in ours.items()}

    return shared(jax.eval_shape(module.init, jax.random.key(0), **_inputs()), params)


@pytest.fixture(scope="module")
def network():
    module = mtd_unet.MTDUNet(**FIELDS, num_levels=3)
    return module, _init(module)


def test_at_init_it_is_its_per_frame_image_network(network):
    module, params = network
    # The output convolution starts at zero: give it values so that the rest can be seen.
    params = {"params": dict(params["params"])}
    params["params"]["conv_out"] = _perturbed(params["params"]["conv_out"])
    image = mtd_unet.MTDUNet(**FIELDS, temporal="none", injection="none")
    inputs = _inputs()
    out = _apply(module, params, **inputs)
    per_frame = _apply(image, _part(image, params), **inputs)
    assert float(jnp.abs(out).max()) > 1e-2
    np.testing.assert_allclose(out, per_frame, atol=1e-6)
    # And that is what `denoise_images` computes, whatever the other layers have become.
    x_t, text = inputs["x_t"].reshape(8, 4, 4, 3), inputs["text"].reshape(8, 5, 6)
    frames = dict(x_t=x_t, t=jnp.repeat(inputs["t"], 4), text=text)
    images = _apply(module, params, **frames, method="denoise_images")
    np.testing.assert_allclose(images.reshape(out.shape), out, atol=1e-5)
    not_spatial = re.compile("temporal|injection|cond_down|level_embedding")
    trained = jax.tree_util.tree_map_with_path(
        lambda path, p: p + 0.3 if not_spatial.search(jax.tree_util.keystr(path)) else p, params
    )
    assert float(jnp.abs(_apply(module, trained, **inputs) - out).max()) > 1e-2
    np.testing.assert_array_equal(_apply(module, trained, **frames, method="denoise_images"), images)


def test_prompt_l_reaches_frame_l_alone_until_a_temporal_layer(network):
    module = mtd_unet.MTDUNet(**FIELDS, temporal="none")
    inputs = _inputs()
    params = _perturbed(_part(module, network[1]))
    other = dict(inputs, text=inputs["text"].at[:, 1].add(1.0))
    delta = jnp.abs(_apply(module, params, **inputs) - _apply(module, params, **other)).max((0, 2, 3, 4))
    assert delta[1] > 1e-3 and float(delta[jnp.array([0, 2, 3])].max()) == 0.0


def test_temporal_layers_carry_a_prompt_to_its_neighbours(network):
    module, params = network
    params, inputs = _perturbed(params), _inputs()
    other = dict(inputs, text=inputs["text"].at[:, 1].add(1.0))
    delta = jnp.abs(_apply(module, params, **inputs) - _apply(module, params, **other)).max((0, 2, 3, 4))
    assert (delta > 1e-5).all()


def test_context_once_equals_the_whole_call(network):
    module, params = network
    params, inputs = _perturbed(params), _inputs()
    given = {name: inputs[name] for name in ("text", "cond", "cond_mask", "level")}
    noisy = {name: inputs[name] for name in ("x_t", "t", "level")}
    ctx = _apply(module, params, method="context", **given)
    out = _apply(module, params, method="denoise", **noisy, ctx=ctx)
    np.testing.assert_allclose(out, _apply(module, params, **inputs), atol=1e-5)


@pytest.mark.parametrize("what", ["cond", "cond_mask", "level", "t"])
def test_every_input_is_heard(network, what):
    module, params = network
    params, inputs = _perturbed(params), _inputs()
    other = dict(inputs)
    other[what] = inputs[what] + 1
    assert float(jnp.abs(_apply(module, params, **inputs) - _apply(module, params, **other)).max()) > 1e-4


def test_videos_do_not_see_each_other(network):
    module, params = network
    params, inputs = _perturbed(params), _inputs()
    other = dict(inputs, x_t=inputs["x_t"].at[1].add(1.0), text=inputs["text"].at[1].add(1.0))
    delta = jnp.abs(_apply(module, params, **inputs) - _apply(module, params, **other))
    assert float(delta[0].max()) == 0.0 and float(delta[1].max()) > 1e-3


@pytest.mark.parametrize(
    "injection,expected",
    [
        ("none", set()),
        ("top_up", {"up0_0", "up0_1"}),
        ("up", {"up0_0", "up0_1", "up1_0", "up1_1"}),
        ("down_up", {"down0_0", "down1_0", "up0_0", "up0_1", "up1_0", "up1_1"}),
    ],
)
def test_injection_sits_where_table_2b_says_and_never_in_the_middle(injection, expected):
    module = mtd_unet.MTDUNet(**FIELDS, injection=injection)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), **_inputs()))["params"]
    assert {name for name, block in params.items() if "injection" in block} == expected
    assert "mid" in params


def test_injection_is_the_papers_formula():
    module = mtd_unet.Injection(features=2)
    cond, mask = jnp.ones((1, 1, 1, 3)), jnp.ones((1, 1, 1, 1))
    params = module.init(jax.random.key(0), cond, mask)
    gain, shift = module.apply(params, cond, mask)
    np.testing.assert_array_equal(gain, 1.0)  # zero-initialised: h stays h
    np.testing.assert_array_equal(shift, 0.0)
    params = _perturbed(params)
    gain, shift = module.apply(params, cond, mask)
    p, h = params["params"], 0.7
    w_c, b_c = np.split(cond[0, 0, 0] @ p["cond"]["kernel"][1, 1] + p["cond"]["bias"], 2)
    w_m, b_m = np.split(mask[0, 0, 0] @ p["mask"]["kernel"][1, 1] + p["mask"]["bias"], 2)
    expected = w_c * h + b_c + h
    expected = w_m * expected + b_m + expected
    # b_m enters through the shift as well
    np.testing.assert_allclose(gain[0, 0, 0] * h + shift[0, 0, 0], expected, atol=1e-5)


def test_unknown_injection_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="injection"):
        mtd_unet.MTDUNet(**FIELDS, injection="middle").init(jax.random.key(0), **_inputs())
    inputs = _inputs()
    inputs["cond"] = inputs["cond"][:, :3]
    with pytest.raises(ValueError, match="do not fit"):
        mtd_unet.MTDUNet(**FIELDS).init(jax.random.key(0), **inputs)
