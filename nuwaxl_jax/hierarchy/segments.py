"""The networks as the functions that `hierarchy.program` runs: segments from noise, and the pixel hand-over.

Sampling parameters are one pytree: `{'vae', 'latent_shift', 'latent_scale', 'denoisers', 'text', 'null_text'}`, where
`denoisers` has one tree, or one a level, and `text[i]` is that denoiser's table of prompt states `[P, N, D]`.
"""

from __future__ import annotations

import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax.diffusion import samplers
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import program
from nuwaxl_jax.hierarchy import strategies
from nuwaxl_jax.networks import Networks

Params = Any


@functools.lru_cache(maxsize=8)
def make_sample_segments(
    networks: Networks,
    method: str,
    steps: tuple[int, ...],
    guidance: tuple[float, ...],
    eta: float = 0.0,
    guidance_rescale: float = 0.0,
    threshold: float | None = None,
    temperature: tuple[float, ...] = (),
    spacing: str = "trailing",
    per_frame: bool = True,
) -> program.SegmentsFn:
    """A `program.SegmentsFn`; the same object for the same arguments, so that programs are compiled once.

    Args:
      steps, guidance, temperature: one a level of the networks; no temperature: 1 at all of them.
      guidance_rescale: of `samplers.guided`; the others as for `samplers.sample`.
      per_frame: False: from level 1 on a segment's first prompt is that of all its frames.
    """

    def sample_segments(
        params: Params,
        keys: jax.Array,
        cond: jax.Array,
        cond_mask: jax.Array,
        prompt_index: jax.Array,
        *,
        level: int,
    ) -> jax.Array:
        which = level if len(params["denoisers"]) > 1 else 0
        unet = params["denoisers"][which]["unet"]

        def denoiser(text: jax.Array, copies: int = 1) -> samplers.DenoiseFn:
            given = (jnp.concatenate([x] * copies) for x in (cond, cond_mask))
            levels = jnp.full(len(text), level, jnp.int32)
            context = networks.context(unet, text, *given, levels)
            return lambda x_t, t: networks.denoise_segment(unet, x_t, t, levels, context)

        if level > 0 and not per_frame:
            prompt_index = jnp.broadcast_to(prompt_index[:, :1], prompt_index.shape)
        text = params["text"][which][prompt_index]  # [n, L, N, D]
        null = jnp.broadcast_to(params["null_text"][which], text.shape)
        scale = guidance[level]
        if scale in (0.0, 1.0):
            denoise = denoiser(text if scale else null)
        else:
            # One network in the program and not two: half of its compilation.
            denoise = samplers.guided_batched(
                denoiser(jnp.concatenate([text, null]), copies=2), scale, guidance_rescale
            )
        return samplers.sample(
            denoise,
            networks.diffusion,
            keys,
            cond.shape[1:],
            method=method,
            steps=steps[level],
            eta=eta,
            threshold=threshold,
            spacing=spacing,
            temperature=temperature[level] if temperature else 1.0,
        )

    return sample_segments


def steps_and_temperature(
    config: ml_collections.ConfigDict, plans: Sequence[plan_lib.LevelPlan] = ()
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """A level's each; segments that know their past alone, or nothing, have their own at the last level.

    plans: of the video; () takes what the strategy says, as it is of videos longer than a segment.
    """
    sampler = config.sampler
    steps, temperature = tuple(sampler.steps), tuple(float(t) for t in sampler.temperature)
    if strategies.knows_no_future(config.hierarchy.strategy, plans, config.hierarchy.depth):
        return (*steps[:-1], sampler.window_steps), (*temperature[:-1], float(sampler.window_temperature))
    return steps, temperature


def denoiser_calls(config: ml_collections.ConfigDict, level: int, plans: Sequence[plan_lib.LevelPlan] = ()) -> int:
    """Evaluations of the denoiser, one after the other, that a segment of a level takes; guidance doubles them."""
    steps, _ = steps_and_temperature(config, plans)
    return steps[level] * (1 if config.sampler.guidance[level] in (0.0, 1.0) else 2)


def serial_depth(config: ml_collections.ConfigDict, plans: Sequence[plan_lib.LevelPlan]) -> int:
    """Denoiser calls of a video that must follow one another however many devices there are.

    Segments of a level run at once (the paper's claim of speed, section 3.3), windows that need the one before do not.
    """
    calls = (
        denoiser_calls(config, plan.network_level, plans) * (plan.num_segments if plan.sequential else 1)
        for plan in plans
    )
    return sum(calls)


def sampler_of(
    config: ml_collections.ConfigDict, networks: Networks, plans: Sequence[plan_lib.LevelPlan] = ()
) -> program.SegmentsFn:
    """The SegmentsFn of a config's sampler, for a video of these plans (see `steps_and_temperature`)."""
    sampler = config.sampler
    steps, temperature = steps_and_temperature(config, plans)
    return make_sample_segments(
        networks,
        sampler.method,
        steps,
        tuple(float(g) for g in sampler.guidance),
        float(sampler.eta),
        float(sampler.guidance_rescale),
        float(sampler.threshold) or None,
        temperature,
        sampler.spacing,
        bool(config.text.per_frame),
    )


@functools.lru_cache(maxsize=8)
def make_pixel_handover(networks: Networks) -> program.Handover:
    """The paper's hand-over (eq. 17): given frames through pixels, masked, and back through the T-KLVAE."""

    def handover(params: Params, cond: jax.Array, cond_mask: jax.Array) -> jax.Array:
        z = cond / params["latent_scale"] + params["latent_shift"]
        pixels = jnp.clip(networks.decode(params["vae"], z), -1.0, 1.0)
        given = cond_mask[:, :, :1, :1, :]  # [n, L, 1, 1, 1]: frames are given whole
        mean, _ = networks.encode(params["vae"], pixels * given)
        return (mean - params["latent_shift"]) * params["latent_scale"]

    return handover


def encode_prompts(networks: Networks, denoisers: Sequence[Params], prompts: Sequence[str]) -> tuple[list, list]:
    """Each denoiser's states of the prompts `[P', N, D]` and of the empty prompt `[N, D]`, float32.

    P' is P rounded up to a power of two (at least 32), so that one compiled program serves many stories.
    """
    rows = max(32, 1 << (len(prompts) - 1).bit_length())
    tokens = np.tile(networks.null_tokens(), (rows, 1))
    tokens[: len(prompts)] = networks.tokenizer.encode_batch(list(prompts))
    encode = jax.jit(networks.text_states)
    states = [encode(denoiser["text"], tokens) for denoiser in denoisers]
    nulls = [encode(denoiser["text"], networks.null_tokens()) for denoiser in denoisers]
    return states, nulls


def sampling_params(networks: Networks, bundle: Params, prompts: Sequence[str]) -> Params:
    """A bundle (`networks`) and a story's prompts to the parameters of `SegmentsFn`."""
    text, null_text = encode_prompts(networks, bundle["denoisers"], prompts)
    return dict(bundle, text=tuple(text), null_text=tuple(null_text), denoisers=tuple(bundle["denoisers"]))
