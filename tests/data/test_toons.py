"""The toons: deterministic, random access, within the rules of their world, and true to their captions."""

import concurrent.futures
import hashlib
import itertools

import numpy as np
import pytest

from nuwaxl_jax.data.toons import scenery
from nuwaxl_jax.data.toons import script as script_lib
from nuwaxl_jax.data.toons import source
from nuwaxl_jax.data.toons import world


def _runs(values):
    """(start, end) of each run of equal values."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    return list(zip(np.r_[0, cuts], np.r_[cuts, len(values)]))


def test_script_stays_what_it_was():
    """Datasets, papers and checkpoints refer to episodes by number: the stream must never change."""
    script = script_lib.make_script(0, "train", 7, 4096)
    stored = np.concatenate(
        [
            script.scene,
            script.shot.astype(np.int8),
            script.action.ravel(),
            np.rint(script.x[::50] * 8).astype(np.int16).ravel(),
        ]
    ).astype("<i2")
    assert hashlib.sha256(stored.tobytes()).hexdigest()[:16] == "25dbff6d7ce19f67"


def test_frames_are_random_access_in_any_batch_order_and_instance():
    toons = source.ToonsSource("train", num_episodes=10)
    index = np.arange(130, 210)
    together = toons.frames(3, index)
    assert together.shape == (80, 64, 64, 3) and together.dtype == np.uint8
    order = np.random.default_rng(0).permutation(80)
    np.testing.assert_array_equal(toons.frames(3, index[order]), together[order])
    script_lib.make_script.cache_clear()
    again = source.ToonsSource("train", num_episodes=99)
    for j in (0, 31, 32, 79):
        np.testing.assert_array_equal(again.frames(3, index[j : j + 1])[0], together[j])


def test_threads_get_the_same_frames():
    toons = source.ToonsSource("train", num_episodes=8, episode_frames=300)
    jobs = [(i, np.arange(k, 300, 37)) for i in range(8) for k in range(4)]
    expected = [toons.frames(*job) for job in jobs]
    script_lib.make_script.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(lambda job: toons.frames(*job), jobs), expected):
            np.testing.assert_array_equal(got, want)


def test_longer_episode_begins_with_the_shorter():
    short = source.ToonsSource("valid", episode_frames=500)
    long = source.ToonsSource("valid", episode_frames=5000)
    assert short.truth(4, np.arange(0, 500, 7)) == long.truth(4, np.arange(0, 500, 7))


def test_splits_and_seeds_share_no_episode():
    seen = set()
    for split, seed in itertools.product(script_lib.SPLITS, (0, 1)):
        for i in range(20):
            seen.add(script_lib.make_script(seed, split, i, 400).x.tobytes())
    assert len(seen) == 6 * 20


@pytest.mark.parametrize("episode", range(12))
def test_rules_of_the_world(episode):
    script = script_lib.make_script(5, "train", episode, 4096)
    assert np.all((script.action != script_lib.ABSENT).any(axis=1))  # The stage is never empty.
    shots = _runs(script.shot)
    for start, end in shots[:-1]:
        assert world.MIN_SHOT <= end - start <= world.MAX_SHOT
        assert script.scene[end] != script.scene[end - 1]
        assert len(set(script.scene[start:end])) == 1
    for start, end in shots:
        present = script.action[start:end] != script_lib.ABSENT
        paired = present.any(axis=0).sum() == 2
        for column, who in enumerate(script.characters):
            on = present[:, column]
            if not on.any():
                continue
            rows = np.flatnonzero(on) + start
            assert np.all(np.diff(rows) == 1)  # A character comes and goes once a shot at most.
            x, y = script.x[rows, column], script.y[rows, column]
            assert np.abs(np.diff(x)).max() <= world.MAX_STEP_X
            assert np.abs(np.diff(y)).max() <= world.MAX_STEP_Y
            rise = world.GROUND - who.radius - y
            assert rise.min() >= -1e-4 and rise.max() <= world.JUMP_HEIGHT + 1e-4
            low, high = world.legal_range(who.half_width, column if paired else None)
            for first, last in _runs(script.action[rows, column]):
                action = world.ACTIONS[script.action[rows[first], column]]
                if action not in world.CROSSING:
                    assert x[first:last].min() >= low - 1e-3 and x[first:last].max() <= high + 1e-3
                if action not in world.AIRBORNE:
                    assert rise[first:last].max() <= world.BOB_HEIGHT + 1e-4
                elif rows[last - 1] < 4095:
                    assert rise[first:last].max() > 0.95 * world.JUMP_HEIGHT
                shift = x[last - 1] - x[first]
                if "left" in action or "right" in action:
                    assert (shift < 0) == ("left" in action) or last - first < 3
                assert last - first <= 200


def test_pairs_keep_their_halves_and_order():
    toons = source.ToonsSource("train", num_episodes=40)
    pairs = 0
    for i in range(40):
        for truth in toons.truth(i, np.arange(0, 4096, 101)):
            if len(truth.characters) == 2:
                first, second = truth.characters
                pairs += 1
                assert first.x + world.HALF_WIDTH * world.RADII[first.size] <= 32.001
                assert second.x - world.HALF_WIDTH * world.RADII[second.size] >= 31.999
    assert pairs > 100


def test_everything_happens():
    """Each scene, identity and action is common enough to be learnt; arrivals and departures occur."""
    toons = source.ToonsSource("train", num_episodes=60)
    truths = [t for i in range(60) for t in toons.truth(i, np.arange(0, 4096, 67))]
    people = [c for t in truths for c in t.characters]
    for field, options, least in (
        ("shape", world.SHAPES, 0.1),
        ("colour", world.COLOURS, 0.06),
        ("size", world.SIZES, 0.3),
        ("action", world.ACTIONS, 0.015),
    ):
        for option in options:
            assert np.mean([getattr(c, field) == option for c in people]) > least, option
    for scene in world.SCENES:
        assert np.mean([t.scene == scene for t in truths]) > 0.1, scene
    assert 0.2 < np.mean([len(t.characters) == 2 for t in truths]) < 0.7
    assert np.mean([c.visible == 1.0 for c in people]) > 0.9


def test_captions_are_closed_and_parse_back():
    toons = source.ToonsSource("test", num_episodes=30)
    words = set()
    for i in range(30):
        index = np.arange(0, 4096, 89)
        captions = toons.captions(i, index)
        for text, truth in zip(captions, toons.truth(i, index)):
            assert text == truth.caption
            words.update(text.split())
            assert len(text.split()) <= 18  # Fits 20 tokens with both ends.
            scene, characters = world.parse_caption(text)
            assert scene == truth.scene
            assert characters == [(c.size, c.colour, c.shape, c.action) for c in truth.characters]
    assert words <= set(world.VOCABULARY)
    assert words == set(world.VOCABULARY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red dog",
        "a small red square jumps on the moon",
        "a small red square flies in the desert",
        "small red square jumps in the desert",
    ],
)
def test_foreign_captions_are_refused(text):
    with pytest.raises(ValueError, match="caption"):
        world.parse_caption(text)


def test_prompts_of_another_world_are_told_of():
    told = ["a small red square jumps in the desert", "A Big  Blue Star stands at night.", ""]
    assert world.foreign_prompts(told) == ""
    said = world.foreign_prompts([*told, "a cat in Paris", "a dog at night"])
    assert said.startswith("2 of 5 prompts are no captions of toons") and "'a cat in paris' must end with" in said


def test_a_body_is_where_the_truth_says_at_any_resolution():
    """The pixels that differ from the backdrop are centred on (x, y) and carry the colour."""
    for size in (64, 128):
        toons = source.ToonsSource("train", frame_size=size, num_episodes=30)
        for i in range(30):
            truth = toons.truth(i, [200])[0]
            frame = toons.frames(i, [200])[0].astype(float)
            for c in truth.characters:
                if c.visible < 1.0:
                    continue
                near = np.abs(frame - world.PALETTE[c.colour]).max(axis=-1) < 26
                rows, columns = np.nonzero(near)
                unit = world.STAGE / size
                radius = world.RADII[c.size]
                assert abs((columns.min() + columns.max() + 1) / 2 * unit - c.x) < 1.0
                height = (rows.max() - rows.min() + 1) * unit
                assert 1.3 * radius < height < 2.2 * radius
                assert abs((rows.max() + 1) * unit - (c.y + radius)) < 2.2 + (c.shape == "star")


def test_motion_is_drawn_below_a_pixel():
    """A walk of a fifth of a pixel a frame changes every frame: no steps of whole pixels."""
    script = script_lib.make_script(0, "train", 0, 4096)
    walking = world.ACTIONS.index("walks right")
    column = int(np.argmax((script.action == walking).sum(axis=0)))
    first, last = max(
        _runs(np.where(script.action[:, column] == walking, script.shot, -1)),
        key=lambda run: (script.action[run[0], column] == walking) * (run[1] - run[0]),
    )
    middle = (first + last) // 2
    frames = source.ToonsSource("train").frames(0, np.arange(middle - 8, middle + 8)).astype(int)
    step = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert step.min() > 0.05 and step.max() < 4 * step.min()


def test_fills_stand_out():
    """Fills differ clearly from one another and from every backdrop (largest channel difference)."""
    for one, two in itertools.combinations(world.PALETTE.values(), 2):
        assert np.abs(np.subtract(one, two)).max() >= 90
    for scene in world.SCENES:
        pixels = scenery.backdrop(scene, 64)
        assert pixels.min() >= 10 and pixels.max() <= 255  # No unpainted spot.
        for colour, fill in world.PALETTE.items():
            nearest = np.abs(pixels - np.asarray(fill)).max(axis=-1).min()
            assert nearest >= 50, (scene, colour, nearest)


@pytest.mark.parametrize(
    "field, value", [("split", "tset"), ("frame_size", 4), ("num_episodes", 0), ("episode_frames", 0)]
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        source.ToonsSource(**{"split": "train", field: value})


def test_out_of_range_is_refused():
    toons = source.ToonsSource("train", num_episodes=2, episode_frames=10)
    with pytest.raises(IndexError, match="episode 2"):
        toons.frames(2, [0])
    with pytest.raises(IndexError, match="10 frames"):
        toons.frames(0, [10])
    with pytest.raises(ValueError, match="index"):
        toons.captions(0, np.array([0.5]))
