"""Paints the still backdrops of the toon world, one a scene, at any resolution.

Each painter works on a canvas several times finer than the frame, which is then averaged, so every edge is smooth.
Tones are muted: no backdrop comes near a character's fill (a test keeps it so).
"""

import functools

import numpy as np

from nuwaxl_jax.data.toons import world

_OVERSAMPLING = 4


class _Canvas:
    """A painting surface; `x`, `y` are the units of its points and every method paints over what is there."""

    def __init__(self, points: int):
        centres = (np.arange(points) + 0.5) * (world.STAGE / points)
        self.x, self.y = centres[None, :], centres[:, None]
        self.pixels = np.zeros((points, points, 3))

    def fill(self, where, colour, alpha: float = 1.0) -> None:
        where = np.broadcast_to(where, self.pixels.shape[:2])
        self.pixels[where] += alpha * (np.asarray(colour, float) - self.pixels[where])

    def gradient(self, top, bottom, low: float, high: float) -> None:
        """Rows from `low` to `high` units blend from colour `top` to colour `bottom`."""
        t = np.clip((self.y - low) / (high - low), 0, 1)[..., None]
        rows = (self.y[:, 0] >= low) & (self.y[:, 0] < high)
        blend = np.broadcast_to((1 - t) * np.asarray(top, float) + t * np.asarray(bottom, float), self.pixels.shape)
        self.pixels[rows] = blend[rows]

    def disc(self, x: float, y: float, rx: float, colour, ry: float | None = None, alpha: float = 1.0) -> None:
        ry = rx if ry is None else ry
        self.fill(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2 < 1, colour, alpha)

    def box(self, left: float, top: float, right: float, bottom: float, colour, alpha: float = 1.0) -> None:
        self.fill((self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom), colour, alpha)

    def peak(self, x: float, top: float, half: float, bottom: float, colour) -> None:
        """A triangle with its apex at (x, top) and a base of 2 * half at `bottom`."""
        self.fill((self.y < bottom) & (np.abs(self.x - x) < half * (self.y - top) / (bottom - top)), colour)

    def hills(self, base: float, height: float, period: float, shift: float, colour, bottom: float = 64.0) -> None:
        ridge = base - height * 0.5 * (1 + np.cos(2 * np.pi * (self.x - shift) / period))
        self.fill((self.y > ridge) & (self.y < bottom), colour)

    def cloud(self, x: float, y: float, size: float, colour, alpha: float = 0.9) -> None:
        where = np.zeros(self.pixels.shape[:2], bool)
        for dx, dy, r in ((-1.1, 0.25, 0.65), (0.0, 0.0, 1.0), (1.1, 0.2, 0.7)):
            where |= (((self.x - x - dx * size) / r) ** 2 + ((self.y - y - dy * size) / (0.75 * r)) ** 2) < size * size
        self.fill(where & (self.y < y + 0.55 * size), colour, alpha)


def _desert(c: _Canvas) -> None:
    c.gradient((196, 224, 232), (250, 228, 196), 0, 46)
    c.disc(50, 12, 8.5, (252, 240, 205), alpha=0.45)
    c.disc(50, 12, 6, (255, 246, 216))
    for left, top, right in ((4, 28, 17), (38, 25, 47), (47, 31, 55)):
        c.fill(
            (c.x > left - 0.16 * (c.y - top)) & (c.x < right + 0.16 * (c.y - top)) & (c.y > top) & (c.y < 46),
            (206, 158, 128),
        )
        c.fill(
            (c.x > left - 0.16 * (c.y - top)) & (c.x < right + 0.16 * (c.y - top)) & (c.y > top + 4) & (c.y < top + 6),
            (190, 142, 116),
        )
    c.hills(43, 4, 54, 24, (222, 182, 140))
    c.gradient((232, 200, 154), (214, 176, 130), 45, 64)
    c.hills(47.5, 3.4, 70, 52, (230, 196, 150), 64)
    for y, x0, x1 in ((59, 8, 26), (61.5, 34, 56), (56.8, 44, 54)):
        c.box(x0, y, x1, y + 0.7, (206, 166, 120), 0.6)
    _cactus(c, 27.5, 44.5)


