"""Finished latents to pixels, in bounded windows, as uint8.

The T-KLVAE's temporal layers see a frame's neighbours, so a window decodes some frames more at each side than it keeps:
its temporal convolutions then never meet a window's end inside the video. Windows do not follow the tree's segments,
so no seam of decoding falls on a segment's border more often than elsewhere.
"""

from __future__ import annotations

import functools
import time
from typing import Any, Callable, Iterator

import jax
import numpy as np

from nuwaxl_jax import networks as networks_lib

Params = Any
WINDOW = 48  # frames decoded together
CONTEXT = 4  # frames at each side that are decoded and not kept


def windows(num_frames: int, window: int = WINDOW, context: int = CONTEXT) -> list[tuple[int, int, int]]:
    """(first frame decoded, first frame kept, end of those kept) of each window; every frame is kept once.

    A video of at most `window` frames is one window; else all have `window` frames, the last one moved back.
    """
    if window <= 2 * context:
        raise ValueError(f"window is {window}: it must be longer than twice the context, {2 * context}")
    if num_frames <= window:
        return [(0, 0, num_frames)]
    out, kept = [], 0
    while kept < num_frames:
        start = min(max(kept - context, 0), num_frames - window)
        end = num_frames if start == num_frames - window else start + window - context
        out.append((start, kept, end))
        kept = end
    return out


@functools.lru_cache(maxsize=4)
def decoder(networks: networks_lib.Networks) -> Callable[..., jax.Array]:
    """Jitted: `{'vae', 'latent_shift', 'latent_scale'}` and scaled latents `[1, l, h, w, c]` to uint8 pixels."""

    @jax.jit
    def decode(vae: Params, x0: jax.Array) -> jax.Array:
        z = x0 / vae["latent_scale"] + vae["latent_shift"]
        return networks_lib.to_uint8(networks.decode(vae["vae"], z))  # [1, window, H, W, 3]

    return decode


def decode_frames(
    networks: networks_lib.Networks,
    bundle: Params,
    latents: np.ndarray,
    *,
    progress: Callable[[int, int, float], None] | None = None,
) -> Iterator[np.ndarray]:
    """Yields uint8 frames `[n, H, W, 3]` in order, from scaled latents `[F, h, w, c]`; memory is two windows.

    Args:
      progress: (frames done, all frames, seconds), after each window.
    """
    plan = windows(len(latents))
    length = min(WINDOW, len(latents))
    vae = {k: bundle[k] for k in ("vae", "latent_shift", "latent_scale")}
    decode = decoder(networks)
    begin = time.perf_counter()
    following = decode(vae, latents[None, :length])
    for i, (start, first, end) in enumerate(plan):
        current = following
        if i + 1 < len(plan):
            ahead = plan[i + 1][0]
            following = decode(vae, latents[None, ahead : ahead + length])
        yield np.asarray(current)[0, first - start : end - start]
        if progress is not None:
            progress(end, len(latents), time.perf_counter() - begin)
