"""Draws frames of a script: a still backdrop, then for each character a soft shadow, its body and its eyes.

A body is drawn from its signed distance d (in pixels) with coverage clip(1/2 - d, 0, 1), so that it moves by
fractions of a pixel without flicker. Only a small window around each character is touched. All operations are
elementwise, so a frame depends on its own number alone and never on the batch it was asked for with.
"""

import functools
import math

import numpy as np

from nuwaxl_jax.data.toons import scenery
from nuwaxl_jax.data.toons import script as script_lib
from nuwaxl_jax.data.toons import world

_CHUNK = 32  # Frames drawn together: windows of this many fit a core's cache.
_WHITE, _PUPIL = (250.0, 250.0, 250.0), (26.0, 24.0, 34.0)
_SHADOW_ALPHA, _SHADOW_REST = 0.30, 0.55  # Darkness of a shadow; its part left at the top of a jump.


def render(script: script_lib.Script, index: np.ndarray, frame_size: int) -> np.ndarray:
    """Renders frames of an episode.

    Args:
      script: the episode.
      index: int [n], frame numbers in any order, repeats allowed.
      frame_size: height and width in pixels.

    Returns:
      uint8 [n, frame_size, frame_size, 3].
    """
    index = np.asarray(index, np.int64)
    frames = _backdrops(frame_size)[script.scene[index]]  # [n, H, W, 3]
    for first in range(0, len(index), _CHUNK):
        chosen = index[first : first + _CHUNK]
        for column, identity in enumerate(script.characters):
            rows = np.flatnonzero(script.action[chosen, column] != script_lib.ABSENT)
            if not rows.size:
                continue
            at = chosen[rows]
            target = [frames[first + row] for row in rows]
            x, y = script.x[at, column], script.y[at, column]
            _draw_shadows(target, identity, x, y, frame_size)
            _draw_bodies(target, identity, x, y, script.look[at, column], frame_size)
    return frames


@functools.lru_cache(maxsize=8)
def _backdrops(frame_size: int) -> np.ndarray:
    """All scenes, uint8 [scenes, H, W, 3]."""
    return np.stack([np.rint(scenery.backdrop(scene, frame_size)).astype(np.uint8) for scene in world.SCENES])


def _window(x, y, width: float, height: float, frame_size: int):
    """Pixel windows of one size around points given in units.

    Returns:
      left, top: int [n], first column and row, possibly outside of the frame.
      dx: float32 [n, 1, w], dy: float32 [n, h, 1]: offsets in units of the pixels' centres from the point.
    """
    scale = np.float32(frame_size / world.STAGE)
    columns, rows = math.ceil(width * scale) + 2, math.ceil(height * scale) + 2
    left = np.floor(x * scale - np.float32(0.5 * columns - 0.5)).astype(np.int64)
    top = np.floor(y * scale - np.float32(0.5 * rows - 0.5)).astype(np.int64)
    px = (left[:, None] + np.arange(columns)).astype(np.float32) + np.float32(0.5)
    py = (top[:, None] + np.arange(rows)).astype(np.float32) + np.float32(0.5)
    dx, dy = px / scale - x[:, None], py / scale - y[:, None]
    return left, top, dx[:, None, :], dy[:, :, None]


def _paste(target, left, top, keep, layer) -> None:
    """Blends windows into frames: frame = keep * frame + layer.

    Args:
      target: n frames uint8 [H, W, 3], changed in place.
      left, top: int [n].
      keep: float32 [n, h, w]. layer: float32 [n, h, w, 3], in 0..255.
    """
    rows, columns = keep.shape[1:]
    for i, frame in enumerate(target):
        x0, y0 = max(left[i], 0), max(top[i], 0)
        x1, y1 = min(left[i] + columns, frame.shape[1]), min(top[i] + rows, frame.shape[0])
        if x0 >= x1 or y0 >= y1:
            continue
        part = np.s_[y0 - top[i] : y1 - top[i], x0 - left[i] : x1 - left[i]]
        under = frame[y0:y1, x0:x1]
        blend = under * keep[i][part][..., None]
        blend += layer[i][part]
        blend += np.float32(0.5)
        under[...] = blend.astype(np.uint8)


def _draw_shadows(target, identity, x, y, frame_size: int) -> None:
    r = np.float32(identity.radius)
    ground = np.full_like(x, world.GROUND + 0.5)
    left, top, dx, dy = _window(x, ground, 2.4 * identity.radius, 0.7 * identity.radius, frame_size)
    q = np.square(dx / (np.float32(1.12) * r)) + np.square(dy / (np.float32(0.3) * r))
    height = (np.float32(world.GROUND) - r - y) / np.float32(world.JUMP_HEIGHT)
    strength = np.float32(_SHADOW_ALPHA) * (1 - np.float32(1 - _SHADOW_REST) * np.clip(height, 0, 1))
    alpha = strength[:, None, None] * np.clip(np.float32(1.6) * (1 - q), 0, 1)
    _paste(target, left, top, 1 - alpha, np.zeros((1, 1, 1, 1), np.float32) * alpha[..., None])


def _draw_bodies(target, identity, x, y, look, frame_size: int) -> None:
    f = np.float32
    radius = identity.radius
    scale, r = f(frame_size / world.STAGE), f(radius)
    extent = 2 * world.HALF_WIDTH * radius + 0.4
    left, top, dx, dy = _window(x, y, extent, extent, frame_size)
    distance = world.shape_distance(identity.shape, *np.broadcast_arrays(dx, dy), radius)
    body = _coverage(distance, scale)
    fill = _coverage(distance + f(world.OUTLINE_WIDTH), scale)
    apart, height, white_radius, pupil_radius = (f(v) * r for v in world.EYES[identity.shape])
    gaze = look[:, None, None] * f(0.1) * r
    eye_x = np.abs(dx)  # Both eyes at once, by symmetry ...
    eye_y = np.square(dy - height)
    white = _coverage(np.sqrt(np.square(eye_x - apart) + eye_y) - white_radius, scale)
    side = np.where(dx < 0, -apart, apart) + gaze  # ... except that both pupils look the same way.
    pupil = _coverage(np.sqrt(np.square(dx - side) + eye_y) - pupil_radius, scale)
    shine = f(1.06) - f(0.07) * (dy / r)  # A little lighter above than below.
    w_outline = body * (1 - fill)
    w_fill = body * fill * (1 - white) * shine
    w_white = fill * white * (1 - pupil)
    w_pupil = fill * white * pupil
    layer = np.empty(body.shape + (3,), np.float32)
    for channel, value in enumerate(world.PALETTE[identity.colour]):
        layer[..., channel] = np.minimum(
            w_outline * f(world.OUTLINE_SHADE * value)
            + w_fill * f(value)
            + w_white * f(_WHITE[channel])
            + w_pupil * f(_PUPIL[channel]),
            f(255.0) * body,
        )
    _paste(target, left, top, 1 - body, layer)


def _coverage(distance: np.ndarray, scale) -> np.ndarray:
    return np.clip(np.float32(0.5) - distance * scale, 0, 1)
