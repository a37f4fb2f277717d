"""The reader sees what is drawn, even blurred; the score is perfect on truth and falls where a video is spoilt."""

import collections
import json

import numpy as np
import pytest
from scipy import ndimage

from nuwaxl_jax.data.toons import scenery
from nuwaxl_jax.data.toons import source
from nuwaxl_jax.data.toons import world
from nuwaxl_jax.evaluation import story_reader
from nuwaxl_jax.evaluation import story_score
from nuwaxl_jax.hierarchy import strategies

_FEW = 96  # Enough for several segments.
_EPISODE, _FRAMES = 11, 480  # Two characters, walks and jumps to both sides, two shots.
_OTHER_EPISODE = 17  # Nobody of the first plays here.
_ACCURACIES = (
    "scene",
    "found",
    "colour",
    "shape",
    "size",
    "count",
    "exact",
    "identity",
    "identity_shots",
    "in_stage",
    "on_ground",
    "step",
    "position",
    "direction",
    "action",
)


@pytest.fixture(scope="module")
def sample():
    """800 frames of 80 test episodes and what they show."""
    toons = source.ToonsSource("test", num_episodes=80)
    rng = np.random.default_rng(0)
    index = [rng.choice(4096, 10, replace=False) for _ in range(80)]
    frames = np.concatenate([toons.frames(i, index[i]) for i in range(80)])
    truths = [truth for i in range(80) for truth in toons.truth(i, index[i])]
    return frames, truths


@pytest.fixture(scope="module")
def video():
    toons = source.ToonsSource("valid", num_episodes=20)
    index = np.arange(_FRAMES)
    captions = toons.captions(_EPISODE, index)
    return toons.frames(_EPISODE, index), captions


@pytest.fixture(scope="module")
def truth_score(video):
    return story_score.story_score(*video)


def _accuracies(frames, truths):
    """Part of scenes, of counts, and of fully visible characters read right; largest error of their place."""
    right, total, error = collections.Counter(), collections.Counter(), [0.0]
    for reading, truth in zip(story_reader.read_frames(frames), truths):
        total["scene"] += 1
        right["scene"] += reading.scene == truth.scene
        if all(c.visible == 1.0 for c in truth.characters):
            total["count"] += 1
            right["count"] += len(reading.characters) == len(truth.characters)
        for c in truth.characters:
            if c.visible < 1.0:
                continue
            near = [r for r in reading.characters if abs(r.x - c.x) < 6]
            total["character"] += 1
            right["character"] += len(near) == 1 and (near[0].shape, near[0].colour, near[0].size) == (
                c.shape,
                c.colour,
                c.size,
            )
            if len(near) == 1:
                error.append(max(abs(near[0].x - c.x), abs(near[0].y - c.y)))
    return {name: right[name] / total[name] for name in total}, max(error)


def test_reads_drawn_frames_without_a_mistake(sample):
    frames, truths = sample
    accuracies, error = _accuracies(frames, truths)
    assert accuracies == {"scene": 1.0, "count": 1.0, "character": 1.0}
    assert error < 0.6  # Units.


def test_reads_blurred_noisy_frames(sample):
    frames, truths = sample
    soft = ndimage.gaussian_filter(frames.astype(float), (0, 0.7, 0.7, 0))
    soft += np.random.default_rng(1).normal(0, 4, soft.shape)
    accuracies, _ = _accuracies(np.clip(np.rint(soft), 0, 255).astype(np.uint8), truths)
    assert min(accuracies.values()) >= 0.98, accuracies


def test_reads_paler_frames(sample):
    frames, truths = sample
    accuracies, _ = _accuracies((frames[:200] * 0.93 + 6).astype(np.uint8), truths[:200])
    assert min(accuracies.values()) >= 0.98, accuracies


def test_reads_other_resolutions():
    toons = source.ToonsSource("test", frame_size=96, num_episodes=20)
    frames = np.concatenate([toons.frames(i, [77, 1500]) for i in range(20)])
    truths = [truth for i in range(20) for truth in toons.truth(i, [77, 1500])]
    accuracies, _ = _accuracies(frames, truths)
    assert accuracies == {"scene": 1.0, "count": 1.0, "character": 1.0}


