"""Writes the script of an episode: shots, casts, actions and every position as a function of the frame number.

The script is drawn once from (seed, split, episode) and holds whole arrays over the episode's frames, so any frame
can be rendered alone. Structure lives on the scales that the hierarchy of NUWA-XL sees: shots last 150 to 600 frames
(keyframes at stride 225 jump from shot to shot), actions 45 to 150 frames (stride 15 sees them begin and end), and
within an action the motion is smooth (stride 1). A longer episode begins with the frames of a shorter one.
"""

import dataclasses
import functools
import hashlib
import random

import numpy as np

from nuwaxl_jax.data.toons import world

ABSENT = -1  # Action code of a character that is not on stage.
SPLITS = ("train", "valid", "test")
_CODE = {action: code for code, action in enumerate(world.ACTIONS)}
_MIN_WALK = 5.5  # Units: the shortest walk, MIN_SPEED for MIN_ACTION frames.


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """One episode of F frames with C characters.

    Attributes:
      characters: the identities, first-named first.
      scene: int8 [F], index into world.SCENES.
      shot: int16 [F], number of the shot.
      action: int8 [F, C], index into world.ACTIONS, or ABSENT.
      x, y: float32 [F, C], centres in units (meaningless where absent).
      look: float32 [F, C], where the eyes look: -1 left ... 1 right.
    """

    characters: tuple[world.Identity, ...]
    scene: np.ndarray
    shot: np.ndarray
    action: np.ndarray
    x: np.ndarray
    y: np.ndarray
    look: np.ndarray


class _Draws:
    """Random choices made of `random.Random.random` alone, whose stream Python promises never to change."""

    def __init__(self, *key):
        digest = hashlib.sha256("/".join(map(str, ("toons",) + key)).encode()).digest()
        self.unit = random.Random(int.from_bytes(digest, "big")).random

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int((high - low + 1) * self.unit())

    def choice(self, options):
        return options[int(len(options) * self.unit())]


