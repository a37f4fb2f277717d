"""Reads toon frames back: which scene, and which characters where. No network and no script.

The reader knows the world (palettes, shapes, backdrops) and nothing of the episode, so it says what a viewer would
see in a generated frame, right or wrong.

Scene: the backdrop at the least capped mean distance, so that characters in front of it do not matter.

Characters: in an opponent colour space with luma at low weight a pixel of body colour C lies at distance
`|pixel - C|`, and C's outline at distance D_C; pixels with `|pixel - C| < D_C / 2` are fill of colour C. A body is
the region around its fill that differs from the backdrop B by more than a shadow: with the residual

    e(I, B) = min over s in [0.62, 1.05] of |I - s B|

its coverage is `e(I, B) / e(outline of C, B)`, at most 1, and holes (eyes) are filled. Shape and size are those of
the silhouette, out of 4 shapes x 17 radii x sub-pixel shifts, with the largest intersection over union

    IoU(a, b) = sum min(a, b) / sum max(a, b)

with that coverage when both have the same centroid.
"""

import dataclasses
import functools
import math

import numpy as np
from scipy import ndimage

from nuwaxl_jax.data.toons import scenery
from nuwaxl_jax.data.toons import world

_OPPONENT = (
    np.array([[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [0.3, 0.3, -0.6]]) * np.array([[0.6], [1.0], [0.9]])
).astype(np.float32)
_SHINE = 1.04  # Bodies are drawn a little lighter than their palette.
_SCENE_CAP = 48.0  # Channel difference at which a pixel says no more about the scene.
_NO_SCENE = 0.62  # Capped distance, in caps, above which a frame shows none of the scenes.
_MIN_AREA = 45.0  # Square units of the smallest region read as a character; a small star has 125.
_MIN_FILL = 10.0  # Square units of fill that it must show.
_REACH = 6.0  # Units from a body's fill to the farthest point of its outline and eyes.
_SOLID = 0.4  # Coverage by fill of the pixels that say where bodies are and of which colour.
_EYE = 1.2  # Units: half the width of a gap that belongs to a body.
_SPECK = 0.3  # Most of a body's fill that may look like another colour.
_SHADE, _LIGHT = 0.62, 1.05  # A shadow's deepest tone and the brightest wash, in backdrops.
_MIN_CONTRAST = 90.0  # Lower bound of e(outline, backdrop).
_MIN_IOU = 0.45  # Below this a region is a blot and no character.
_RADII = np.arange(5.5, 13.75, 0.5)
_PHASES = 4  # Sub-pixel shifts of a template along each axis.
_CHUNK = 16  # Frames looked at together, as fit a cache.


@dataclasses.dataclass(frozen=True)
class CharacterReading:
    """A character as seen.

    Attributes:
      shape, colour, size: the nearest of the world's.
      x, y: centre, units.
      radius: units.
      iou: agreement of region and silhouette, 0..1: the confidence.
      whole: whether the region keeps off the frame's edges; shape, size and place of a cut one are a guess.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    iou: float
    whole: bool


@dataclasses.dataclass(frozen=True)
class FrameReading:
    """A frame as seen.

    Attributes:
      scene: the nearest scene, None where the frame is like none.
      scene_distance: how far it is, 0..1.
      characters: from left to right; empty without a scene.
    """

    scene: str | None
    scene_distance: float
    characters: tuple[CharacterReading, ...]


def read_frame(frame: np.ndarray) -> FrameReading:
    """Reads one frame, uint8 [H, W, 3]; see `read_frames`."""
    return read_frames(np.asarray(frame)[None])[0]


def read_frames(frames: np.ndarray) -> list[FrameReading]:
    """Reads frames, uint8 [n, H, W, 3] with H = W.

    Raises:
      ValueError: the frames have another shape or dtype.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[1] != frames.shape[2] or frames.shape[1] < 16:
        raise ValueError(f"frames must be square RGB images of at least 16 pixels, [n, H, H, 3], got {frames.shape}")
    if frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 in 0..255, got {frames.dtype}; convert them first")
    readings = []
    for first in range(0, len(frames), _CHUNK):
        readings.extend(_read_chunk(frames[first : first + _CHUNK]))
    return readings


def _read_chunk(frames: np.ndarray) -> list[FrameReading]:
    distances = scene_distances(frames)
    nearest = distances.argmin(axis=-1)
    coverage, colour = _fill_coverage(frames)
    readings = []
    for i in range(len(frames)):
        distance = float(distances[i, nearest[i]])
        known = distance < _NO_SCENE  # A body stands out from its backdrop: without one there is none to see.
        readings.append(
            FrameReading(
                scene=world.SCENES[nearest[i]] if known else None,
                scene_distance=distance,
                characters=_read_characters(frames[i], nearest[i], coverage[i], colour[i]) if known else (),
            )
        )
    return readings


def scene_distances(frames: np.ndarray) -> np.ndarray:
    """Capped mean distance of frames uint8 [n, H, H, 3] to each scene: float [n, scenes] in 0..1."""
    size = frames.shape[1]
    step = max(1, size // 32)
    backdrops = _coarse_backdrops(size, step)  # [scenes, points, 3]
    coarse = _pool(frames, step)
    distances = [
        np.minimum(np.abs(coarse - backdrop), np.float32(_SCENE_CAP)).mean(axis=(1, 2)) for backdrop in backdrops
    ]
    return np.stack(distances, axis=-1) / _SCENE_CAP


def _pool(frames: np.ndarray, step: int) -> np.ndarray:
    """Means over step x step blocks (a remainder at the edges is left out): float32 [n, points, 3]."""
    n, size = frames.shape[:2]
    cells = size // step
    blocks = frames[:, : cells * step, : cells * step].reshape(n, cells, step, cells, step, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32).reshape(n, cells * cells, 3)


@functools.lru_cache(maxsize=8)
def _coarse_backdrops(size: int, step: int) -> np.ndarray:
    return _pool(np.stack([scenery.backdrop(scene, size) for scene in world.SCENES]), step)


@functools.lru_cache(maxsize=1)
def _colour_space() -> tuple[np.ndarray, np.ndarray]:
    """Fills in the opponent space, float32 [colours, 3], and the distance D_C of each one's outline, [colours]."""
    fills = np.array([world.PALETTE[colour] for colour in world.COLOURS], np.float32)
    centres = np.minimum(fills * _SHINE, 255) @ _OPPONENT.T
    outlines = (world.OUTLINE_SHADE * fills) @ _OPPONENT.T
    return centres, np.linalg.norm(centres - outlines, axis=-1)


def _fill_coverage(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel a character's fill covers, and of which colour.

    Returns:
      coverage: float32 [n, H, W] in 0..1. colour: int8 [n, H, W], index into COLOURS.
    """
    centres, reach = _colour_space()
    points = frames.astype(np.float32) @ _OPPONENT.T  # [n, H, W, 3]
    coverage = np.zeros(frames.shape[:3], np.float32)
    colour = np.zeros(frames.shape[:3], np.int8)
    for code in range(len(centres)):
        offset = points - centres[code]
        cover = 1 - np.sqrt(np.einsum("...c,...c->...", offset, offset)) / reach[code]
        better = cover > coverage
        np.copyto(coverage, cover, where=better)
        colour[better] = code
    return coverage, colour


def _residual(pixels: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """e(I, B): how far pixels [..., 3] are from the backdrop [..., 3] in any shade; float32 [...]."""
    tone = np.einsum("...c,...c->...", pixels, backdrop) / np.einsum("...c,...c->...", backdrop, backdrop)
    offset = pixels - np.clip(tone, _SHADE, _LIGHT)[..., None] * backdrop
    return np.sqrt(np.einsum("...c,...c->...", offset, offset))


@functools.lru_cache(maxsize=8)
def _contrasts(size: int) -> np.ndarray:
    """e(outline, backdrop), float32 [scenes, colours, H, W]."""
    outlines = np.array([world.PALETTE[colour] for colour in world.COLOURS], np.float32) * world.OUTLINE_SHADE
    maps = [
        [_residual(np.broadcast_to(outline.astype(np.float32), backdrop.shape), backdrop) for outline in outlines]
        for backdrop in (scenery.backdrop(scene, size) for scene in world.SCENES)
    ]
    return np.maximum(np.array(maps, np.float32), _MIN_CONTRAST)


def _read_characters(
    frame: np.ndarray, scene: int, coverage: np.ndarray, colour: np.ndarray
) -> tuple[CharacterReading, ...]:
    """Finds and names the characters of one frame [H, W, 3]; coverage and colour [H, W] are those of fills."""
    size = len(frame)
    unit = (size / world.STAGE) ** 2  # Pixels of a square unit.
    solid = coverage > _SOLID
    counts = np.bincount(colour[solid], minlength=len(world.COLOURS))
    solid &= (counts >= _MIN_FILL * unit)[colour]
    if not solid.any():
        return ()
    margin = math.ceil(_REACH * size / world.STAGE) + 1
    box = tuple(
        slice(max(hit[0] - margin, 0), min(hit[-1] + margin + 1, size))
        for hit in (np.flatnonzero(solid.any(axis=axis)) for axis in (1, 0))
    )
    solid, colour = solid[box], colour[box]
    distance, (rows, columns) = ndimage.distance_transform_edt(~solid, return_indices=True)
    nearest = colour[rows, columns]
    contrast = np.take_along_axis(_contrasts(size)[scene][(slice(None),) + box], nearest[None].astype(int), axis=0)[0]
    residual = _residual(frame[box].astype(np.float32), scenery.backdrop(world.SCENES[scene], size)[box])
    cover = np.minimum(residual / contrast, 1) * (distance <= margin - 1)
    cover[solid] = 1.0
    labels, number = ndimage.label(_closed(cover > 0.5, _EYE * size / world.STAGE))
    characters = []
    for label in range(1, number + 1):
        for code, region in _bodies(labels == label, solid, colour):
            region = ndimage.binary_fill_holes(region)
            if region.sum() < _MIN_AREA * unit or (solid & (colour == code) & region).sum() < _MIN_FILL * unit:
                continue
            part = np.where(ndimage.binary_dilation(region) & (region | (cover <= 0.5)), cover, 0)
            part[ndimage.binary_erosion(region)] = 1.0  # Eyes included.
            rows, columns = (np.flatnonzero(region.any(axis=axis)) + box[1 - axis].start for axis in (1, 0))
            whole = bool(rows[0] > 0 and rows[-1] < size - 1 and columns[0] > 0 and columns[-1] < size - 1)
            reading = _match(part, box[0].start, box[1].start, size, world.COLOURS[code], whole)
            if reading.iou >= _MIN_IOU or not whole:
                characters.append(reading)
    return tuple(sorted(characters, key=lambda character: character.x))


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """Closing by a disc: bridges gaps narrower than its diameter, as of eyes that look like the backdrop."""
    reach = math.ceil(radius)
    padded = np.pad(mask, reach)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return closed[reach:-reach, reach:-reach] | mask


def _bodies(region: np.ndarray, solid: np.ndarray, colour: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Splits a connected region bool [h, w] into bodies of one colour: (colour, bool [h, w]) each.

    A body may show specks of other colours where its eyes blend with its fill; two bodies that touch stand side by
    side. So a minor colour amid a major one is a speck, and what is left of several colours is cut halfway.
    """
    fill = region & solid
    counts = np.bincount(colour[fill], minlength=len(world.COLOURS))
    codes = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code]]
    if len(codes) < 2:
        return [(code, region) for code in codes]
    columns = {code: np.nonzero(fill & (colour == code))[1] for code in codes}
    low, high = np.percentile(columns[codes[0]], (5, 95))
    kept = [codes[0]] + [
        code
        for code in codes[1:]
        if counts[code] > _SPECK * counts[codes[0]] or not (low <= columns[code].mean() <= high)
    ]
    if len(kept) == 1:
        return [(kept[0], region)]
    away = np.stack([ndimage.distance_transform_edt(~(fill & (colour == code))) for code in kept])
    owner = away.argmin(axis=0)
    return [(code, region & (owner == place)) for place, code in enumerate(kept)]


@dataclasses.dataclass(frozen=True)
class _Templates:
    """Silhouettes of bodies.

    Attributes:
      masks: float32 [phases, phases, K, P * P], phases along y and x, K = shapes x radii; each has its centroid at
        pixel (P // 2 + (phase + 0.5) / phases) of a P x P window.
      areas: float32 [phases, phases, K], their sums.
      offset: float [K], how far the character's centre lies below its centroid, units.
      window: P.
    """

    masks: np.ndarray
    areas: np.ndarray
    offset: np.ndarray
    window: int


@functools.lru_cache(maxsize=4)
def _templates(size: int) -> _Templates:
    scale = size / world.STAGE
    window = 2 * math.ceil(world.STAR_RADIUS * _RADII[-1] * scale) + 3
    fine = (np.arange(4 * window) + 0.5) / 4  # Points four times finer than pixels.
    centres, masks = [], []
    for shape in world.SHAPES:
        for radius in _RADII:
            middle = window / 2
            dx, dy = np.broadcast_arrays((fine[None, :] - middle) / scale, (fine[:, None] - middle) / scale)
            inside = world.shape_distance(shape, dx, dy, radius) < 0
            centroid = dy[inside].mean()
            centres.append(-centroid)
            shifted = []
            for py in range(_PHASES):
                for px in range(_PHASES):
                    x = (fine[None, :] - window // 2 - (px + 0.5) / _PHASES) / scale
                    y = (fine[:, None] - window // 2 - (py + 0.5) / _PHASES) / scale + centroid
                    distance = world.shape_distance(shape, *np.broadcast_arrays(x, y), radius) < 0
                    shifted.append(distance.reshape(window, 4, window, 4).mean(axis=(1, 3)).ravel())
            masks.append(shifted)
    masks = np.asarray(masks, np.float32).reshape(len(masks), _PHASES, _PHASES, window * window)
    masks = np.ascontiguousarray(masks.transpose(1, 2, 0, 3))  # [phases, phases, K, P * P]
    return _Templates(masks=masks, areas=masks.sum(axis=-1), offset=np.asarray(centres), window=window)


def _match(cover: np.ndarray, top: int, left: int, size: int, colour: str, whole: bool) -> CharacterReading:
    """Names the silhouette nearest to a region's coverage, float [h, w], whose first pixel is (top, left)."""
    templates, scale = _templates(size), size / world.STAGE
    window = templates.window
    total = cover.sum()
    cy = float(cover.sum(axis=1) @ (np.arange(cover.shape[0]) + 0.5) / total)  # Pixels from the crop's corner.
    cx = float(cover.sum(axis=0) @ (np.arange(cover.shape[1]) + 0.5) / total)
    row, column = int(cy), int(cx)
    patch = np.zeros((window, window), np.float32)
    # Pixel (row, column) of the crop goes to (P // 2, P // 2) of the window.
    y0, x0 = window // 2 - row, window // 2 - column
    y1, x1 = max(y0, 0), max(x0, 0)
    part = cover[y1 - y0 : window - y0, x1 - x0 : window - x0]
    patch[y1 : y1 + part.shape[0], x1 : x1 + part.shape[1]] = part
    py, px = (min(int((c - int(c)) * _PHASES), _PHASES - 1) for c in (cy, cx))
    shared = np.minimum(templates.masks[py, px], patch.ravel()).sum(axis=-1)  # [K]
    iou = shared / (templates.areas[py, px] + total - shared)
    best = int(iou.argmax())
    # A parabola through the neighbouring radii.
    shape, step = divmod(best, len(_RADII))
    radius = _RADII[step]
    if 0 < step < len(_RADII) - 1:
        low, mid, high = iou[best - 1 : best + 2]
        bend = low - 2 * mid + high
        radius += (_RADII[1] - _RADII[0]) * (0.5 * (low - high) / bend if bend < 0 else 0.0)
    sizes = list(world.RADII)
    return CharacterReading(
        shape=world.SHAPES[shape],
        colour=colour,
        size=sizes[int(np.argmin([abs(world.RADII[s] - radius) for s in sizes]))],
        x=(left + cx) / scale,
        y=(top + cy) / scale + float(templates.offset[best]),
        radius=float(radius),
        iou=float(iou[best]),
        whole=whole,
    )
