"""Does a long video tell its story? Scores a toon video against one caption a frame.

The frames are read by `story_reader`, which knows the world but not the episode; what it sees is compared with what
the captions say. Nothing else is needed, so generated videos and ground truth are scored alike, and ground truth
must come out (nearly) perfect.

All accuracies lie in 0..1, higher is better; None says that nothing in the video could be measured. "Named" is a
character that a frame's caption names; "scored" one that is named and neither enters nor leaves just then, so that
it is wholly in view. Of two named characters the first belongs in the left half of the frame and the second in the
right; alone, a character may be anywhere. A character that should be there and is not seen counts as wrong.
"""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from nuwaxl_jax.data.toons import world
from nuwaxl_jax.evaluation import story_reader

NUM_BINS = 16  # Of the curves over frame number.
_PLACE_TOLERANCE = 2.0  # Units that a character may lie beyond its limits.
_STEP_TOLERANCE = 0.75  # Units added to the speed limits, for the reader's jitter.
_MIN_RUN, _MIN_CUT_RUN = 24, 45  # Shortest action judged; the same when the video begins or ends within it.
_MIN_NET, _MAX_DRIFT = 1.0, 2.5  # Least way of a walk, most of one who stays in place, units.
_MIN_LEAP, _MAX_IDLE = 5.0, 2.5  # Least rise of a jump, most of one who stands, units.
_LEVEL = 0.01 / 255  # Frame difference nobody sees, which keeps ratios of still videos at 1.


@dataclasses.dataclass(frozen=True)
class _Table:
    """What F frames should show and do show of K characters.

    Attributes:
      scene: bool [F], read right. shot: int [F], by the captions. count: float [F], number right, NaN if not scored.
      scored: bool [F, K]; found: bool [F, K], seen among those scored.
      action: int [F, K], index into ACTIONS, -1 where not named. side: int [F, K], -1 alone, 0 left, 1 right.
      right: dict of bool [F, K] for 'shape', 'colour', 'size'.
      seen: int [F, K], code of the identity read, -1 where not found.
      x, y, radius: float [F, K], NaN where not found.
    """

    scene: np.ndarray
    shot: np.ndarray
    count: np.ndarray
    scored: np.ndarray
    found: np.ndarray
    action: np.ndarray
    side: np.ndarray
    right: dict[str, np.ndarray]
    seen: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