@functools.lru_cache(maxsize=256)
def make_script(seed: int, split: str, episode: int, num_frames: int) -> Script:
    """The script of an episode, deterministic and cached.

    Raises:
      ValueError: an unknown split, or num_frames < 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {SPLITS}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    draws = _Draws(seed, split, episode)
    characters = _cast(draws)
    count, total = len(characters), num_frames + world.MAX_SHOT
    script = Script(
        characters=characters,
        scene=np.zeros(total, np.int8),
        shot=np.zeros(total, np.int16),
        action=np.full((total, count), ABSENT, np.int8),
        x=np.zeros((total, count), np.float32),
        y=np.zeros((total, count), np.float32),
        look=np.zeros((total, count), np.float32),
    )
    start, shot, scene = 0, 0, None
    while start < num_frames:
        length = draws.integer(world.MIN_SHOT, world.MAX_SHOT)
        scene = draws.choice([s for s in world.SCENES if s != scene])
        script.scene[start : start + length] = world.SCENES.index(scene)
        script.shot[start : start + length] = shot
        on_stage = list(range(count))
        if count == 2 and draws.unit() < 0.5:
            on_stage = [draws.integer(0, 1)]
        _direct_shot(draws, script, on_stage, start, length)
        start, shot = start + length, shot + 1
    arrays = {}
    for field in ("scene", "shot", "action", "x", "y", "look"):
        arrays[field] = getattr(script, field)[:num_frames].copy()
        arrays[field].flags.writeable = False
    return Script(characters=characters, **arrays)


def _cast(draws: _Draws) -> tuple[world.Identity, ...]:
    """One or two characters; two differ in both shape and colour."""
    first = world.Identity(draws.choice(world.SHAPES), draws.choice(world.COLOURS), draws.choice(world.SIZES))
    if draws.unit() < 0.3:
        return (first,)
    return first, world.Identity(
        draws.choice([s for s in world.SHAPES if s != first.shape]),
        draws.choice([c for c in world.COLOURS if c != first.colour]),
        draws.choice(world.SIZES),
    )


def _direct_shot(draws: _Draws, script: Script, on_stage: list[int], start: int, length: int) -> None:
    """Fills the frames [start, start + length) of every character on stage."""
    paired = len(on_stage) == 2
    # At most one of a pair comes late or goes early, so the stage is never empty.
    passer = draws.choice(on_stage)
    manner = draws.choice(("stay", "stay", "enter", "leave"))
    if length < world.MAX_CROSSING + 60:
        manner = "stay"
    for slot in on_stage:
        crossing = manner if slot == passer else "stay"
        begin, end = start, start + length
        if paired and crossing == "enter":
            begin += draws.integer(0, length - world.MAX_CROSSING - 60)
        elif paired and crossing == "leave":
            end -= draws.integer(0, length - world.MAX_CROSSING - 60)
        _Actor(draws, script, slot, slot if paired else None).play(begin, end, crossing)


class _Actor:
    """Writes one character's frames of one shot, action after action."""

    def __init__(self, draws: _Draws, script: Script, column: int, slot: int | None):
        self._draws, self._script, self._column = draws, script, column
        identity = script.characters[column]
        self._radius, self._half_width = identity.radius, identity.half_width
        self._low, self._high = world.legal_range(identity.half_width, slot)
        self._slot = slot

    def play(self, begin: int, end: int, crossing: str) -> None:
        """Acts from frame `begin` to frame `end`; `crossing` is 'stay', 'enter' (at begin) or 'leave' (at end)."""
        if crossing == "leave":
            end -= world.MAX_CROSSING  # Room for the way out, which may be shorter: it then starts later.
        self._frame, self._x, self._last = begin, self._place(), None
        if crossing == "enter":
            target, self._x = self._x, self._outside(self._x)
            self._travel("enters", target, self._duration(abs(target - self._x), world.MAX_CROSSING))
        while self._frame < end:
            self._next_action(end - self._frame)
        if crossing == "leave":
            outside = self._outside(self._x)
            duration = self._duration(abs(self._x - outside), world.MAX_CROSSING)
            if self._slot is None or self._draws.unit() < 0.5:
                self._linger(world.MAX_CROSSING - duration)
            self._travel("leaves", outside, duration)

    def _linger(self, frames: int) -> None:
        """Passes the time in place."""
        hops = frames // world.JUMP_PERIOD if self._last == "stands" else 0
        if hops:
            self._write("jumps", hops * world.JUMP_PERIOD, 0.0, world.JUMP_HEIGHT, hops)
        self._write("stands", frames - hops * world.JUMP_PERIOD, 0.0, 0.0)

    def _outside(self, x: float) -> float:
        """Just beyond the edge that leads to `x`: a pair keeps to its sides, a lone character takes the nearest."""
        left = x < world.STAGE / 2 if self._slot is None else self._slot == 0
        return -0.8 * self._half_width if left else world.STAGE + 0.8 * self._half_width

    def _place(self) -> float:
        """A starting place; on a narrow stage near one of its ends, so that there is room to walk."""
        u = self._draws.unit()
        if self._high - self._low < 3 * _MIN_WALK:
            u = 0.1 * u if u < 0.5 else 1.0 - 0.1 * (1.0 - u)
        return self._low + u * (self._high - self._low)

    def _duration(self, distance: float, most: int = world.MAX_ACTION) -> int:
        """Frames of a journey at a random speed within the limits."""
        frames = distance / self._draws.uniform(world.MIN_SPEED, 0.95 * world.MAX_SPEED)
        return int(min(max(round(frames), world.MIN_ACTION), most))

    def _next_action(self, rest: int) -> None:
        """One action of at most `rest` frames; a rest too short for any is spent standing."""
        draws = self._draws
        if rest < world.MIN_ACTION:
            self._write("stands", rest, 0.0, 0.0)
            return
        rooms = {"left": self._x - self._low, "right": self._high - self._x}
        options = ["stands", "jumps"] + [
            f"{verb} {side}" for verb in ("walks", "walks", "jumps") for side in rooms if rooms[side] >= _MIN_WALK
        ]
        action = draws.choice([option for option in options if option != self._last])
        if action == "stands":
            self._write(action, min(rest, draws.integer(world.MIN_ACTION, 110)), 0.0, 0.0)
            return
        hops = draws.integer(2, 3)
        if "jumps" in action and hops * world.JUMP_PERIOD > rest:
            hops = rest // world.JUMP_PERIOD
        frames = hops * world.JUMP_PERIOD
        if action == "jumps":
            self._write(action, frames, 0.0, world.JUMP_HEIGHT, hops)
            return
        side = action.split()[1]
        sign = -1.0 if side == "left" else 1.0
        limit = min(rest, world.MAX_ACTION) if "walks" in action else frames
        farthest = min(rooms[side], 0.95 * world.MAX_SPEED * limit)
        distance = draws.uniform(min(_MIN_WALK, farthest), farthest)
        if "walks" in action:
            self._travel(action, self._x + sign * distance, min(self._duration(distance), limit))
        else:
            self._write(action, frames, sign * distance, world.JUMP_HEIGHT, hops)

    def _travel(self, action: str, target: float, frames: int) -> None:
        self._write(action, frames, target - self._x, 0.0)

    def _write(self, action: str, frames: int, shift: float, height: float, hops: int = 0) -> None:
        """Writes an action that moves by `shift` units in all, with `hops` jumps of `height` units."""
        if not frames:
            return
        script, column = self._script, self._column
        rows = slice(self._frame, self._frame + frames)
        phase = (np.arange(frames) + 1.0) / frames
        if height:
            hop = phase * hops % 1.0
            rise = 4.0 * height * hop * (1.0 - hop)
        else:
            beats = max(1, round(frames / (36 if action == "stands" else 22)))
            rise = 0.5 * world.BOB_HEIGHT * (1.0 - np.cos(2.0 * np.pi * beats * phase))
        script.action[rows, column] = _CODE[action]
        script.x[rows, column] = self._x + shift * phase * phase * (3.0 - 2.0 * phase)
        script.y[rows, column] = world.GROUND - self._radius - rise
        script.look[rows, column] = np.clip(6.0 * shift / frames / world.MAX_SPEED * phase * (1.0 - phase), -1.0, 1.0)
        self._frame, self._x, self._last = self._frame + frames, self._x + shift, action