def test_reading_falls_with_blur(sample):
    frames, truths = sample
    found = [
        _accuracies(ndimage.gaussian_filter(frames[:300], (0, sigma, sigma, 0)), truths[:300])[0]["character"]
        for sigma in (0.5, 1.5, 3.0)
    ]
    assert found[0] > found[1] > found[2] and found[2] < 0.6


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 64, 3)),
        np.full((64, 64, 3), 255),
        np.tile([[[0], [255]]], (64, 32, 3)),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3)),
    ],
)
def test_frames_of_nothing_read_as_nothing(frame):
    reading = story_reader.read_frame(frame.astype(np.uint8))
    assert not reading.characters
    assert reading.scene in (None, "night", "snow")


def test_a_backdrop_alone_has_no_characters():
    """The reader must not take scenery for a body."""
    for scene in world.SCENES:
        reading = story_reader.read_frame(np.rint(scenery.backdrop(scene, 64)).astype(np.uint8))
        assert reading == story_reader.FrameReading(scene=scene, scene_distance=reading.scene_distance, characters=())


@pytest.mark.parametrize(
    "frames, message", [(np.zeros((2, 64, 32, 3), np.uint8), "square"), (np.zeros((2, 64, 64, 3), np.float32), "uint8")]
)
def test_other_frames_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        story_reader.read_frames(frames)


def test_truth_is_perfect(truth_score):
    assert {name: truth_score[name] for name in _ACCURACIES} == dict.fromkeys(_ACCURACIES, 1.0)
    assert 0.9 < truth_score["border_ratio"] < 1.1
    assert truth_score["num_frames"] == _FRAMES and truth_score["num_shots"] >= 2
    assert truth_score["num_characters"] == 2
    json.dumps(truth_score, allow_nan=False)


