"""The tree of segments: known sizes, and what must hold for any length."""

import numpy as np
import pytest

from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import strategies


@pytest.mark.parametrize(
    "segment_length, num_frames, segments",
    [
        (16, 16, [1]),
        (16, 226, [1, 15]),
        (16, 3376, [1, 15, 225]),
        (16, 1024, [1, 5, 69]),
        (8, 8, [1]),
        (8, 50, [1, 7]),
        (8, 344, [1, 7, 49]),
    ],
)
def test_segments_of_known_videos(segment_length, num_frames, segments):
    plans = plan_lib.make_plan(num_frames, segment_length)
    assert [plan.num_segments for plan in plans] == segments
    assert [plan.stride for plan in plans] == [(segment_length - 1) ** k for k in reversed(range(len(plans)))]


def test_tree_sizes_and_strides():
    assert [plan_lib.tree_frames(16, m) for m in (1, 2, 3, 4)] == [16, 226, 3376, 50626]
    assert plan_lib.strides(16, 3) == (225, 15, 1)
    assert plan_lib.strides(8, 1) == (1,)
    assert [plan_lib.smallest_depth(f, 16) for f in (2, 16, 17, 226, 227, 3376, 3377)] == [1, 1, 2, 2, 3, 3, 4]


def _check_made_once(plans, num_frames):
    made = set()
    for plan in plans:
        before = frozenset(made)
        frame, given = plan.frame_index, plan.given
        assert frame.shape == given.shape == (plan.num_segments, plan.segment_length)
        assert set(frame[given].tolist()) <= before, "a given frame is not made yet"
        new = frame[~given].tolist()
        assert len(new) == len(set(new)) and not before & set(new), "a frame is made twice"
        made |= set(new)
        assert (np.diff(frame, axis=1) == plan.stride).all()
    assert set(range(num_frames)) <= made


@pytest.mark.parametrize("segment_length", [3, 4, 5, 8, 16])
def test_every_frame_is_made_once_and_given_frames_before(segment_length):
    for num_frames in [*range(2, 70), 226, 227, 344, 1024]:
        smallest = plan_lib.smallest_depth(num_frames, segment_length)
        for depth in (None, smallest, smallest + 1, smallest + 2):
            plans = plan_lib.make_plan(num_frames, segment_length, depth)
            assert len(plans) == (depth or smallest)
            _check_made_once(plans, num_frames)
            assert plans[0].num_segments == 1 and not plans[0].conditional
            for plan in plans[1:]:
                assert plan.conditional
                assert (plan.given[:, [0, -1]]).all() and not plan.given[:, 1:-1].any()
            for plan in plans:  # neighbours share their border frame
                np.testing.assert_array_equal(plan.frame_index[:-1, -1], plan.frame_index[1:, 0])


def test_no_segment_is_made_that_nobody_needs():
    for num_frames in range(2, 200):
        plans = plan_lib.make_plan(num_frames, 4, depth=6)
        needed = set(range(num_frames))
        for plan in reversed(plans):
            for frame, given in zip(plan.frame_index, plan.given):
                assert needed & set(frame[~given].tolist()), (num_frames, plan.level)
            needed |= set(plan.frame_index[plan.given].tolist())


