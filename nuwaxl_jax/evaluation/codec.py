"""Whole videos through the T-KLVAE, window by window."""

from __future__ import annotations

import functools
from typing import Callable

import jax
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.hierarchy import decode as decode_lib


def encode_video(
    networks: networks_lib.Networks, bundle: networks_lib.Params, frames: np.ndarray, batch: int = 4
) -> np.ndarray:
    """Scaled posterior means `[F, h, w, c]` of uint8 frames, in windows of L frames with shared borders.

    The windows are those of training. Of a border frame's two encodings the later window's is kept.
    """
    length = min(networks.segment_length, len(frames))
    last = len(frames) - length
    starts = np.append(np.arange(0, last, length - 1), last)
    encode = _encoder(networks)
    out = np.empty((len(frames), *networks.latent_shape), np.float32)
    vae = {k: bundle[k] for k in ("vae", "latent_shift", "latent_scale")}
    for i in range(0, len(starts), batch):
        rows = np.minimum(np.arange(i, i + batch), len(starts) - 1)
        encoded = np.asarray(encode(vae, frames[starts[rows][:, None] + np.arange(length)]))
        for start, window in zip(starts[rows], encoded):
            out[start : start + length] = window
    return out


@functools.lru_cache(maxsize=2)
def _encoder(networks: networks_lib.Networks) -> Callable[..., jax.Array]:
    @jax.jit
    def encode(vae: networks_lib.Params, frames: jax.Array) -> jax.Array:
        mean, _ = networks.encode(vae["vae"], frames)
        return (mean - vae["latent_shift"]) * vae["latent_scale"]

    return encode


def decode_video(
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    latents: np.ndarray,
    stop: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """uint8 `[F, H, W, 3]` of scaled latents; `stop` is called after each window, and may raise."""
    frames = decode_lib.decode_frames(networks, bundle, latents, progress=lambda *_: stop())
    return np.concatenate(list(frames))
