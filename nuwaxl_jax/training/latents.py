"""What a denoiser's training takes from the frozen T-KLVAE: latents x0, and the encoding of masked videos.

    z ~ N(mean, exp(logvar)),    x0 = (z - shift) * scale

Frozen: {'vae': params, 'latent_shift': [c], 'latent_scale': [c]}. The two moments lie behind one another on the last
axis, [.., 2 c]; they follow from the frames alone and can be kept (`data.cache`), while the sample is drawn anew at
every step. Nothing here has a gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nuwaxl_jax import networks as networks_lib

Frozen = dict[str, Any]


def moments(networks: networks_lib.Networks, frozen: Frozen, video: jax.Array) -> jax.Array:
    """Pixels [B, L, H, W, 3] to the posterior's [B, L, h, w, 2 c]."""
    return jax.lax.stop_gradient(jnp.concatenate(networks.encode(frozen["vae"], video, temporal=True), axis=-1))


def sample(frozen: Frozen, both: jax.Array, noise: jax.Array) -> jax.Array:
    """Moments [.., 2 c] and N(0, 1) noise [.., c] to x0, float32 of that shape."""
    mean, logvar = jnp.split(both, 2, axis=-1)
    z = mean + jnp.exp(0.5 * logvar) * noise.reshape(mean.shape)
    return jax.lax.stop_gradient((z - frozen["latent_shift"]) * frozen["latent_scale"])


def border_masks(length: int) -> jax.Array:
    """The frames that local clips are given, float32 [2, L]: the first alone; the first and the last."""
    index = jnp.arange(length)
    return jnp.stack([index == 0, index % (length - 1) == 0]).astype(jnp.float32)


def masked(video: jax.Array, given: jax.Array) -> jax.Array:
    """Float pixels [B, L, H, W, 3] with the frames that are not given [B, L] grey, 0 in [-1, 1] (eq. 17)."""
    return video * given[:, :, None, None, None]


def channel_moments(
    networks: networks_lib.Networks, vae_params: Any, frames: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Per-channel mean, mean square and mean posterior variance of the latents of one batch, float32 [c] each.

    The square counts the posterior's variance, so that a sample x0 has unit variance.
    """
    mean, logvar = networks.encode(vae_params, frames, temporal=True)
    axes = tuple(range(mean.ndim - 1))
    noise = jnp.mean(jnp.exp(logvar), axes)
    return jnp.mean(mean, axes), jnp.mean(jnp.square(mean), axes) + noise, noise