def test_curves_follow_the_video(video, truth_score):
    frames, captions = video
    assert all(len(curve) == story_score.NUM_BINS for curve in truth_score["curve"].values())
    spoilt = frames.copy()
    spoilt[_FRAMES // 2 :] = 128
    curve = story_score.story_score(spoilt, captions)["curve"]
    assert curve["scene"][:8] == [1.0] * 8 and curve["scene"][8:] == [0.0] * 8
    assert all(value in (1.0, None) for value in curve["colour"][:8])
    assert all(value in (0.0, None) for value in curve["colour"][8:])


def test_swapped_colours_cost_colour_alone(video):
    frames, captions = video
    lie = {"red": "blue", "blue": "red", "yellow": "pink", "pink": "yellow", "green": "purple", "purple": "green"}
    told = [" ".join(lie.get(word, word) for word in text.split()) for text in captions]
    score = story_score.story_score(frames, told)
    assert score["colour"] == 0.0 and score["exact"] == 0.0
    assert score["shape"] == score["size"] == score["scene"] == score["identity"] == score["position"] == 1.0


def test_changing_looks_cost_identity(video, truth_score):
    """Another cast from the middle of the video on: the captions agree, the identity does not."""
    frames, captions = video
    other = source.ToonsSource("valid", num_episodes=20).frames(_OTHER_EPISODE, np.arange(_FRAMES))
    half = np.where(np.arange(_FRAMES)[:, None, None, None] < _FRAMES // 2, frames, other)
    score = story_score.story_score(half, captions)
    assert score["identity"] < 0.8 * truth_score["identity"]


def test_frozen_video_costs_action(video):
    frames, captions = video
    still = np.repeat(frames[:1], _FRAMES, axis=0)
    score = story_score.story_score(still, captions)
    assert score["direction"] == 0.0 and score["action"] < 0.6
    assert score["scene"] < 1.0
    assert score["border_ratio"] == 1.0  # A still video has no seams.
    assert score["difference_inside"] == 0.0


def test_walking_the_wrong_way_costs_direction_alone(video):
    frames, captions = video
    turned = {"left": "right", "right": "left"}
    told = [" ".join(turned.get(word, word) for word in text.split()) for text in captions]
    score = story_score.story_score(frames, told)
    assert score["direction"] == 0.0 and score["action"] < 0.8
    assert score["exact"] == score["position"] == score["identity"] == 1.0


def test_flicker_at_borders_raises_the_border_ratio(video, truth_score):
    frames, captions = video
    flicker = frames.astype(int)
    flicker[15::15] += 3
    flicker = np.clip(flicker, 0, 255).astype(np.uint8)
    score = story_score.story_score(flicker, captions)
    assert score["border_ratio"] > 2 * truth_score["border_ratio"]
    assert score["difference_border"] > 2 * score["difference_inside"]
    assert score["exact"] > 0.99
    # The same flicker between borders must not look like a seam, and other segments have other borders.
    assert story_score.story_score(flicker, captions, segment_length=15)["border_ratio"] < 1.5
    coarse = frames.astype(int)
    coarse[225::225] += 6
    score = story_score.story_score(np.clip(coarse, 0, 255).astype(np.uint8), captions)
    assert score["border_ratio_coarse"] > 2.5 and score["border_ratio_coarse"] > 2 * score["border_ratio"]


def _pushed(frames, firsts):
    """Everything one pixel further to the right from each of these frames on, and back from the next one on."""
    out = frames.copy()
    for number, first in enumerate(firsts):
        if number % 2 == 0:
            last = firsts[number + 1] if number + 1 < len(firsts) else len(frames)
            out[first:last] = np.roll(out[first:last], 1, axis=2)
    return out


@pytest.mark.parametrize(
    "strategy, depth, overlap, firsts",
    [
        ("independent", 3, 1, range(16, _FEW, 16)),
        ("side_by_side", 1, 1, range(16, _FEW, 16)),
        ("autoregressive", 3, 8, range(16, _FEW, 8)),
        ("autoregressive", 3, 1, range(16, _FEW, 15)),
        ("diffusion_over_diffusion", 3, 1, range(15, _FEW, 15)),
    ],
)
def test_joins_are_looked_for_where_a_way_has_them(video, strategy, depth, overlap, firsts):
    frames, captions = (part[:_FEW] for part in video)
    joins = strategies.joins(strategies.plans(strategy, _FEW, 16, depth, overlap), _FEW)
    jumpy = _pushed(frames, list(firsts))
    ratio = story_score.story_score(jumpy, captions, joins=joins)["border_ratio"]
    assert ratio > 2
    if 15 % (firsts[1] - firsts[0]):  # a tree's joins are elsewhere
        assert story_score.story_score(jumpy, captions)["border_ratio"] < ratio / 2
    assert story_score.story_score(frames, captions, joins=joins)["border_ratio"] < 1.5


def test_teleports_cost_steps_and_position(video, truth_score):
    frames, captions = video
    order = np.arange(_FRAMES)
    order[1::2] = np.minimum(order[1::2] + 12, _FRAMES - 1)
    score = story_score.story_score(frames[order], captions)
    assert score["step"] < 0.9 and score["position"] < 0.95


def test_floating_characters_cost_the_ground(video):
    frames, captions = video
    score = story_score.story_score(np.roll(frames, -4, axis=1), captions)
    assert score["on_ground"] < 0.7


def test_foreign_captions_and_lengths_are_refused(video):
    frames, captions = video
    with pytest.raises(ValueError, match="one a frame"):
        story_score.story_score(frames, captions[:-1])
    with pytest.raises(ValueError, match="a dog barks"):
        story_score.story_score(frames[:1], ["a dog barks"])
    with pytest.raises(ValueError, match="segment_length"):
        story_score.story_score(frames, captions, segment_length=1)
    with pytest.raises(ValueError, match="at least one"):
        story_score.story_score(frames[:0], [])


def test_short_videos_leave_out_what_cannot_be_measured(video):
    frames, captions = video
    score = story_score.story_score(frames[:1], captions[:1])
    assert score["scene"] == 1.0
    assert score["border_ratio"] is None and score["step"] is None and score["action"] is None
    json.dumps(score, allow_nan=False)


def test_summary_gives_mean_and_extremes(truth_score):
    worse = dict(truth_score, scene=0.5, border_ratio=None)
    summary = story_score.summarise([truth_score, worse])
    assert summary["num_stories"] == 2
    assert summary["mean"]["scene"] == 0.75 and summary["min"]["scene"] == 0.5 and summary["max"]["scene"] == 1.0
    assert summary["mean"]["border_ratio"] == truth_score["border_ratio"]
    assert summary["curve"]["scene"] == truth_score["curve"]["scene"]
    json.dumps(summary, allow_nan=False)
    with pytest.raises(ValueError, match="scores"):
        story_score.summarise([])