def story_score(
    frames: np.ndarray, captions: Sequence[str], *, segment_length: int = 16, joins: Sequence[range] | None = None
) -> dict:
    """Scores one video.

    Args:
      frames: uint8 [F, H, W, 3], H = W.
      captions: F captions of the toon world, one a frame.
      segment_length: L of the hierarchy that made the video.
      joins: where its segments meet, of `hierarchy.strategies.joins`; None: as a tree's, at the multiples of L - 1.

    Returns:
      A JSON-serialisable dict.
      Story, each a mean over frames (of scored characters where it is about characters):
        scene: the nearest backdrop is the caption's.
        found: the character is seen in its half.
        colour, shape, size: it has the caption's.
        count: as many characters are seen as named (frames where one enters or leaves are left out).
        exact: scene, count and all of colour, shape, size are right (same frames).
      Identity, which asks for constancy and not for truth, a mean over the story's characters:
        identity: part of its scored frames in which it reads as it does most often (colour, shape and size).
        identity_shots: the same over shots: part of its shots in which it mostly reads as in most of the video.
      Motion:
        in_stage: within the frame, and within its half if there are two (2 units of tolerance), of those found.
        on_ground: feet on the ground, or at most a jump above it while it jumps (same), of those found.
        step: moved since the last frame by no more than the world's speed limit plus 0.75 units, where measurable.
        position: found, in_stage, on_ground and step together, of those scored.
        direction: of actions to the left or right, the part (weighted by frames) with a way of at least 1 unit to
          that side. action: the same for all actions: jumps rise by 5 units, others do not; those in place stay.
          Actions shorter than 24 frames (45 where the video cuts them) are not judged.
      Smoothness, mean absolute differences of neighbouring frames in 0..1, without the cuts between shots. A cut is
      where the captions' scene changes.
        difference_border, difference_inside: those where segments meet (of a tree the two on either side of a border
          frame, of clips side by side the one between them), and all others.
        border_ratio: sum over joins of the former by the sum of the latter within L - 1 frames of the join; 1 is
          seamless, above 1 segments do not join.
        border_ratio_coarse: the same at joins at the multiples of (L - 1)^2 only.
      curve: for scene, colour, shape, size, count, exact, position, action and difference: NUM_BINS means over equal
        parts of the video; `curve['frame']` holds the middle of each part.
      num_frames, num_shots, num_characters.

    Raises:
      ValueError: shapes, lengths or captions are wrong.
    """
    frames = np.asarray(frames)
    if len(frames) != len(captions):
        raise ValueError(f"captions must be one a frame: got {len(captions)} for {len(frames)} frames")
    if not len(frames):
        raise ValueError("frames must hold at least one frame, got none")
    if segment_length < 2:
        raise ValueError(f"segment_length must be at least 2, got {segment_length}")
    table = _tabulate(story_reader.read_frames(frames), captions)
    score, curves = _story(table)
    score.update(_identity(table))
    motion, motion_curves = _motion(table)
    stride = segment_length - 1
    if joins is None:
        joins = [range(border - 1, border + 1) for border in range(stride, len(frames) - 1, stride)]
    smoothness, difference = _smoothness(frames, table.shot, stride, joins)
    score.update(motion, **smoothness)
    curves.update(motion_curves, difference=np.append(difference, np.nan))
    edges = np.linspace(0, len(frames), NUM_BINS + 1)
    score["curve"] = {"frame": [float(v) for v in (edges[:-1] + edges[1:] - 1) / 2]}
    place = np.minimum(np.arange(len(frames)) * NUM_BINS // len(frames), NUM_BINS - 1)
    for name, values in curves.items():
        score["curve"][name] = [_mean(values[place == part]) for part in range(NUM_BINS)]
    score.update(num_frames=len(frames), num_shots=int(table.shot[-1]) + 1, num_characters=table.scored.shape[1])
    return score


def summarise(scores: Sequence[dict]) -> dict:
    """Joins the scores of several stories.

    Returns:
      `mean`, `min`, `max`: each number over the stories where it could be measured (for differences and border
      ratios the worst is the max); `curve`: mean curves; `num_stories`.

    Raises:
      ValueError: no scores.
    """
    if not scores:
        raise ValueError("scores must hold at least one story, got none")
    summary = {"num_stories": len(scores), "curve": {}}
    names = [name for name in scores[0] if name != "curve"]
    for how, reduce in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        summary[how] = {}
        for name in names:
            values = [score[name] for score in scores if score[name] is not None]
            summary[how][name] = float(reduce(values)) if values else None
    for name in scores[0]["curve"]:
        columns = np.array([score["curve"][name] for score in scores], float)  # None becomes NaN.
        summary["curve"][name] = [_mean(column) for column in columns.T]
    return summary


def _mean(values) -> float | None:
    """Mean of what is not NaN, None if nothing is."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values as float, NaN outside of the mask."""
    return np.where(mask, values.astype(float), np.nan)


def _row_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN, NaN if nothing is."""
    known = ~np.isnan(values)
    number = known.sum(axis=-1)
    return np.where(number > 0, np.where(known, values, 0).sum(axis=-1) / np.maximum(number, 1), np.nan)


def _tabulate(readings: list[story_reader.FrameReading], captions: Sequence[str]) -> _Table:
    """Sets what was read against what the captions name."""
    parse = functools.lru_cache(maxsize=None)(world.parse_caption)
    stories = [parse(text) for text in captions]
    columns = {}
    for _, named in stories:
        for key in _keys(named):
            columns.setdefault(key, len(columns))
    shape = (len(readings), len(columns))
    scene_right = np.array([reading.scene == scene for reading, (scene, _) in zip(readings, stories)])
    scenes = np.array([world.SCENES.index(scene) for scene, _ in stories])
    table = _Table(
        scene=scene_right,
        shot=np.cumsum(np.r_[0, np.diff(scenes) != 0]),
        count=np.full(shape[0], np.nan),
        scored=np.zeros(shape, bool),
        found=np.zeros(shape, bool),
        action=np.full(shape, -1),
        side=np.full(shape, -1),
        right={field: np.zeros(shape, bool) for field in ("shape", "colour", "size")},
        seen=np.full(shape, -1),
        x=np.full(shape, np.nan),
        y=np.full(shape, np.nan),
        radius=np.full(shape, np.nan),
    )
    for i, (reading, (_, named)) in enumerate(zip(readings, stories)):
        if all(action not in world.CROSSING for *_, action in named):
            table.count[i] = len(reading.characters) == len(named)
        for place, (key, (size, colour, shape, action)) in enumerate(zip(_keys(named), named)):
            k = columns[key]
            side = -1 if len(named) == 1 else place
            table.action[i, k], table.side[i, k] = world.ACTIONS.index(action), side
            table.scored[i, k] = action not in world.CROSSING
            seen = _candidate(reading, side, len(named)) if table.scored[i, k] else None
            if seen is None:
                continue
            table.found[i, k] = True
            table.x[i, k], table.y[i, k], table.radius[i, k] = seen.x, seen.y, seen.radius
            table.seen[i, k] = np.ravel_multi_index(
                (world.SHAPES.index(seen.shape), world.COLOURS.index(seen.colour), world.SIZES.index(seen.size)),
                (len(world.SHAPES), len(world.COLOURS), len(world.SIZES)),
            )
            for field, want in (("shape", shape), ("colour", colour), ("size", size)):
                table.right[field][i, k] = getattr(seen, field) == want
    return table


def _keys(named) -> list[tuple]:
    """A key for each named character: its look, and which of those that look so."""
    looks = [character[:3] for character in named]
    return [look + (looks[:place].count(look),) for place, look in enumerate(looks)]


def _candidate(reading: story_reader.FrameReading, side: int, number: int) -> story_reader.CharacterReading | None:
    """The most prominent character in a part of the stage: all of it (side -1), or one of `number` equal parts."""
    candidates = [
        c for c in reading.characters if side < 0 or min(max(int(c.x * number / world.STAGE), 0), number - 1) == side
    ]
    return max(candidates, key=lambda c: c.radius * c.iou, default=None)


def _story(table: _Table) -> tuple[dict, dict]:
    """Accuracies and their values per frame (NaN where not scored)."""
    curves = {"scene": table.scene.astype(float)}
    score = {"scene": _mean(table.scene), "found": _mean(_where(table.found, table.scored))}
    everything = table.scene & (table.count == 1)
    for field in ("colour", "shape", "size"):
        values = _where(table.right[field], table.scored)
        score[field], curves[field] = _mean(values), _row_mean(values)
        everything = everything & (table.right[field] | ~table.scored).all(axis=1)
    curves["count"] = table.count
    curves["exact"] = _where(everything, ~np.isnan(table.count))
    score["count"], score["exact"] = _mean(table.count), _mean(curves["exact"])
    return score, curves


def _identity(table: _Table) -> dict:
    """Constancy of each character over frames and over shots."""
    frames, shots = [], []
    for k in range(table.scored.shape[1]):
        rows = np.flatnonzero(table.scored[:, k])
        if not rows.size:
            continue
        seen = table.seen[rows, k]
        usual = _usual(seen)
        frames.append(np.mean((seen == usual) & (seen >= 0)))
        shots.append(
            np.mean(
                [_usual(seen[table.shot[rows] == shot]) == usual and usual >= 0 for shot in np.unique(table.shot[rows])]
            )
        )
    return {"identity": _mean(frames), "identity_shots": _mean(shots)}


def _usual(seen: np.ndarray) -> int:
    """The most frequent code, -1 if the character was never found."""
    seen = seen[seen >= 0]
    return int(np.bincount(seen).argmax()) if seen.size else -1


def _motion(table: _Table) -> tuple[dict, dict]:
    """Plausibility of places, steps and actions."""
    crowd = np.where(table.side < 0, 1, 2)
    low = np.maximum(table.side, 0) * world.STAGE / crowd
    inside = (table.x - table.radius >= low - _PLACE_TOLERANCE) & (
        table.x + table.radius <= low + world.STAGE / crowd + _PLACE_TOLERANCE
    )
    airborne = np.isin(table.action, [world.ACTIONS.index(action) for action in world.AIRBORNE])
    rise = world.GROUND - table.radius - table.y
    limit = np.where(airborne, world.JUMP_HEIGHT, 0.0) + _PLACE_TOLERANCE
    grounded = (rise >= -_PLACE_TOLERANCE) & (rise <= limit)
    measured = np.zeros(table.found.shape, bool)
    measured[1:] = table.found[1:] & table.found[:-1] & (table.shot[1:] == table.shot[:-1])[:, None]
    step = np.ones(table.found.shape, bool)
    step[1:] = (np.abs(np.diff(table.x, axis=0)) <= world.MAX_STEP_X + _STEP_TOLERANCE) & (
        np.abs(np.diff(table.y, axis=0)) <= world.MAX_STEP_Y + _STEP_TOLERANCE
    )
    position = _where(table.found & inside & grounded & (step | ~measured), table.scored)
    direction, action = _actions(table)
    score = {
        "in_stage": _mean(_where(inside, table.found)),
        "on_ground": _mean(_where(grounded, table.found)),
        "step": _mean(_where(step, measured)),
        "position": _mean(position),
        "direction": _mean(direction),
        "action": _mean(action),
    }
    return score, {"position": _row_mean(position), "action": _row_mean(action)}


def _actions(table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Whether each action was seen: direction and action, float [F, K], NaN where not judged."""
    direction, action = np.full(table.found.shape, np.nan), np.full(table.found.shape, np.nan)
    total = len(table.shot)
    for k in range(table.found.shape[1]):
        code = table.action[:, k]
        cuts = np.flatnonzero((np.diff(code) != 0) | (np.diff(table.shot) != 0)) + 1
        for start, end in zip(np.r_[0, cuts], np.r_[cuts, total]):
            least = _MIN_CUT_RUN if start == 0 or end == total else _MIN_RUN
            if code[start] < 0 or world.ACTIONS[code[start]] in world.CROSSING or end - start < least:
                continue
            seen = table.found[start:end, k]
            enough = seen.mean() > 0.6
            x, y = table.x[start:end, k][seen], table.y[start:end, k][seen]
            sideways, done = _judge(world.ACTIONS[code[start]], x, y) if enough else (False, False)
            action[start:end, k] = done
            if world.ACTIONS[code[start]].endswith(("left", "right")):
                direction[start:end, k] = sideways
    return direction, action


def _judge(action: str, x: np.ndarray, y: np.ndarray) -> tuple[bool, bool]:
    """Whether a path [n] goes to the side that an action says, and whether it is that action in all."""
    ends = max(1, min(5, len(x) // 4))
    way = x[-ends:].mean() - x[:ends].mean()
    sign = {"left": -1, "right": 1}.get(action.split()[-1], 0)
    sideways = bool(sign * way >= _MIN_NET if sign else abs(way) <= _MAX_DRIFT)
    leap = np.subtract(*np.percentile(y, (95, 5)))
    return sideways, sideways and bool(leap >= _MIN_LEAP if action in world.AIRBORNE else leap <= _MAX_IDLE)


def _smoothness(frames: np.ndarray, shot: np.ndarray, stride: int, joins: Sequence[range]) -> tuple[dict, np.ndarray]:
    """Differences of neighbouring frames at joins and elsewhere.

    Returns:
      The numbers, and the differences, float [F - 1], NaN at cuts.
    """
    difference = np.full(len(frames) - 1, np.nan)
    for first in range(0, len(difference), 64):
        part = frames[first : first + 65].astype(np.int16)
        difference[first : first + 64] = np.abs(np.diff(part, axis=0)).mean(axis=(1, 2, 3)) / 255
    difference[np.diff(shot) != 0] = np.nan
    beside = np.zeros(len(difference), bool)
    for join in joins:
        beside[join.start : join.stop] = True
    coarse = [join for join in joins if (join.stop - 1) % (stride * stride) == 0]
    score = {
        "difference_inside": _mean(difference[~beside]),
        "difference_border": _mean(difference[beside]),
        "border_ratio": _border_ratio(difference, beside, joins, stride),
        "border_ratio_coarse": _border_ratio(difference, beside, coarse, stride),
    }
    return score, difference


def _border_ratio(difference: np.ndarray, beside: np.ndarray, joins: Sequence[range], reach: int) -> float | None:
    """Differences at the joins by those within `reach` frames of them that are at none."""
    at_border, elsewhere = [], []
    for join in joins:
        border = join.stop - 1
        first = max(border - reach, 0)
        near = difference[first : border + reach]
        # A cut hides what lies beyond it.
        cuts = np.flatnonzero(np.isnan(near)) + first
        low = max([cut + 1 for cut in cuts if cut < border], default=first)
        high = min([cut for cut in cuts if cut >= border], default=first + len(near))
        sides = difference[max(join.start, low) : min(join.stop, high)]
        others = difference[low:high][~beside[low:high]]
        if sides.size and others.size:
            at_border.append(sides.mean() + _LEVEL)
            elsewhere.append(others.mean() + _LEVEL)
    return float(np.sum(at_border) / np.sum(elsewhere)) if at_border else None
