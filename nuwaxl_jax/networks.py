"""From a config to modules and the pure functions that training and sampling are made of.

The one place that reads the config for the models: modules get plain fields, everything else gets these functions.

Parameters: `vae` is the T-KLVAE's tree; `denoiser` is `{'unet', 'text'}`; a *bundle* is everything sampling needs,
`{'vae', 'latent_shift', 'latent_scale', 'denoisers': (one tree, or one a level)}`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Collection

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.data import text as text_lib
from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.models import condition
from nuwaxl_jax.models import mtd_unet
from nuwaxl_jax.models import text_encoder
from nuwaxl_jax.models import tklvae

Params = Any


def to_float(frames: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [-1, 1]; floats pass."""
    if jnp.issubdtype(frames.dtype, jnp.floating):
        return frames
    return frames.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(frames: jax.Array) -> jax.Array:
    """Float pixels in [-1, 1], clipped, to uint8."""
    return jnp.round((jnp.clip(frames, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class Networks:
    """Modules, tokenizer and diffusion of one config; every method is a pure function of its arguments."""

    vae: tklvae.TKLVAE
    unet: mtd_unet.MTDUNet
    text_encoder: text_encoder.TextEncoder
    tokenizer: text_lib.Tokenizer
    diffusion: gaussian.GaussianDiffusion
    frame_size: int
    segment_length: int
    latent_shape: tuple[int, int, int]
    line_std: tuple[float, ...] = (1.0,)

    def init_vae(self, key: jax.Array) -> Params:
        """The T-KLVAE's parameters, temporal layers included."""
        video = jnp.zeros((1, 2, self.frame_size, self.frame_size, 3))
        return self.vae.init(key, video)["params"]

    def encode(self, vae_params: Params, frames: jax.Array, temporal: bool = True) -> tuple[jax.Array, jax.Array]:
        """Pixels `[B, L, H, W, 3]` (uint8 or float) to posterior mean and log-variance `[B, L, h, w, c]`."""
        return self.vae.apply({"params": vae_params}, to_float(frames), temporal, method="encode")

    def decode(self, vae_params: Params, z: jax.Array, temporal: bool = True) -> jax.Array:
        """Latents, unscaled, to float pixels `[B, L, H, W, 3]`."""
        return self.vae.apply({"params": vae_params}, z, temporal, method="decode")

    def init_denoiser(self, key: jax.Array) -> Params:
        """`{'unet', 'text'}`."""
        unet_key, text_key = jax.random.split(key)
        tokens = jnp.zeros((1, 2, self.tokenizer.max_tokens), jnp.int32)
        text_params = self.text_encoder.init(text_key, tokens)["params"]
        latents = jnp.zeros((1, 2, *self.latent_shape))
        ids = jnp.zeros((1,), jnp.int32)
        text = jnp.zeros((*tokens.shape, self.text_encoder.width))
        unet_params = self.unet.init(unet_key, latents, ids, text, latents, latents[..., :1], ids)["params"]
        return {"unet": unet_params, "text": text_params}

    def text_states(self, text_params: Params, tokens: jax.Array) -> jax.Array:
        """Tokens int32 `[..., N]` to states `[..., N, D]`."""
        return self.text_encoder.apply({"params": text_params}, tokens)

    def denoise(
        self,
        params: Params,
        x_t: jax.Array,
        t: jax.Array,
        text: jax.Array,
        cond: jax.Array,
        cond_mask: jax.Array,
        level: jax.Array,
    ) -> jax.Array:
        """The prediction, shapes as `MTDUNet`: `context` and `denoise_segment` at once."""
        unet, deferred = params["unet"], self.unet.remat != "none"
        return self.denoise_segment(unet, x_t, t, level, self.context(unet, text, cond, cond_mask, level, deferred))

    def context(
        self,
        unet_params: Params,
        text: jax.Array,
        cond: jax.Array,
        cond_mask: jax.Array,
        level: jax.Array,
        deferred: bool = False,
    ) -> dict[str, Any]:
        """All that a segment's inputs say and x_t does not change: once a sampling run; deferred: as `MTDUNet`'s."""
        unet = self.unet.apply({"params": unet_params}, text, cond, cond_mask, level, deferred, method="context")
        if min(self.line_std) >= 1.0:
            return dict(unet=unet)
        std = condition.line_std(cond_mask, jnp.array(self.line_std, jnp.float32)[level])
        return dict(unet=unet, mean=condition.fill(cond, cond_mask), std=std)

    def denoise_segment(
        self, unet_params: Params, x_t: jax.Array, t: jax.Array, level: jax.Array, context: dict[str, Any]
    ) -> jax.Array:
        """The prediction for x_t at t, given `context`'s result; from the line between given frames (`line_std`)."""
        prediction = self.unet.apply({"params": unet_params}, x_t, t, level, context["unet"], method="denoise")
        if "mean" not in context:
            return prediction
        return self.diffusion.from_guess(x_t, t, prediction, context["mean"], context["std"])

    def denoise_images(self, params: Params, x_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        """The image network's prediction; shapes as `MTDUNet.denoise_images`."""
        return self.unet.apply({"params": params["unet"]}, x_t, t, text, method="denoise_images")

    def null_tokens(self) -> np.ndarray:
        """Tokens int32 `[N]` of the empty prompt."""
        return self.tokenizer.encode("")


def new_arrays(init: Callable[[jax.Array], Params], key: jax.Array, known: Collection[str]) -> dict[str, np.ndarray]:
    """Of the tree that `init(key)` makes, the arrays whose path ('a/b/kernel') is not in `known`, by path.

    The compiler leaves out what the others' making would cost.
    """

    def rest(key: jax.Array) -> dict[str, jax.Array]:
        made = traverse_util.flatten_dict(init(key), sep="/")
        return {name: leaf for name, leaf in made.items() if name not in known}

    return jax.device_get(jax.jit(rest)(key))


def build(config: ml_collections.ConfigDict, dtype: str = "float32") -> Networks:
    """Modules and functions of a validated config, computing in `dtype`."""
    compute = jnp.dtype(dtype)
    latent = config_lib.latent_shape(config)
    vae_fields = {
        k: config.vae[k]
        for k in (
            "channels",
            "channel_mults",
            "num_res_blocks",
            "latent_channels",
            "temporal",
            "temporal_init",
            "temporal_padding",
            "remat",
        )
    }
    unet_fields = {
        k: config.unet[k]
        for k in (
            "channels",
            "channel_mults",
            "num_res_blocks",
            "num_heads",
            "prompt_levels",
            "mid_prompt",
            "downsample_padding",
            "gelu",
            "ff_mult",
            "cond_channels",
            "temporal",
            "injection",
            "condition_fill",
            "remat",
        )
    }
    names = ("vocab_size", "max_tokens", "width", "num_layers", "num_heads", "embedding_std")
    text_fields = {k: config.text[k] for k in names}
    shared = config.mtd.weights == "shared"
    process = config.diffusion
    return Networks(
        vae=tklvae.TKLVAE(**vae_fields, dtype=compute),
        unet=mtd_unet.MTDUNet(
            out_channels=latent[-1], num_levels=config.hierarchy.depth if shared else 0, dtype=compute, **unet_fields
        ),
        text_encoder=text_encoder.TextEncoder(**text_fields, dtype=compute),
        tokenizer=text_lib.tokenizer_of(config.text),
        diffusion=gaussian.GaussianDiffusion.create(
            schedule=process.schedule,
            num_timesteps=process.num_timesteps,
            prediction=process.prediction,
            zero_terminal_snr=process.zero_terminal_snr,
        ),
        frame_size=config.data.frame_size,
        segment_length=config.hierarchy.segment_length,
        latent_shape=latent,
        line_std=tuple(process.line_std),
    )
