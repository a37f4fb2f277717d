"""Latents kept as they are made: whatever happens to a run, the video is the one of a run undisturbed."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nuwaxl_jax.hierarchy import autoregressive
from nuwaxl_jax.hierarchy import generate
from nuwaxl_jax.hierarchy import ledger
from nuwaxl_jax.hierarchy import plan as plan_lib

LENGTH, FRAMES, LATENT = 4, 28, (2, 2, 3)  # three levels: 1, 3 and 9 segments
KEY = {"seed": 0}


def sample_segments(params, keys, cond, mask, prompt, level):
    """New frames are noise, the mean of the given frames and the prompt's number."""
    noise = jax.vmap(lambda key: jax.random.normal(key, cond.shape[1:]))(keys)
    mean = (cond * mask).sum(axis=1, keepdims=True) / (1.0 + mask.sum(axis=1, keepdims=True))
    made = noise + mean + params["scale"] * prompt[:, :, None, None, None] + level
    return cond * mask + (1.0 - mask) * made


PARAMS = {"scale": np.float32(0.5)}
PROMPTS = (np.arange(FRAMES, dtype=np.int32) // 9)[None]


def plans():
    return plan_lib.make_plan(FRAMES, LENGTH)


def opened(folder, key=KEY, tree=None):
    return ledger.StoredLatents(folder, key, 1, plans() if tree is None else tree, LATENT)


class Stop(Exception):
    pass


def run(frames=None, stop_after=None, chunk=2, seed=0):
    calls = []

    def progress(*done):
        calls.append(done)
        if len(calls) == stop_after:
            raise Stop

    options = dict(chunk=chunk, microbatch=1, progress=progress, frames=frames)
    result = generate.generate(sample_segments, PARAMS, plans(), jax.random.key(seed), PROMPTS, LATENT, **options)
    return np.array(result.latents), result


@pytest.fixture(scope="module")
def undisturbed():
    return run()[0]


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, undisturbed, stop_after):
    with pytest.raises(Stop):
        run(opened(tmp_path), stop_after)
    again = opened(tmp_path)
    assert 0 < sum(again.found) < 13 and not again.damaged
    latents, result = run(again, chunk=1)  # in other portions
    np.testing.assert_array_equal(latents, undisturbed)
    assert sum(timing["segments"] for timing in result.timings) == 13 - sum(again.found)
    finished = opened(tmp_path)
    assert finished.found == [1, 3, 9]
    latents, result = run(finished)
    np.testing.assert_array_equal(latents, undisturbed)
    assert result.calls == 0


def test_what_is_damaged_is_made_again_alone(tmp_path, undisturbed):
    run(opened(tmp_path))
    place = (tmp_path / ledger.LATENTS).stat().st_size - 53  # in frame 26, which level 2 makes
    with open(tmp_path / ledger.LATENTS, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 64]))
    again = opened(tmp_path)
    assert again.damaged == 1 and again.found == [1, 3, 8]
    latents, result = run(again)
    np.testing.assert_array_equal(latents, undisturbed)
    assert [timing["segments"] for timing in result.timings] == [0, 0, 1]


def test_a_line_of_the_book_that_was_cut_off_is_none(tmp_path, undisturbed):
    run(opened(tmp_path))
    with open(tmp_path / ledger.LEDGER, "r+b") as file:
        file.truncate((tmp_path / ledger.LEDGER).stat().st_size - 3)
    again = opened(tmp_path)
    assert sum(again.found) == 12
    np.testing.assert_array_equal(run(again)[0], undisturbed)
    assert opened(tmp_path).found == [1, 3, 9]


def test_another_key_starts_anew(tmp_path):
    run(opened(tmp_path))
    assert opened(tmp_path, {"seed": 1}).found == [0, 0, 0]
    assert opened(tmp_path).found == [0, 0, 0]


def changed_frames(before, after):
    return np.flatnonzero((before != after).any(axis=(0, 2, 3, 4))).tolist()


