"""The rules of the toon world: words, palettes, geometry, limits of motion, and the caption grammar.

Every length is in stage units: the frame is 64 x 64 units whatever its resolution in pixels, x grows to the
right and y grows downwards. A character is a shape of radius r whose centre (x, y) satisfies y + r = GROUND
when it stands on the ground. Nothing here is random and nothing here draws scenery: `script` writes stories
within these rules, `render` draws them, and `evaluation.story_reader` reads frames back with nothing else.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

STAGE = 64.0  # Width and height of the stage, units.
GROUND = 54.0  # The line that feet stand on, units from the top.

SCENES = ("desert", "forest", "beach", "city", "snow", "night")
SCENE_PHRASES = {
    "desert": "in the desert",
    "forest": "in the forest",
    "beach": "on the beach",
    "city": "in the city",
    "snow": "in the snow",
    "night": "at night",
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "big")
RADII = {"small": 8.0, "big": 11.0}  # Units.
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink")
# sRGB fills. The sceneries keep to muted tones so that these stand out everywhere.
PALETTE = {
    "red": (222, 36, 36),
    "yellow": (255, 214, 10),
    "green": (16, 178, 52),
    "blue": (28, 92, 246),
    "purple": (140, 40, 196),
    "pink": (255, 112, 190),
}
ACTIONS = ("stands", "walks left", "walks right", "jumps", "jumps left", "jumps right", "enters", "leaves")
AIRBORNE = frozenset(("jumps", "jumps left", "jumps right"))
CROSSING = frozenset(("enters", "leaves"))  # Actions that pass the frame's edge.

HALF_WIDTH = 1.15  # Upper bound of half the width of any shape, in radii.
JUMP_HEIGHT = 10.0  # Units.
JUMP_PERIOD = 44  # Frames from take-off to landing.
BOB_HEIGHT = 0.7  # Idle bobbing, units.
MIN_SPEED, MAX_SPEED = 0.12, 0.24  # Mean horizontal speed of a walk, units a frame.
MAX_STEP_X = 1.5 * MAX_SPEED  # Peak horizontal speed (the easing curve peaks at 1.5 times the mean).
MAX_STEP_Y = 4.0 * JUMP_HEIGHT / JUMP_PERIOD  # Peak vertical speed, at take-off.
MIN_SHOT, MAX_SHOT = 150, 600  # Frames of a shot.
MIN_ACTION, MAX_ACTION = 45, 150  # Frames of an action on stage.
MAX_CROSSING = 190  # Frames of the way in or out.

OUTLINE_WIDTH = 0.9  # Units.
OUTLINE_SHADE = 0.42  # The outline is the fill times this.
CORNER = 0.16  # Radius of a square's rounded corners, in radii.
STAR_RADIUS, STAR_INNER = 1.2, 0.52  # Outer radius of a star in radii; its inner over its outer radius.
# Eyes in radii: half the distance between them, height of their centre, radius of the white, of the pupil.
EYES = {
    "circle": (0.36, -0.18, 0.25, 0.13),
    "square": (0.36, -0.16, 0.25, 0.13),
    "triangle": (0.24, 0.32, 0.20, 0.11),
    "star": (0.23, -0.04, 0.20, 0.11),
}

VOCABULARY = tuple(
    dict.fromkeys(" ".join(("a", "and") + SIZES + COLOURS + SHAPES + ACTIONS + tuple(SCENE_PHRASES.values())).split())
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a character is for a whole episode."""

    shape: str
    colour: str
    size: str

    @property
    def radius(self) -> float:
        return RADII[self.size]

    @property
    def half_width(self) -> float:
        return HALF_WIDTH * RADII[self.size]


@dataclasses.dataclass(frozen=True)
class CharacterTruth:
    """A character in one frame: x, y is its centre in units; `visible` the part of its width inside the frame."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    action: str
    visible: float


@dataclasses.dataclass(frozen=True)
class FrameTruth:
    """One frame: its scene, the characters on stage from left to right, its caption and its shot's number."""

    scene: str
    characters: tuple[CharacterTruth, ...]
    caption: str
    shot: int


