"""Which frames each segment of a video has and which of them are given: pure NumPy.

Diffusion over diffusion (NUWA-XL, section 3.3): with segments of L frames and M levels a tree holds

    F_tree = (L - 1)^M + 1 frames;   level k has (L - 1)^k segments of stride s_k = (L - 1)^(M - 1 - k),

and frame l of segment i of level k is frame (i (L - 1) + l) s_k of the video. The root (k = 0) is made
from nothing. In every other level a segment's first and last frame are given by the level above and its
L - 2 inner frames are new; neighbours share their border frame.

The paper does not say how lengths between two trees are made. Ours: the smallest tree that covers F
frames, and in it only the segments that F needs. Top down, a level of stride s with S segments needs the
S + 1 border frames 0, (L-1) s, ..., S (L-1) s, so the level above needs ceil(S / (L - 1)) segments. Some
keyframes may then lie beyond F - 1.

Levels of a plan and levels of the networks. Networks are trained for fixed strides, those of the
configured depth (225, 15, 1 for L = 16, M = 3). A video of 226 frames needs two levels, strides 15 and 1,
so its plan levels 0 and 1 are the network levels 1 and 2: `LevelPlan.network_level` is the level whose
stride matches. Such a root is made by a network that mostly saw given borders at this stride; the mask,
all zero, says that nothing is given, and training draws some clips of every level with nothing given.
"""

import dataclasses
import operator

import numpy as np

_MAX_FRAME = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True, eq=False)
class LevelPlan:
    """One level of a plan: S segments of L frames.

    Attributes:
      level: position in this plan, 0 = the root. Part of each segment's key.
      network_level: level of the trained networks with this stride (module docstring).
      stride: frames of the video between two frames of a segment.
      frame_index: int32 [S, L], read-only; frame of the video. May exceed F - 1 in the last segment.
      given: bool [S, L], read-only; True where an earlier level (or window) made the frame.
      sequential: whether segments are given frames of the segment before, so that they wait for one another.
    """

    level: int
    network_level: int
    stride: int
    frame_index: np.ndarray
    given: np.ndarray
    sequential: bool = False

    @property
    def num_segments(self) -> int:
        return self.frame_index.shape[0]

    @property
    def segment_length(self) -> int:
        return self.frame_index.shape[1]

    @property
    def conditional(self) -> bool:
        """Whether any frame is given: every level but the root."""
        return bool(self.given.any())


def tree_frames(segment_length: int, depth: int) -> int:
    """Frames of the full tree, (L - 1)^depth + 1."""
    segment_length = _integer("segment_length", segment_length, 3)
    return (segment_length - 1) ** _integer("depth", depth, 1) + 1


def strides(segment_length: int, depth: int) -> tuple[int, ...]:
    """Stride of each level, root first: (L - 1)^(depth - 1 - k)."""
    segment_length = _integer("segment_length", segment_length, 3)
    depth = _integer("depth", depth, 1)
    return tuple((segment_length - 1) ** (depth - 1 - k) for k in range(depth))


def smallest_depth(num_frames: int, segment_length: int) -> int:
    """The smallest m with (L - 1)^m + 1 >= num_frames."""
    num_frames = _integer("num_frames", num_frames, 2)
    depth = 1
    while tree_frames(segment_length, depth) < num_frames:
        depth += 1
    return depth


