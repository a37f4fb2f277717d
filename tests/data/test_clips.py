"""Training clips are exactly the segments that generation will ask for."""

import numpy as np
import pytest

from nuwaxl_jax.data import clips


def sampler(clip_length=16, weights=(1, 1, 1), segment_length=16, depth=3):
    return clips.ClipSampler(segment_length, depth, clip_length, weights)


def draw(clip_sampler, num_frames, num=2000, seed=0):
    rng = np.random.default_rng(seed)
    return [clip_sampler.sample(rng, num_frames) for _ in range(num)]


def test_strides_and_window_of_the_paper():
    assert clips.level_strides(16, 3) == (225, 15, 1)
    assert clips.window_frames(16, 3) == 3376
    assert clips.level_strides(5, 1) == (1,)
    assert clips.window_frames(5, 1) == 5


@pytest.mark.parametrize("segment_length, depth", [(3, 3), (4, 2), (5, 1)])
def test_every_segment_of_every_level_occurs_and_no_other(segment_length, depth):
    """In an episode of exactly F frames the window has one place, so the clips are the tree's segments."""
    num_frames = clips.window_frames(segment_length, depth)
    drawn = {
        (clip.level, *clip.index.tolist())
        for clip in draw(sampler(segment_length, (1,) * depth, segment_length, depth), num_frames)
    }
    expected = set()
    for level, stride in enumerate(clips.level_strides(segment_length, depth)):
        for segment in range((segment_length - 1) ** level):
            start = segment * (segment_length - 1) * stride
            expected.add((level, *range(start, start + segment_length * stride, stride)))
    assert drawn == expected


def test_windows_and_levels_are_uniform():
    drawn = draw(sampler(3, (1, 1, 2), 3, 3), 9 + 3, num=16000)
    levels = np.bincount([clip.level for clip in drawn]) / len(drawn)
    np.testing.assert_allclose(levels, [0.25, 0.25, 0.5], atol=0.02)
    starts = np.bincount([clip.index[0] for clip in drawn if clip.level == 0])
    np.testing.assert_allclose(starts / starts.sum(), np.full(4, 0.25), atol=0.03)


def test_short_clip_is_part_of_a_segment():
    drawn = draw(sampler(clip_length=4, segment_length=7, depth=2, weights=(1, 1)), 37)
    for level, stride in enumerate((6, 1)):
        index = np.array([clip.index for clip in drawn if clip.level == level])
        assert index.shape[1] == 4 and (np.diff(index) == stride).all()
        assert index.min() == 0 and index.max() == 36
        segment = index[:, 0] // (6 * stride)
        inside = index[:, 0] - segment * 6 * stride + 3 * stride <= 6 * stride
        assert inside.all(), "a clip crosses the border of two segments"


def test_single_frames_cover_the_episode():
    drawn = draw(sampler(clip_length=1), 10)
    assert {int(clip.index[0]) for clip in drawn} == set(range(10))
    assert {clip.level for clip in drawn} == {0}


def test_scattered_frames_come_one_by_one_from_the_whole_episode():
    images = clips.ClipSampler(16, 3, 4, (1, 1, 1), scattered=True)
    drawn = draw(images, 10)  # too short for any segment
    index = np.array([clip.index for clip in drawn])
    assert index.shape == (2000, 4) and {clip.level for clip in drawn} == {0} and images.min_frames == 1
    np.testing.assert_allclose(np.bincount(index.ravel()) / index.size, np.full(10, 0.1), atol=0.02)
    assert abs(np.corrcoef(index[:, 0], index[:, 1])[0, 1]) < 0.1


def test_short_episodes_serve_the_levels_that_fit():
    full = sampler()
    assert full.levels(3376).tolist() == [0, 1, 2]
    assert full.levels(3375).tolist() == [1, 2]
    assert full.levels(226).tolist() == [1, 2]
    assert full.levels(225).tolist() == [2]
    assert full.usable(16) and not full.usable(15)
    assert sampler(weights=(1, 0, 0)).min_frames == 3376
    assert sampler(clip_length=1, weights=(1, 0, 0)).min_frames == 1
    for num_frames in (16, 17, 225, 226, 300, 1000, 3375):
        for clip in draw(full, num_frames, num=300):
            assert 0 <= clip.index[0] and clip.index[-1] < num_frames
    reached = {int(clip.index[-1]) for clip in draw(full, 100)}
    assert max(reached) == 99


def test_zero_usable_episodes_is_an_error_with_counts():
    assert clips.usable_episodes(sampler(), np.array([10, 16, 4000])).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"2 found -> 0 of at least 16 frames -> 0 kept .*longest has 15"):
        clips.usable_episodes(sampler(), np.array([10, 15]))
    with pytest.raises(ValueError, match="0 found"):
        clips.usable_episodes(sampler(), np.array([], int))
    with pytest.raises(ValueError, match="at least 16"):
        sampler().sample(np.random.default_rng(0), 15)


@pytest.mark.parametrize(
    "fields, name",
    [
        (dict(clip_length=0), "clip_length"),
        (dict(clip_length=17), "clip_length"),
        (dict(weights=(1, 1)), "data.level_weights"),
        (dict(weights=(0, 0, 0)), "data.level_weights"),
        (dict(weights=(1, -1, 1)), "data.level_weights"),
        (dict(segment_length=2, clip_length=2), "hierarchy.segment_length"),
        (dict(depth=0, weights=()), "hierarchy.depth"),
    ],
)
def test_bad_settings_are_named(fields, name):
    with pytest.raises(ValueError, match=name):
        sampler(**fields)
