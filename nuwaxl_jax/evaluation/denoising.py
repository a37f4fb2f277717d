"""The denoiser's error on held-out clips, by noise level and by level of the tree."""

from __future__ import annotations

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.diffusion import losses
from nuwaxl_jax.evaluation import versions

NOISE_LEVELS = 8  # equally spaced timesteps
NUM_CLIPS = 16
MODEL = ("text", "vae", "unet", "mtd", "diffusion")  # sections of a config that a network's results follow from


def timesteps(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Those at which the error is measured."""
    last = config.diffusion.num_timesteps - 1
    return tuple(np.linspace(last / (2 * NOISE_LEVELS), last, NOISE_LEVELS).round().astype(int).tolist())


def identity(config: ml_collections.ConfigDict, card: dict[str, Any]) -> dict[str, Any]:
    """All that the errors of weights with this card follow from; nothing of how videos are told is in it."""
    tree = {name: config.hierarchy[name] for name in ("segment_length", "depth", "handover")}
    sections = {name: config[name].to_dict() for name in ("data", *MODEL)}
    of = {"hierarchy": tree, "weights": card, "clips": NUM_CLIPS, "backend": jax.default_backend()}
    return sections | of | {"version": versions.DENOISING}


@functools.lru_cache(maxsize=2)
def errors_at(
    networks: networks_lib.Networks,
    times: tuple[int, ...],
    handover: str = "latent",
    per_frame: bool = True,
    last: bool = True,
) -> Callable[..., jax.Array]:
    """Jitted: (bundle, one of its denoisers, batch, key) to the errors at `times`.

    Given frames and prompts as the denoiser was trained with: `hierarchy.handover`, `text.per_frame`. Without `last`
    local clips are given their first frame alone, so that captions alone say where it leads.
    """
    length = networks.segment_length

    @jax.jit
    def errors(bundle, denoiser, batch, key):
        def latents_of(frames):
            mean, _ = networks.encode(bundle["vae"], frames)
            return (mean - bundle["latent_shift"]) * bundle["latent_scale"]  # [B, L, h, w, c]

        x0, local = latents_of(batch["frames"]), (batch["level"] > 0)[:, None]
        index = jnp.arange(length)
        border = (index % (length - 1) == 0 if last else index == 0)[None, :] & local  # [B, L]
        border = border[:, :, None, None, None].astype(jnp.float32)
        mask = jnp.broadcast_to(border, (*x0.shape[:-1], 1))
        cond = mask * x0 if handover == "latent" else latents_of(networks_lib.to_float(batch["frames"]) * border)
        tokens = batch["tokens"]  # [B, L, N]
        tokens = tokens if per_frame else jnp.where(local[..., None], tokens[:, :1], tokens)
        text = networks.text_states(denoiser["text"], tokens)
        eps = jax.random.normal(key, x0.shape)

        def at(t):
            t = jnp.full(x0.shape[:1], t)
            x_t = networks.diffusion.q_sample(x0, t, eps)
            prediction = networks.denoise(denoiser, x_t, t, text, cond, mask, batch["level"])
            return losses.denoising_loss(networks.diffusion, prediction, x0, eps, t, weighting="uniform")[1].mean()

        return jax.lax.map(at, jnp.asarray(times, jnp.int32))

    return errors


def of_level(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    level: int,
    *,
    num_clips: int = NUM_CLIPS,
    seed: int = 1234,
    stop: Callable[[], None] = lambda: None,
) -> list[float]:
    """Mean squared error of the prediction (v, x0 or eps, as trained; latents of unit variance), unweighted.

    The same clips and the same noise for every level of noise: `num_clips` of the tree level from the test split, with
    the borders given at local levels, as `config` hands them over, its prompts on, in float32.

    Args:
      stop: called before each batch, and may raise.

    Returns:
      The error at each of `timesteps`.
    """
    one = config.copy_and_resolve_references()
    with one.unlocked():
        one.data.level_weights = tuple(float(k == level) for k in range(config.hierarchy.depth))
        one.train.denoiser.clip_length = config.hierarchy.segment_length
    errors = errors_at(networks, timesteps(config), config.hierarchy.handover, bool(config.text.per_frame))
    denoiser = bundle["denoisers"][level if len(bundle["denoisers"]) > 1 else 0]
    size = min(4, num_clips)
    iterator = pipeline.make_iterator(one, "test", "denoiser", seed=seed, batch_size=size)
    try:
        rows = []
        for key in jax.random.split(jax.random.key(seed + level), max(1, num_clips // size)):
            stop()
            batch = next(iterator)
            rows.append(errors(bundle, denoiser, {k: batch[k] for k in ("frames", "tokens", "level")}, key))
    finally:
        iterator.close()
    return np.mean(rows, axis=0).round(5).tolist()