def shape_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance of points to a shape's border, negative inside.

    Only arithmetic and square roots, which NumPy rounds alike for any batch, so that a frame never depends on the
    frames it was rendered with.

    Args:
      shape: one of SHAPES.
      dx, dy: offsets from the centre in units, any one shape, float.
      radius: units.

    Returns:
      Distance in units, same shape and dtype. (Outside a triangle's corners it is a lower bound.)

    Raises:
      ValueError: an unknown shape.
    """
    try:
        distance = _DISTANCES[shape]
    except KeyError:
        raise ValueError(f"shape {shape!r} is unknown; use one of {SHAPES}") from None
    return distance(dx, dy, np.asarray(radius, dx.dtype))


def _circle(dx, dy, r):
    return np.sqrt(dx * dx + dy * dy) - r


def _square(dx, dy, r):
    half, corner = dx.dtype.type(0.93) * r, dx.dtype.type(CORNER) * r
    qx = np.abs(dx) - (half - corner)
    qy = np.abs(dy - (r - half)) - (half - corner)  # Feet at +r.
    outside = np.sqrt(np.square(np.maximum(qx, 0)) + np.square(np.maximum(qy, 0)))
    return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def _triangle(dx, dy, r):
    # Apex (0, -1.05 r), base from (-1.13 r, r) to (1.13 r, r); the normal of a flank is (height, half base).
    height, half = 2.05, 1.13
    norm = (height * height + half * half) ** 0.5
    cast = dx.dtype.type
    flank = cast(height / norm) * np.abs(dx) - cast(half / norm) * (dy + cast(1.05) * r)
    return np.maximum(flank, dy - r)


def _star(dx, dy, r):
    # Fold the plane onto half of one arm, then the distance to a segment (after I. Quilez, "2D distance functions").
    cast = dx.dtype.type
    kx, ky = cast(0.8090169943749475), cast(-0.5877852522924731)
    outer = cast(STAR_RADIUS) * r
    centre = r - kx * outer  # The two lower points stand at +r.
    px, py = np.abs(dx), centre - dy
    fold = np.maximum(kx * px + ky * py, 0)
    px, py = px - 2 * fold * kx, py - 2 * fold * ky
    fold = np.maximum(ky * py - kx * px, 0)
    px, py = np.abs(px + 2 * fold * kx), py - 2 * fold * ky - outer
    bx, by = cast(STAR_INNER) * -ky, cast(STAR_INNER) * kx - cast(1)
    along = np.clip((px * bx + py * by) / (bx * bx + by * by), 0, outer)
    ex, ey = px - bx * along, py - by * along
    return np.sqrt(ex * ex + ey * ey) * np.sign(py * bx - px * by)


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}


def legal_range(half_width: float, slot: int | None) -> tuple[float, float]:
    """Where a character's centre may be, in units.

    Args:
      half_width: of the character, units.
      slot: None alone on stage, 0 for the first-named (left half), 1 for the second-named (right half).
    """
    low, high = {None: (0.0, STAGE), 0: (0.0, STAGE / 2), 1: (STAGE / 2, STAGE)}[slot]
    return low + half_width, high - half_width


def caption(scene: str, characters) -> str:
    """The caption of a frame; `characters` is a sequence of (size, colour, shape, action), first-named first."""
    who = " and ".join(f"a {size} {colour} {shape} {action}" for size, colour, shape, action in characters)
    return f"{who} {SCENE_PHRASES[scene]}"


def parse_caption(text: str) -> tuple[str, list[tuple[str, str, str, str]]]:
    """The inverse of `caption`.

    Returns:
      (scene, [(size, colour, shape, action), ...]).

    Raises:
      ValueError: the text is not a caption of this world; the message says which part.
    """
    for scene, phrase in SCENE_PHRASES.items():
        if text.endswith(" " + phrase):
            break
    else:
        raise ValueError(f"caption {text!r} must end with one of {tuple(SCENE_PHRASES.values())}")
    characters = []
    for part in text[: -len(phrase) - 1].split(" and "):
        words = part.split()
        action = " ".join(words[4:])
        if (
            len(words) < 5
            or words[0] != "a"
            or words[1] not in SIZES
            or words[2] not in COLOURS
            or words[3] not in SHAPES
            or action not in ACTIONS
        ):
            raise ValueError(
                f'caption {text!r}: {part!r} must read "a SIZE COLOUR SHAPE ACTION", as in '
                '"a small red square jumps left"'
            )
        characters.append((words[1], words[2], words[3], action))
    return scene, characters


def foreign_prompts(prompts: Sequence[str]) -> str:
    """One line on the prompts that are no captions of this world, whatever their case; '' where all are.

    A network that toons alone have trained has never seen their words, or not in such an order.
    """
    problems = []
    for prompt in filter(None, prompts):
        try:
            parse_caption(" ".join(prompt.lower().split()).rstrip(" ."))
        except ValueError as error:
            problems.append(str(error))
    if not problems:
        return ""
    known = "captions of toons, the only words that these weights know"
    return f"{len(problems)} of {len(prompts)} prompts are no {known}: {problems[0]}"
