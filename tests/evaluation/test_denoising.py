"""What the held-out error gives a denoiser: frames and prompts as it was trained with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.evaluation import denoising

L, SIDE, N = 5, 2, 3
SHIFT, SCALE = 0.5, 2.0
BUNDLE = {"vae": None, "latent_shift": jnp.full(3, SHIFT), "latent_scale": jnp.full(3, SCALE)}


class FakeNetworks:
    """A latent is the picture plus 1; the denoiser, which predicts x0, answers one of its inputs."""

    segment_length = L

    def __init__(self, answer):
        self.answer = answer
        self.diffusion = gaussian.GaussianDiffusion.create(schedule="cosine", num_timesteps=10, prediction="x0")

    def encode(self, params, frames):
        del params
        return networks_lib.to_float(frames) + 1.0, None

    def text_states(self, params, tokens):
        del params
        return tokens.astype(jnp.float32)[..., None]

    def denoise(self, params, x_t, t, text, cond, cond_mask, level):
        del params, t, level
        told = jnp.broadcast_to(text.mean((-2, -1))[:, :, None, None, None], x_t.shape)
        return {"cond": cond, "mask": jnp.broadcast_to(cond_mask, x_t.shape), "text": told}[self.answer]


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    return {
        "frames": jnp.asarray(draw.integers(0, 256, (3, L, SIDE, SIDE, 3)), jnp.uint8),
        "tokens": jnp.asarray(draw.integers(0, 9, (3, L, N)), jnp.int32),
        "level": jnp.array([0, 1, 2]),
    }


def _x0(frames):
    return (np.asarray(frames, np.float64) / 127.5 - 1 + 1 - SHIFT) * SCALE


def _error(batch, answer, *arguments, **named):
    errors = denoising.errors_at(FakeNetworks(answer), (3,), *arguments, **named)
    return float(errors(BUNDLE, {"text": None}, batch, jax.random.key(0))[0])


@pytest.mark.parametrize("last,given", [(True, [0, -1]), (False, [0])])
@pytest.mark.parametrize("handover,hidden", [("latent", 0.0), ("pixel", (1 - SHIFT) * SCALE)])  # grey's latent
def test_given_frames_are_handed_over_as_in_training(batch, handover, hidden, last, given):
    x0 = _x0(batch["frames"])
    cond = np.full_like(x0, hidden)
    cond[1:, given] = x0[1:, given]
    assert _error(batch, "cond", handover, last=last) == pytest.approx(np.square(cond - x0).mean(), rel=1e-5)
    mask = np.zeros_like(x0)
    mask[1:, given] = 1
    assert _error(batch, "mask", handover, last=last) == pytest.approx(np.square(mask - x0).mean(), rel=1e-5)


def test_one_prompt_a_segment_is_its_first_frames(batch):
    x0, told = _x0(batch["frames"]), np.asarray(batch["tokens"], np.float64).mean(-1)[..., None, None, None]
    assert _error(batch, "text", "latent", True) == pytest.approx(np.square(told - x0).mean(), rel=1e-5)
    told = np.concatenate([told[:1], np.broadcast_to(told[1:, :1], told[1:].shape)])
    assert _error(batch, "text", "latent", False) == pytest.approx(np.square(told - x0).mean(), rel=1e-5)
