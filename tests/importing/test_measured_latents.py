"""Weights whose latents were measured, a shift and a scale a channel: public layouts have them in the VAE."""

import json

import jax
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights
from nuwaxl_jax.importing import export
from nuwaxl_jax.importing import run
from nuwaxl_jax.importing import tensors

SHIFT = np.array([0.7, -1.3, 0.0, 2.1], np.float32)
SCALE = np.array([0.4, 1.9, 0.18215, 3.2], np.float32)


@pytest.mark.parametrize(
    "style, factor, shift, scale",
    [
        ("diffusers", 1.0, SHIFT, SCALE),
        ("diffusers", 1.0, SHIFT, 0 * SCALE + 0.5),
        ("ldm", 0.18215, SHIFT, SCALE),
        ("ldm", 0.18215, 0 * SHIFT, SCALE),
    ],
)
def test_the_written_vae_makes_normalised_latents(tmp_path, config, bundle, tokenizer, style, factor, shift, scale):
    original, theirs, back = tmp_path / "ours.safetensors", tmp_path / "theirs", tmp_path / "back.safetensors"
    weights.save(original, dict(bundle, latent_shift=shift, latent_scale=scale), config, {}, dtype="float32")
    export.run(original, str(theirs), style)
    if style == "diffusers":
        assert json.loads((theirs / "vae" / "config.json").read_text())["scaling_factor"] == factor
    run.run(config, str(theirs), {} if style == "diffusers" else {"tokenizer": tokenizer}, str(back))
    read, _, _ = weights.load(back)
    np.testing.assert_array_equal(read["latent_scale"], np.full(4, factor, np.float32))
    assert not np.any(read["latent_shift"])

    networks = networks_lib.build(config)
    encode, decode = (jax.jit(call, static_argnames="temporal") for call in (networks.encode, networks.decode))
    rng = np.random.default_rng(2)
    pixels = rng.uniform(-1, 1, (1, 2, 8, 8, 3)).astype(np.float32)
    mean, logvar = encode(bundle["vae"], pixels, temporal=False)
    exported_mean, exported_logvar = encode(read["vae"], pixels, temporal=False)
    std, exported_std = np.exp(0.5 * logvar), np.exp(0.5 * exported_logvar)
    assert np.abs(logvar).max() < 15 and np.abs(exported_logvar).max() < 15  # no bound is reached
    equal = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max())
    equal(exported_mean * factor, (mean - shift) * scale)
    equal(exported_std * factor, std * scale)
    x0 = rng.normal(size=mean.shape).astype(np.float32)
    decoded = decode(bundle["vae"], x0 / scale + shift, temporal=False)
    equal(decode(read["vae"], x0 / factor, temporal=False), decoded)


def test_all_but_the_two_convolutions_is_as_it_was(tmp_path, config, bundle, original, pipeline):
    measured = tmp_path / "ours.safetensors"
    weights.save(measured, dict(bundle, latent_shift=SHIFT, latent_scale=SCALE), config, {}, dtype="float32")
    export.run(measured, str(tmp_path / "p"), "diffusers")
    for part in ("vae", "unet", "text_encoder"):
        one, two = tensors.Tensors(pipeline / part), tensors.Tensors(tmp_path / "p" / part)
        assert set(one) == set(two)
        changed = {name for name in one if not np.array_equal(one[name], two[name])}
        convolutions = {f"{name}.{kind}" for name in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")}
        assert changed == (convolutions if part == "vae" else set())


def test_a_scale_that_half_precision_cannot_hold_is_refused(tmp_path, config, bundle):
    original = tmp_path / "ours.safetensors"
    weights.save(original, dict(bundle, latent_scale=SCALE * 1e6), config, {}, dtype="float16")
    with pytest.raises(tensors.WeightsError, match="^vae/encoder/quant/kernel: .* does not fit float16"):
        export.run(original, str(tmp_path / "p"), "diffusers")
    assert [f.name for f in tmp_path.iterdir()] == ["ours.safetensors"]
