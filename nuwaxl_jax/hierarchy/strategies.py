"""Ways to make F frames out of segments of L: the paper's, and what it is compared with.

diffusion_over_diffusion  the paper's tree (section 3.3): levels one after the other, a level's segments at once.
autoregressive            a sliding window: each segment is given the last `overlap` frames of the one before, the
                          paper's "autoregressive over diffusion" (its Table 1 compares with FDM so conditioned).
hierarchy_2               after the Flexible Diffusion Model's schedule of that name (arXiv:2205.11495): keyframes
                          of stride L - 1 by a sliding window, then the gaps between them, each given both ends. Ours
                          fills the gaps at once, theirs one after the other; theirs has one network for any choice of
                          frames, ours the networks of strides L - 1 and 1.
independent               segments that know nothing of one another but their prompts.
side_by_side              whole trees of the networks' depth, as many as it takes, that know nothing of one another:
                          what a video longer than a tree can be made of. The paper does not say how its depths 1 and
                          2 make 1024 frames (Table 2c); with depth 1 this is `independent`.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from nuwaxl_jax.hierarchy import plan as plan_lib

Plans = tuple[plan_lib.LevelPlan, ...]


def _tree(num_frames: int, length: int, depth: int, overlap: int) -> Plans:
    del overlap
    return plan_lib.make_plan(num_frames, length, network_depth=depth)


def _windows(num_frames: int, length: int, depth: int, overlap: int) -> Plans:
    return (plan_lib.autoregressive_plan(num_frames, length, overlap, depth - 1),)


def _hierarchy_2(num_frames: int, length: int, depth: int, overlap: int) -> Plans:
    if num_frames <= length:
        return _windows(num_frames, length, depth, overlap)
    if depth < 2:
        raise ValueError("hierarchy.strategy: hierarchy_2 needs networks of two strides; train with hierarchy.depth=2")
    finest = plan_lib.make_plan(num_frames, length)[-1]
    keyframes = finest.num_segments + 1
    first = plan_lib.autoregressive_plan(keyframes, length, overlap, depth - 2, stride=length - 1)
    return first, dataclasses.replace(finest, level=1, network_level=depth - 1)


def _independent(num_frames: int, length: int, depth: int, overlap: int) -> Plans:
    del overlap
    return (plan_lib.independent_plan(num_frames, length, depth - 1),)


def _side_by_side(num_frames: int, length: int, depth: int, overlap: int) -> Plans:
    del overlap
    whole = plan_lib.tree_frames(length, depth)
    starts = range(0, num_frames, whole)
    trees = [plan_lib.make_plan(max(2, min(whole, num_frames - s)), length, depth) for s in starts]
    return tuple(
        dataclasses.replace(
            levels[0],
            frame_index=np.concatenate([level.frame_index + start for start, level in zip(starts, levels)]),
            given=np.concatenate([level.given for level in levels]),
        )
        for levels in zip(*trees)
    )


def plans(strategy: str, num_frames: int, length: int, depth: int, overlap: int) -> Plans:
    """The levels, first to last.

    Args:
      strategy: of `STRATEGIES`.
      num_frames: F >= 2.
      length: L, frames of a segment.
      depth: levels that the networks were trained for.
      overlap: frames that a sliding window is given.

    Raises:
      ValueError: the networks do not suffice, or an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"hierarchy.strategy is {strategy!r}; choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[strategy](num_frames, length, depth, overlap)


def joins(plans: Sequence[plan_lib.LevelPlan], num_frames: int) -> tuple[range, ...]:
    """Where the segments of stride 1 meet, as differences of neighbouring frames: i is that of frames i and i + 1.

    A segment that is given its first frames joins at the last of them, b: differences b - 1 and b. One that is given
    nothing joins the frame before it: that difference alone. The video's first and last frames join nothing.
    """
    found = set()
    for first, given in zip(plans[-1].frame_index[:, 0].tolist(), plans[-1].given):
        at = first + (int(np.argmin(given)) - 1 if given[0] else 0)
        if 0 < at < num_frames - 1:
            found.add((at - 1, at + 1 if given[0] else at))
    return tuple(range(*join) for join in sorted(found))


def knows_no_future(strategy: str, plans: Sequence[plan_lib.LevelPlan] = (), depth: int = 1) -> bool:
    """Whether segments of stride 1 are made without their last frame given: such ones need noise to start from.

    So are those of a tree of several levels which is asked for no more frames than a segment has.

    Args:
      plans: of a video, or one of its levels.
      depth: levels of the networks; those of one level have no other segments, and their own settings.
    """
    if strategy in ("autoregressive", "independent"):
        return True
    return depth > 1 and any(p.network_level == depth - 1 and not p.given[:, -1].any() for p in plans)


STRATEGIES = {
    "diffusion_over_diffusion": _tree,
    "autoregressive": _windows,
    "hierarchy_2": _hierarchy_2,
    "independent": _independent,
    "side_by_side": _side_by_side,
}