def _cactus(c: _Canvas, x: float, base: float) -> None:
    tone = (124, 146, 112)
    c.box(x - 1.4, base - 12, x + 1.4, base, tone)
    c.disc(x, base - 12, 1.4, tone)
    for side, low, high in ((-1, base - 5, base - 9), (1, base - 6.5, base - 11)):
        tip = x + side * 4
        c.box(min(x, tip), low - 1, max(x, tip), low + 1, tone)
        c.box(tip - 1, high, tip + 1, low + 1, tone)
        c.disc(tip, high, 1, tone)


def _forest(c: _Canvas) -> None:
    c.gradient((206, 226, 214), (226, 234, 208), 0, 46)
    for x, y, r in ((3, 26, 8), (16, 23, 8.5), (30, 25, 8), (43, 22, 9), (57, 25, 8.5)):
        c.box(x - 1, y, x + 1, 46, (150, 158, 138))
        c.disc(x, y, r, (160, 186, 160))
    for x, y, r in ((-2, 20, 9.5), (22, 31, 7), (51, 31, 6.5), (66, 19, 10)):
        c.box(x - 1.5, y, x + 1.5, 47, (122, 104, 88))
        c.disc(x, y, r, (108, 142, 114))
        c.disc(x - 0.25 * r, y - 0.3 * r, 0.55 * r, (126, 158, 128))
    c.gradient((158, 178, 130), (130, 152, 106), 45, 64)
    c.hills(46.5, 1.6, 31, 9, (158, 178, 130), 48)
    for x, y in ((6, 57), (19, 61), (33, 58.5), (45, 61.5), (58, 57.5)):
        c.box(x, y - 1.6, x + 0.7, y, (112, 136, 92))
        c.box(x + 1.2, y - 2.2, x + 1.9, y, (112, 136, 92))


def _beach(c: _Canvas) -> None:
    c.gradient((160, 208, 232), (224, 240, 242), 0, 31)
    c.disc(13, 11, 8, (252, 244, 214), alpha=0.45)
    c.disc(13, 11, 5.5, (254, 247, 220))
    c.cloud(43, 10, 4.2, (250, 252, 253))
    c.gradient((92, 160, 182), (146, 200, 206), 31, 46)
    for y, x0, x1 in ((34, 6, 17), (35.5, 26, 34), (38, 48, 60), (40, 12, 24)):
        c.box(x0, y, x1, y + 0.7, (190, 222, 226), 0.7)
    c.fill((c.x > 40.5) & (c.x < 41.1 + (c.y - 20) * 0.75) & (c.y > 20) & (c.y < 29), (246, 244, 236))
    c.fill((c.x < 39.8) & (c.x > 39.6 - (c.y - 22) * 0.6) & (c.y > 22) & (c.y < 29), (226, 224, 218))
    c.fill((c.y > 30) & (c.y < 33) & (np.abs(c.x - 40.5) < 7.5 - (c.y - 30)), (140, 112, 98))
    c.fill(c.y > 44.2 + 0.8 * np.cos(2 * np.pi * c.x / 23), (236, 246, 244))
    c.gradient((240, 224, 190), (224, 202, 162), 46, 64)
    c.fill((c.y > 45.4 + 0.8 * np.cos(2 * np.pi * c.x / 23)) & (c.y < 46.6), (226, 208, 174))
    for x, y in ((7, 60), (24, 57), (39, 61), (55, 58.5)):
        c.disc(x, y, 1.1, (212, 188, 150), 0.5)


def _city(c: _Canvas) -> None:
    c.gradient((198, 196, 222), (240, 222, 218), 0, 46)
    c.cloud(14, 8, 3, (228, 222, 234))
    for left, top, width in ((-3, 24, 9), (8, 17, 8), (19, 26, 9), (31, 14, 8), (42, 23, 9), (54, 18, 12)):
        c.box(left, top, left + width, 46, (178, 174, 194))
    blocks = (
        (1, 30, 9, (146, 144, 164)),
        (13, 22, 9, (134, 136, 156)),
        (25, 31, 8, (150, 142, 156)),
        (36, 25, 10, (138, 136, 160)),
        (49, 32, 12, (148, 146, 162)),
    )
    for left, top, width, tone in blocks:
        c.box(left, top, left + width, 47, tone)
        for row in np.arange(top + 2.5, 43, 4.5):
            for column in np.arange(left + 1.5, left + width - 2, 3.2):
                lit = int(column * 7 + row * 3) % 3 > 0
                c.box(column, row, column + 1.8, row + 2.2, (232, 216, 178) if lit else (116, 118, 138))
    c.box(0, 46, 64, 50, (190, 188, 192))
    c.box(0, 49.4, 64, 50.2, (160, 158, 164))
    c.gradient((128, 130, 140), (112, 114, 124), 50.2, 64)
    for left in (3, 19, 35, 51):
        c.box(left, 60, left + 8, 61.2, (204, 202, 196))