def test_network_level_is_the_one_of_the_same_stride():
    trained = plan_lib.strides(16, 3)
    for num_frames, levels in [(10, [2]), (226, [1, 2]), (1024, [0, 1, 2])]:
        plans = plan_lib.make_plan(num_frames, 16, network_depth=3)
        assert [plan.network_level for plan in plans] == levels
        assert [plan.level for plan in plans] == list(range(len(plans)))
        assert all(trained[plan.network_level] == plan.stride for plan in plans)
    assert [plan.network_level for plan in plan_lib.make_plan(16, 16, depth=3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "args, message",
    [
        (dict(num_frames=1, segment_length=16), "num_frames must be an integer of at least 2"),
        (dict(num_frames=16.0, segment_length=16), "num_frames must be an integer"),
        (dict(num_frames=16, segment_length=2), "segment_length must be an integer of at least 3"),
        (dict(num_frames=16, segment_length=16, depth=0), "depth must be"),
        (dict(num_frames=227, segment_length=16, depth=2), "give depth>=3"),
        (dict(num_frames=3377, segment_length=16, network_depth=3), "at most 3376 frames"),
        (dict(num_frames=16, segment_length=16, depth=9), "lower depth"),
    ],
)
def test_mistakes_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        plan_lib.make_plan(**args)


def test_plans_cannot_be_changed():
    plan = plan_lib.make_plan(16, 16)[0]
    with pytest.raises(ValueError):
        plan.frame_index[0, 0] = 1


@pytest.mark.parametrize("segment_length", [3, 4, 16])
def test_windows_make_every_frame_once(segment_length):
    for overlap in range(1, segment_length):
        for num_frames in [2, 3, 4, 5, 15, 16, 17, 31, 32, 100]:
            plan = plan_lib.autoregressive_plan(num_frames, segment_length, overlap)
            made = set()
            for w, (frame, given) in enumerate(zip(plan.frame_index, plan.given)):
                assert given.sum() == (overlap if w else 0)
                assert set(frame[given].tolist()) <= made
                assert not made & set(frame[~given].tolist())
                assert w == 0 or frame[~given][0] < num_frames, "a window nobody needs"
                made |= set(frame[~given].tolist())
            assert made >= set(range(num_frames))


def test_windows_of_known_videos():
    assert plan_lib.autoregressive_plan(226, 16).num_segments == 15
    assert plan_lib.autoregressive_plan(1024, 16).num_segments == 69
    assert plan_lib.autoregressive_plan(226, 16, overlap=8).num_segments == 28
    assert plan_lib.autoregressive_plan(226, 16, network_level=2).network_level == 2
    with pytest.raises(ValueError, match="overlap=16 leaves no new frame"):
        plan_lib.autoregressive_plan(226, 16, overlap=16)


@pytest.mark.parametrize("strategy", list(strategies.STRATEGIES))
def test_every_strategy_makes_every_frame_once_from_what_is_there(strategy):
    for num_frames in (2, 3, 15, 16, 17, 31, 50, 226):
        for overlap in (1, 5):
            made, counted = set(), 0
            for plan in strategies.plans(strategy, num_frames, 16, 3, overlap):
                before = set(made)
                for frame, given in zip(plan.frame_index, plan.given):
                    assert set(frame[given].tolist()) <= (made if plan.sequential else before)
                    made |= set(frame[~given].tolist())
                    counted += int((~given).sum())
            assert made >= set(range(num_frames)) and counted == len(made)


def test_levels_of_known_baselines():
    first, gaps = strategies.plans("hierarchy_2", 3376, 16, 3, 8)
    assert (first.num_segments, first.stride, first.network_level) == (28, 15, 1)  # 226 keyframes, 8 new a window
    assert (gaps.num_segments, gaps.stride, gaps.network_level) == (225, 1, 2)
    [alone] = strategies.plans("independent", 3376, 16, 3, 1)
    assert alone.num_segments == 211 and not alone.conditional and not alone.sequential
    assert strategies.plans("hierarchy_2", 16, 16, 3, 8)[0].stride == 1  # one segment, as every strategy makes it
    with pytest.raises(ValueError, match="hierarchy_2 needs networks of two strides"):
        strategies.plans("hierarchy_2", 17, 16, 1, 1)
    with pytest.raises(ValueError, match="choose one of diffusion_over_diffusion"):
        strategies.plans("nearest", 17, 16, 1, 1)


@pytest.mark.parametrize("num_frames", [9, 10, 11, 20, 31, 47])
def test_trees_side_by_side_share_no_frame(num_frames):
    levels = strategies.plans("side_by_side", num_frames, 4, 2, 1)  # trees of 10 frames
    made, counted = set(), 0
    for level in levels:
        assert set(level.frame_index[level.given].tolist()) <= made
        made |= set(level.frame_index[~level.given].tolist())
        counted += int((~level.given).sum())
    assert made >= set(range(num_frames)) and counted == len(made)
    assert levels[0].num_segments == -(-num_frames // 10) and [level.stride for level in levels] == [3, 1]
    inside = [set((frame // 10).tolist()) for level in levels for frame in level.frame_index if frame[-1] < num_frames]
    assert all(len(tree) == 1 for tree in inside)


@pytest.mark.parametrize(
    "strategy, frames, depth, overlap, wanted",
    [
        ("diffusion_over_diffusion", 47, 3, 1, [(14, 16), (29, 31), (44, 46)]),
        ("diffusion_over_diffusion", 46, 3, 1, [(14, 16), (29, 31)]),  # the last frame joins nothing
        ("diffusion_over_diffusion", 16, 3, 1, []),
        ("autoregressive", 47, 3, 1, [(14, 16), (29, 31), (44, 46)]),
        ("autoregressive", 32, 3, 8, [(14, 16), (22, 24)]),  # 15 and 23 are the last frames that are given
        ("hierarchy_2", 47, 3, 8, [(14, 16), (29, 31), (44, 46)]),
        ("independent", 48, 3, 1, [(15, 16), (31, 32)]),
        ("side_by_side", 40, 1, 1, [(15, 16), (31, 32)]),
        (
            "side_by_side",
            258,
            2,
            1,
            [*((b - 1, b + 1) for b in range(15, 225, 15)), (225, 227), (240, 242), (255, 257)],
        ),
    ],
)
def test_segments_join_where_one_hands_over_to_the_next(strategy, frames, depth, overlap, wanted):
    found = strategies.joins(strategies.plans(strategy, frames, 16, depth, overlap), frames)
    assert [(join.start, join.stop) for join in found] == wanted
