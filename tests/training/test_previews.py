"""Previews: conditions as in training, and what the held-out videos cannot show left out with one line."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.training import previews

SHIFT, SCALE = 0.5, 2.0
FROZEN = {"vae": None, "latent_shift": jnp.full(3, SHIFT), "latent_scale": jnp.full(3, SCALE)}
STATE = types.SimpleNamespace(ema_params={"unet": None, "text": None})


class FakeNetworks:
    """A latent is the picture plus 1; the denoiser, which predicts x0, answers with its condition."""

    latent_shape = (16, 16, 3)
    diffusion = gaussian.GaussianDiffusion.create(schedule="cosine", num_timesteps=50, prediction="x0")

    def encode(self, params, frames, temporal=True):
        del params, temporal
        return networks_lib.to_float(frames) + 1.0, None

    def decode(self, params, z, temporal=True):
        del params, temporal
        return z - 1.0

    def text_states(self, params, tokens):
        del params
        return jnp.asarray(tokens, jnp.float32)[..., None]

    def context(self, unet, text, cond, cond_mask, levels):
        del unet, text, cond_mask, levels
        return cond

    def denoise_segment(self, unet, x_t, t, level, context):
        del unet, x_t, t, level
        return context

    def denoise_images(self, params, x_t, t, text):
        del params, t, text
        return x_t

    def null_tokens(self):
        return np.zeros(20, np.int32)


@pytest.fixture
def config(toons_presets, monkeypatch):
    """Segments of 4 frames in 3 levels, strides 9, 3 and 1: 28 frames."""
    networks = FakeNetworks()
    monkeypatch.setattr(networks_lib, "build", lambda config: networks)
    return toons_presets.get_config("tiny")


def _preview(hooks, stage):
    return hooks["sample"](stage, STATE, FROZEN, 6)


@pytest.mark.parametrize("handover, hidden", [("latent", SHIFT - 1), ("pixel", 0.0)])  # of pixels: the encoded grey
def test_given_frames_are_handed_over_as_in_training(config, handover, hidden):
    config.hierarchy.handover = handover
    made = _preview(previews.make_hooks(config), "denoiser")
    assert sorted(made) == ["level_0", "level_1", "level_2"]
    wanted = np.round((hidden + 1) * 127.5)
    for name, video in made.items():
        real, drawn = np.split(video, 2, axis=2)  # [L, H, W, 3]
        given = np.arange(4) % 3 == 0 if name != "level_0" else np.zeros(4, bool)
        np.testing.assert_array_equal(drawn[given], real[given])
        assert (drawn[~given] == wanted).all() and real.std() > 10


def test_a_level_without_weight_is_not_shown(config, capsys):
    config.data.update(episode_frames=12, level_weights=(0.0, 1.0, 1.0))  # the mend for videos shorter than the tree
    assert sorted(_preview(previews.make_hooks(config), "denoiser")) == ["level_1", "level_2"]
    assert "no preview" not in capsys.readouterr().err
    config.data.update(episode_frames=64)  # a network a level: each learns its own, whatever the weight
    assert sorted(_preview(previews.make_hooks(config), "denoiser_0")) == ["level_0"]


def test_held_out_videos_too_short_for_a_level_are_told_of_once(config, capsys):
    config.data.episode_frames = 12
    hooks = previews.make_hooks(config)
    for _ in range(2):
        assert sorted(_preview(hooks, "denoiser")) == ["level_1", "level_2"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "no preview" in line]
    assert len(lines) == 1 and lines[0].startswith("denoiser: no preview of level 0: ") and "28 frames" in lines[0]


def test_no_held_out_video_ends_no_training(config, capsys, monkeypatch):
    def empty(config, split):
        raise ValueError(f"no video is left\nin {split}")

    monkeypatch.setitem(pipeline.SOURCES, "toons", empty)
    hooks = previews.make_hooks(config)
    for stage in ("image_vae", "vae", "image_denoiser", "denoiser", "denoiser_1"):
        assert _preview(hooks, stage) == {}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("image_vae: no preview: ") and line.endswith("no video is left in valid")


def test_every_process_leaves_out_what_one_cannot_draw(config, capsys, monkeypatch):
    assert list(_preview(previews.make_hooks(config), "vae")) == ["reconstruction"]
    monkeypatch.setattr(previews.jax, "process_count", lambda: 2)
    monkeypatch.setattr(previews.multihost_utils, "process_allgather", lambda mine: np.array([mine, True]))
    assert _preview(previews.make_hooks(config), "vae") == {}
    assert "another process" in capsys.readouterr().err
