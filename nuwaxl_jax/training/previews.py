"""Sample videos of a training run: what the loop's 'sample' hook draws for TensorBoard and the workdir.

A VAE shows a held-out clip beside its reconstruction; the image denoiser shows held-out frames beside those it makes
from the same prompts; a denoiser shows, for each level it serves, a held-out clip beside the one it makes from the same
prompts and the same given frames. All with the averaged parameters.

A preview never ends a training: what the held-out videos cannot show is left out, with one line.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.diffusion import samplers
from nuwaxl_jax.hierarchy import segments as segments_lib
from nuwaxl_jax.training import latents
from nuwaxl_jax.training import metrics


_IMAGES = 8  # that the image denoiser shows


class _HeldOut:
    """The first held-out clips of a run, by stage and level."""

    def __init__(self, config: ml_collections.ConfigDict):
        self._config = config
        self._said: set[str] = set()

    def clips(self, stage: str, level: int, batch_size: int = 1) -> dict[str, np.ndarray] | None:
        """A batch; None, on every process, where the videos of one have none, and why is said once."""
        batch, problem = None, "another process has no such clip"
        try:
            batch = self._draw(stage, level, batch_size)
        except ValueError as error:  # too few videos, too short ones, or damaged ones
            problem = " ".join(str(error).split())
        missing = batch is None
        if jax.process_count() > 1:  # all run the same programs
            missing = bool(np.any(multihost_utils.process_allgather(np.bool_(missing))))
        if missing and problem not in self._said:
            self._said.add(problem)
            of = f" of level {level}" if stage == "denoiser" else ""
            metrics.warn(f"{stage}: no preview{of}: the valid split has no clip for it: {problem}")
        return None if missing else batch

    def _draw(self, stage: str, level: int, batch_size: int) -> dict[str, np.ndarray]:
        config = self._config.copy_and_resolve_references()
        with config.unlocked():
            config.data.level_weights = tuple(float(k == level) for k in range(config.hierarchy.depth))
        iterator = pipeline.make_iterator(config, "valid", stage, seed=config.seed, batch_size=batch_size)
        try:
            return next(iterator)
        finally:
            iterator.close()


def _beside(real: np.ndarray, made: jax.Array) -> np.ndarray:
    """uint8 `[L, H, 2W, 3]`: the real clip on the left."""
    return np.concatenate([real, np.asarray(networks_lib.to_uint8(made))], axis=2)


def _reconstruction(held_out: _HeldOut, depth: int, networks, stage: str, params: Any) -> dict[str, np.ndarray]:
    batch, temporal = held_out.clips(stage, depth - 1), stage == "vae"
    if batch is None:
        return {}
    frames = batch["frames"]

    @jax.jit
    def reconstruct(params: Any, frames: jax.Array) -> jax.Array:
        return networks.decode(params, networks.encode(params, frames, temporal=temporal)[0], temporal=temporal)

    return {"reconstruction": _beside(frames[0], reconstruct(params, frames)[0])}


def _images(held_out: _HeldOut, config, networks, params: Any, frozen: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One image: held-out frames in the upper row, made ones in the lower."""
    sampler = config.sampler
    batch = held_out.clips("image_denoiser", 0, _IMAGES)
    if batch is None:
        return {}

    @jax.jit
    def generate(params, frozen, tokens):
        apply = lambda text: lambda x_t, t: networks.denoise_images(params, x_t, t, text)  # noqa: E731
        text = networks.text_states(params["text"], tokens)
        null = jnp.broadcast_to(networks.text_states(params["text"], networks.null_tokens()), text.shape)
        scale, rescale = float(sampler.guidance[0]), float(sampler.guidance_rescale)
        denoise = samplers.guided(apply(text), apply(null), scale, rescale)
        keys = jax.random.split(jax.random.key(config.seed), len(tokens))
        shape = networks.latent_shape
        made = samplers.sample(
            denoise,
            networks.diffusion,
            keys,
            shape,
            method=sampler.method,
            steps=sampler.steps[0],
            eta=sampler.eta,
            threshold=sampler.threshold or None,
            spacing=sampler.spacing,
        )
        z = made / frozen["latent_scale"] + frozen["latent_shift"]
        return networks.decode(frozen["vae"], z[:, None])[:, 0]

    made = networks_lib.to_uint8(generate(params, frozen, batch["tokens"][:, 0]))
    rows = (np.concatenate(list(np.asarray(row)), axis=1) for row in (batch["frames"][:, 0], made))
    return {"images": np.concatenate(list(rows), axis=0)}


def _generation(
    held_out: _HeldOut, config, networks, levels: Sequence[int], params: Any, frozen: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    sample = segments_lib.sampler_of(config, networks)
    pixel = config.hierarchy.handover == "pixel"

    def generate(params, frozen, frames, tokens, null_tokens, level):
        def latents_of(video):
            mean, _ = networks.encode(frozen["vae"], video)
            return (mean - frozen["latent_shift"]) * frozen["latent_scale"]  # [1, L, h, w, c]

        x0, length = latents_of(frames), frames.shape[1]
        given = ((jnp.arange(length) % (length - 1) == 0) & (level > 0)).astype(jnp.float32)[None]  # [1, L]
        mask = jnp.broadcast_to(given[:, :, None, None, None], (*x0.shape[:-1], 1))
        cond = latents_of(latents.masked(networks_lib.to_float(frames), given)) if pixel else mask * x0
        table, null = (networks.text_states(params["text"], t) for t in (tokens, null_tokens))
        # One tree, where the sampler looks for it whatever the level.
        single = dict(denoisers=(params,), text=(table,), null_text=(null,))
        keys = jax.random.split(jax.random.key(config.seed), 1)
        made = sample(single, keys, cond, mask, jnp.arange(length, dtype=jnp.int32)[None], level=level)
        made = jnp.where(mask > 0, x0, made)
        return networks.decode(frozen["vae"], made / frozen["latent_scale"] + frozen["latent_shift"])[0]

    run = jax.jit(generate, static_argnames="level")
    out = {}
    for level in levels:
        batch = held_out.clips("denoiser", level)
        if batch is None:
            continue
        made = run(params, frozen, batch["frames"], batch["tokens"][0], networks.null_tokens(), level=level)
        out[f"level_{level}"] = _beside(batch["frames"][0], made)
    return out


def make_hooks(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """{'sample': hook} for `loop.train`."""
    held_out = _HeldOut(config)

    def sample(stage: str, state: Any, frozen: Mapping[str, Any], step: int) -> dict[str, np.ndarray]:
        del step
        networks = networks_lib.build(config)
        if stage == "image_denoiser":
            return _images(held_out, config, networks, state.ema_params, frozen)
        if not stage.startswith("denoiser"):
            return _reconstruction(held_out, config.hierarchy.depth, networks, stage, state.ema_params)
        level = stage.removeprefix("denoiser").removeprefix("_")
        trained = [k for k, weight in enumerate(config.data.level_weights) if weight > 0]
        levels = [int(level)] if level else trained  # a network of its own learns its level whatever the weight
        return _generation(held_out, config, networks, levels, state.ema_params, frozen)

    return {"sample": sample}
