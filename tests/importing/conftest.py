"""Networks small enough for tests whose image parts public layouts can hold: random in every array, on disk."""

import json

import jax
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights
from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.importing import export

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    tokens = [*LETTERS, *(c + "</w>" for c in LETTERS), "at</w>", "cat</w>", clip_bpe.BOS, clip_bpe.EOS]
    (place / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (place / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    return str(place)


@pytest.fixture(scope="module")
def config(toons_presets, tokenizer):
    config = toons_presets.get_config("tiny")
    config.data.frame_size = 8
    config.text.update(tokenizer="clip_bpe", vocabulary=tokenizer, vocab_size=64, max_tokens=9)
    config.vae.update(channels=64, channel_mults=(1, 2))
    config.unet.update(
        channels=64,
        channel_mults=(1, 2),
        prompt_levels=(True, False),
        downsample_padding="symmetric",
        gelu="exact",
        ff_mult=4,
    )
    config.diffusion.update(schedule="scaled_linear", prediction="eps", zero_terminal_snr=False, num_timesteps=1000)
    config.mtd.weights = "per_level"
    return config_lib.validate(config)


@pytest.fixture(scope="module")
def bundle(config):
    """Every array random, those that start at zero included."""
    networks = networks_lib.build(config)
    shapes = jax.eval_shape(lambda k: (networks.init_vae(k), networks.init_denoiser(k)), jax.random.key(0))
    rng = np.random.default_rng(0)
    vae, denoiser = jax.tree.map(lambda s: 0.1 * rng.normal(size=s.shape).astype(np.float32), shapes)
    scale = np.full(4, 0.18215, np.float32)
    return dict(vae=vae, latent_shift=0 * scale, latent_scale=scale, denoisers=(denoiser,))


@pytest.fixture(scope="module")
def original(bundle, config, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ours.safetensors"
    weights.save(path, bundle, config, {}, dtype="float32")
    return path


@pytest.fixture(scope="module")
def pipeline(original, tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline") / "p"
    export.run(original, str(place), "diffusers")
    return place