def make_plan(
    num_frames: int,
    segment_length: int,
    depth: int | None = None,
    network_depth: int | None = None,
) -> tuple[LevelPlan, ...]:
    """Plans a video of `num_frames` frames.

    Args:
      num_frames: F >= 2.
      segment_length: L >= 3.
      depth: levels of the tree; None takes the smallest that covers F. A deeper tree than needed is
        allowed: its coarse levels still have one segment at least, with keyframes beyond F - 1.
      network_depth: depth the networks were trained for (`hierarchy.depth`); None means the plan's own.

    Returns:
      The levels, root first. Each frame below F is made by exactly one of them.

    Raises:
      ValueError: if a field is out of range, F does not fit the tree, or the tree is deeper than the
        networks.
    """
    num_frames = _integer("num_frames", num_frames, 2)
    segment_length = _integer("segment_length", segment_length, 3)
    needed = smallest_depth(num_frames, segment_length)
    depth = needed if depth is None else _integer("depth", depth, 1)
    if depth < needed:
        raise ValueError(
            f"num_frames={num_frames} does not fit a tree of depth={depth} and segment_length="
            f"{segment_length} ({tree_frames(segment_length, depth)} frames): "
            f"give depth>={needed} or fewer frames"
        )
    network_depth = depth if network_depth is None else _integer("network_depth", network_depth, 1)
    if network_depth < depth:
        raise ValueError(
            f"num_frames={num_frames} takes a tree of depth {depth} but the networks were trained for "
            f"network_depth={network_depth}: ask for at most {tree_frames(segment_length, network_depth)} "
            "frames or train with a larger hierarchy.depth"
        )
    if tree_frames(segment_length, depth) > _MAX_FRAME:
        raise ValueError(f"depth={depth} with segment_length={segment_length} has more than 2^31 frames: lower depth")

    counts = []  # segments per level, finest first
    count = -(-(num_frames - 1) // (segment_length - 1))
    for _ in range(depth):
        counts.append(count)
        count = -(-count // (segment_length - 1))
    inner = np.arange(segment_length)
    border = (inner == 0) | (inner == segment_length - 1)
    levels = []
    for level, (count, stride) in enumerate(zip(reversed(counts), strides(segment_length, depth))):
        frame = (np.arange(count)[:, None] * (segment_length - 1) + inner) * stride  # [S, L]
        given = np.broadcast_to(border if level else np.zeros_like(border), frame.shape)
        levels.append(
            LevelPlan(
                level=level,
                network_level=network_depth - depth + level,
                stride=stride,
                frame_index=_frozen(frame, np.int32),
                given=_frozen(given, bool),
            )
        )
    return tuple(levels)


def autoregressive_plan(
    num_frames: int, segment_length: int, overlap: int = 1, network_level: int = 0, stride: int = 1
) -> LevelPlan:
    """Plans the same frames as a row of sliding windows.

    Window w starts at frame w (L - overlap) stride; its first `overlap` frames are the last ones of window
    w - 1 and are given. The first window has nothing given.

    Args:
      num_frames: F >= 2, counted at the stride.
      segment_length: L >= 3.
      overlap: frames shared by two windows, 1 <= overlap < L.
      network_level: level of the networks of that stride; of stride 1, the last one.
      stride: frames of the video between two frames of a window.

    Returns:
      A LevelPlan whose "segments" are the windows; they must be made in this order.

    Raises:
      ValueError: if a field is out of range.
    """
    num_frames = _integer("num_frames", num_frames, 2)
    segment_length = _integer("segment_length", segment_length, 3)
    overlap = _integer("overlap", overlap, 1)
    network_level = _integer("network_level", network_level, 0)
    if overlap >= segment_length:
        raise ValueError(f"overlap={overlap} leaves no new frame in a window: give at most {segment_length - 1}")
    step = segment_length - overlap
    count = 1 + max(0, -(-(num_frames - segment_length) // step))
    inner = np.arange(segment_length)
    frame = np.arange(count)[:, None] * step + inner  # [W, L]
    given = (inner < overlap) & (np.arange(count)[:, None] > 0)  # [W, L]
    return LevelPlan(
        level=0,
        network_level=network_level,
        stride=_integer("stride", stride, 1),
        frame_index=_frozen(frame * stride, np.int32),
        given=_frozen(given, bool),
        sequential=True,
    )


def independent_plan(num_frames: int, segment_length: int, network_level: int = 0) -> LevelPlan:
    """Plans F frames as segments of stride 1, one after the other, that share no frame; arguments as above."""
    num_frames = _integer("num_frames", num_frames, 2)
    segment_length = _integer("segment_length", segment_length, 3)
    frame = np.arange(-(-num_frames // segment_length))[:, None] * segment_length + np.arange(segment_length)
    return LevelPlan(
        level=0,
        network_level=_integer("network_level", network_level, 0),
        stride=1,
        frame_index=_frozen(frame, np.int32),
        given=_frozen(np.zeros_like(frame), bool),
    )


def _frozen(array: np.ndarray, dtype) -> np.ndarray:
    array = np.array(array, dtype)
    array.flags.writeable = False
    return array


def _integer(name: str, value: int, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return number