def test_redo_makes_a_segment_and_all_below_it_and_nothing_else(tmp_path, undisturbed):
    run(opened(tmp_path))
    frames = opened(tmp_path)
    assert frames.redo(2, 4) == 1  # frames 12 to 15, borders given
    latents, result = run(frames)
    assert changed_frames(undisturbed, latents) == [13, 14]
    assert [timing["segments"] for timing in result.timings] == [0, 0, 1]
    frames = opened(tmp_path)
    frames.finish()
    assert frames.redo(1, 1) == 4  # frames 9 to 18 at stride 3, and the three segments between them
    once = np.array(run(frames)[0])
    assert changed_frames(undisturbed, once) == list(range(10, 18))
    np.testing.assert_array_equal(run(opened(tmp_path))[0], once)  # it stays
    frames = opened(tmp_path)
    frames.finish()
    assert frames.redo(1, 1) == 4
    twice = run(frames)[0]
    assert changed_frames(once, twice) == list(range(10, 18))  # a third video, not the first again
    assert changed_frames(undisturbed, twice) == list(range(10, 18))


def test_a_redo_that_was_stopped_goes_on(tmp_path, undisturbed):
    run(opened(tmp_path / "a"))
    os.system(f"cp -r {tmp_path}/a {tmp_path}/b")
    whole = opened(tmp_path / "a")
    whole.redo(1, 2)
    expected = run(whole)[0]
    stopped = opened(tmp_path / "b")
    stopped.redo(1, 2)
    with pytest.raises(Stop):
        run(stopped, stop_after=2, chunk=1)
    again = opened(tmp_path / "b")
    assert again.redo(1, 2) == 2  # the same command: what is left of the same attempt
    np.testing.assert_array_equal(run(again)[0], expected)
    assert opened(tmp_path / "b").redo(1, 2) == 0  # until the video is written
    assert changed_frames(undisturbed, expected) == list(range(19, 27))


@pytest.mark.parametrize(
    "level, segment, match", [(3, 0, "no segment 3.0; there are 0.0 to 0.0, 1.0 to 1.2"), (2, 9, "2.9")]
)
def test_a_segment_that_is_not_there_is_named(tmp_path, level, segment, match):
    frames = opened(tmp_path)
    with pytest.raises(ledger.LedgerError, match=match):
        frames.redo(level, segment)
    with pytest.raises(ledger.LedgerError, match="1.1 has not been made; run without --redo first"):
        frames.redo(1, 1)


def test_windows_go_on_too(tmp_path):
    plan = plan_lib.autoregressive_plan(13, LENGTH, 1, 2)
    options = dict(microbatch=1)

    def windows(frames=None, stop_after=None):
        calls = []

        def progress(*done):
            calls.append(done)
            if len(calls) == stop_after:
                raise Stop

        result = autoregressive.generate_autoregressive(
            sample_segments, PARAMS, plan, jax.random.key(0), PROMPTS[:, :13], LATENT, progress=progress, frames=frames,
            **options,
        )  # fmt: skip
        return np.array(result.latents), result

    expected, _ = windows()
    with pytest.raises(Stop):
        windows(opened(tmp_path, tree=[plan]), 2)
    again = opened(tmp_path, tree=[plan])
    assert again.found == [2]
    latents, result = windows(again)
    np.testing.assert_array_equal(latents, expected)
    assert result.timings[0]["segments"] == 2
    frames = opened(tmp_path, tree=[plan])
    assert frames.redo(0, 2) == 2  # and every window after it
    assert changed_frames(expected, windows(frames)[0]) == list(range(7, 13))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ledger.LedgerError, match="cannot be written"):
        opened(tmp_path / "file" / "latents")


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
import test_ledger as t
print("begun", flush=True)
latents, _ = t.run(t.opened(sys.argv[1]), chunk=1)
print("over", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, undisturbed):
    rng, found = random.Random(2), []
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "l"), os.path.dirname(__file__)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.1, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (tmp_path / "l" / ledger.KEY).exists():
            frames = opened(tmp_path / "l")
            assert not frames.damaged
            found.append(sum(frames.found))
    assert found == sorted(found)
    np.testing.assert_array_equal(run(opened(tmp_path / "l"))[0], undisturbed)
