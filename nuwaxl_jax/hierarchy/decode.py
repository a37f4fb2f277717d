"""Finished latents to pixels, in bounded windows, as uint8.

The T-KLVAE decodes windows of L frames, the length it was trained at. Neighbouring windows share their border frame
as the segments of the finest level do; the later window's decoding of it is kept.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Iterator

import jax
import numpy as np

from nuwaxl_jax import networks as networks_lib

Params = Any


def window_starts(num_frames: int, length: int) -> np.ndarray:
    """First frames int32 of windows of `length` that cover `num_frames`, stride length - 1, the last one moved back."""
    last = max(num_frames - length, 0)
    starts = np.arange(0, last, length - 1)
    return np.append(starts, last).astype(np.int32)


def decode_frames(
    networks: networks_lib.Networks,
    bundle: Params,
    latents: np.ndarray,
    *,
    batch: int = 4,
    progress: Callable[[int, int, float], None] | None = None,
) -> Iterator[np.ndarray]:
    """Yields uint8 frames `[n, H, W, 3]` in order, from scaled latents `[F, h, w, c]`; memory is one batch of windows.

    Args:
      batch: windows a device call.
      progress: (frames done, all frames, seconds), after each call.
    """
    length = min(networks.segment_length, len(latents))
    starts = window_starts(len(latents), length)
    vae = {k: bundle[k] for k in ("vae", "latent_shift", "latent_scale")}

    @jax.jit
    def decode(vae: Params, x0: jax.Array) -> jax.Array:
        z = x0 / vae["latent_scale"] + vae["latent_shift"]
        return networks_lib.to_uint8(networks.decode(vae["vae"], z))  # [batch, L, H, W, 3]

    def dispatch(i: int) -> jax.Array:
        rows = np.minimum(np.arange(i, i + batch), len(starts) - 1)
        return decode(vae, latents[starts[rows][:, None] + np.arange(length)])

    begin = time.perf_counter()
    done, following = 0, dispatch(0)
    for i in range(0, len(starts), batch):
        current = following
        if i + batch < len(starts):
            following = dispatch(i + batch)
        windows = np.asarray(current)
        for k in range(i, min(i + batch, len(starts))):
            end = starts[k + 1] if k + 1 < len(starts) else len(latents)
            skip = done - starts[k]
            yield windows[k - i, skip : end - starts[k]]
            done = int(end)
        if progress is not None:
            progress(done, len(latents), time.perf_counter() - begin)