def _snow(c: _Canvas) -> None:
    c.gradient((176, 200, 222), (224, 234, 242), 0, 46)
    for x, top, half, tone in (
        (12, 15, 22, (164, 182, 204)),
        (52, 12, 24, (156, 176, 200)),
        (32, 23, 18, (174, 190, 210)),
    ):
        c.peak(x, top, half, 48, tone)
        c.peak(x, top, half * 9 / (48 - top), top + 9, (242, 246, 250))
    c.hills(45, 3, 60, 14, (226, 235, 243))
    for x, base, tall in ((5, 45, 15), (24, 46, 9), (44, 45.5, 11), (59, 46, 17)):
        c.box(x - 0.8, base - 2, x + 0.8, base + 1.5, (112, 102, 100))
        for step in (0.0, 0.3, 0.6):
            c.peak(
                x,
                base - tall + tall * step * 0.9,
                0.13 * tall + 0.17 * tall * step + 1,
                base - tall * (0.62 - step),
                (112, 140, 146),
            )
        c.peak(x, base - tall, 0.08 * tall + 0.4, base - 0.8 * tall, (240, 245, 249))
    c.gradient((246, 249, 252), (218, 228, 240), 46.5, 64)
    c.hills(47.2, 1.4, 44, 40, (246, 249, 252), 50)


def _night(c: _Canvas) -> None:
    c.gradient((24, 28, 60), (66, 70, 112), 0, 46)
    for x, y, r in (
        (6, 8, 0.6),
        (15, 17, 0.5),
        (24, 6, 0.7),
        (34, 14, 0.5),
        (41, 5, 0.6),
        (59, 22, 0.6),
        (28, 24, 0.5),
        (8, 27, 0.5),
        (61, 6, 0.5),
        (44, 24, 0.5),
    ):
        c.disc(x, y, r, (226, 226, 206))
    c.disc(51, 13, 8.5, (96, 100, 138), alpha=0.35)
    c.disc(51, 13, 5.6, (238, 234, 208))
    c.disc(49.5, 11.5, 1.2, (218, 212, 186))
    c.disc(53, 15, 0.9, (218, 212, 186))
    c.hills(44, 9, 58, 12, (46, 56, 88))
    c.hills(46, 6, 50, 46, (40, 56, 76))
    c.gradient((50, 76, 80), (36, 56, 62), 46, 64)
    c.hills(47, 1.6, 40, 20, (50, 76, 80), 49)
    for x, y in ((5, 58), (17, 61), (30, 58), (44, 61), (57, 57.5)):
        c.box(x - 0.2, y - 2, x + 0.3, y, (70, 98, 92))
        c.disc(x, y - 2.2, 0.8, (176, 172, 178))


_PAINTERS = {"desert": _desert, "forest": _forest, "beach": _beach, "city": _city, "snow": _snow, "night": _night}


@functools.lru_cache(maxsize=64)
def backdrop(scene: str, size: int) -> np.ndarray:
    """A scene without characters, float32 [size, size, 3] in 0..255, read-only and cached.

    Raises:
      ValueError: an unknown scene.
    """
    if scene not in _PAINTERS:
        raise ValueError(f"scene {scene!r} is unknown; use one of {world.SCENES}")
    canvas = _Canvas(size * _OVERSAMPLING)
    _PAINTERS[scene](canvas)
    blocks = canvas.pixels.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3)
    painted = blocks.mean(axis=(1, 3)).astype(np.float32)  # [size, size, 3]
    painted.flags.writeable = False
    return painted
