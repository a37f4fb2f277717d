"""What the denoiser's visual condition holds at the frames that are to be made.

The paper masks the video's middle frames (NUWA-XL, section 3.2), so that in latents they hold nothing ('zero'). Ours,
'linear': between two given frames their blend by distance, beyond the first or last given one its copy. The mask
still tells which frames were given. At stride 1 the blend is near the truth wherever little moves, and the network
need not carry it there through its temporal attention; at coarser strides it is a double exposure of two poses.
"""

import jax
import jax.numpy as jnp

FILLS = ("zero", "linear")


def _neighbours(given: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each frame, `[B, L]`: the nearest given one up to it (-1: none), from it on (L: none), the way between."""
    length = given.shape[1]
    index = jnp.arange(length)
    before = jax.lax.cummax(jnp.where(given, index, -1), axis=1)
    after = jax.lax.cummin(jnp.where(given, index, length), axis=1, reverse=True)
    return before, after, (index - before) / jnp.maximum(after - before, 1)


def blend_weights(given: jax.Array) -> jax.Array:
    """float32 `[B, L, L]`: how much of frame m (last axis) frame l holds, from `given [B, L]` (boolean).

    Given frames hold themselves; a clip with none given is left as it is.
    """
    length = given.shape[1]
    before, after, fraction = _neighbours(given)
    has_before, has_after = before >= 0, after < length
    early = jnp.where(has_before, jnp.where(has_after, 1.0 - fraction, 1.0), 0.0)
    late = jnp.where(has_after, jnp.where(has_before, fraction, 1.0), 0.0)
    none = jnp.eye(length) * ~(has_before | has_after)[..., None]
    # one_hot of -1 and of `length` is all zero.
    return early[..., None] * jax.nn.one_hot(before, length) + late[..., None] * jax.nn.one_hot(after, length) + none


def fill(cond: jax.Array, mask: jax.Array) -> jax.Array:
    """The 'linear' condition `[B, L, h, w, c]` of cond and of its mask `[B, L, h, w, 1]` (1 = given, whole frames)."""
    weights = blend_weights(mask[:, :, 0, 0, 0] > 0.5)
    return jnp.einsum("blm,bmhwc->blhwc", weights.astype(cond.dtype), cond)


def line_std(mask: jax.Array, middle: jax.Array) -> jax.Array:
    """How far a frame is from `fill`'s line between two given frames, a standard deviation, float32 `[B, L, 1, 1, 1]`.

    4 f (1 - f) middle, at the fraction f of the way: 0 at the given frames themselves, `middle [B]` halfway, nearly
    straight beside them, as frames of smooth motion are. 1, the latents' own, where no line is known: beyond the first
    or last given frame, without any, and wherever `middle` is 1.
    """
    given = mask[:, :, 0, 0, 0] > 0.5
    before, after, fraction = _neighbours(given)
    between = (before >= 0) & (after < given.shape[1]) & (middle < 1.0)[:, None]
    std = jnp.where(between, 4.0 * fraction * (1.0 - fraction) * middle[:, None], 1.0)
    return std[..., None, None, None]
