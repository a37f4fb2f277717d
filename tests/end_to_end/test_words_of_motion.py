"""experiments/levels: what is called following the words of motion, on videos whose motion is known."""

import dataclasses
import importlib.util
import pathlib
import types

import numpy as np
import pytest

from nuwaxl_jax.data import text
from nuwaxl_jax.data.toons import source as toons_source
from nuwaxl_jax.evaluation import story_reader

LEVELS = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "levels"
LAST = 15


def _load(name):
    spec = importlib.util.spec_from_file_location(name, LEVELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def segments():
    """[(truths, what a perfect reader reads of them)] of segments at stride 15."""
    source, out = toons_source.ToonsSource("valid", num_episodes=6), []
    for i in range(6):
        for start in range(0, 225 * 8, 225):
            truths = source.truth(i, np.arange(start, start + 226, 15))
            out.append((truths, [_reading(truth) for truth in truths]))
    return out


def _reading(truth, place=lambda who: who.x):
    seen = [
        story_reader.CharacterReading(w.shape, w.colour, w.size, place(w), w.y, 8.0, 1.0, True)
        for w in truth.characters
    ]
    return types.SimpleNamespace(characters=seen)


def _rows(motion, segments, other):
    """Stretches judged with the truth as the video, and with `other(readings)` as the one of exchanged captions."""
    judged = []
    for truths, readings in segments:
        for track in motion.tracks(truths, [readings, other(truths, readings)]):
            judged.append(motion.judge(track, LAST))
    return motion.summary([of for of in judged if of])


def _mirrored(truths, readings):
    """Every stretch mirrored at where the given frames put it: what a heeding model makes of exchanged captions."""
    motion, out = _load("motion"), [list(reading.characters) for reading in readings]
    for track in motion.tracks(truths, [readings, readings]):
        at, x = track["at"], track["x"][0]
        ends = [i for i in (0, len(at) - 1) if at[i] in (0, LAST)]
        line = np.interp(at, at[ends], x[ends]) if ends else x
        for j, true, middle in zip(at, x, line):
            k = next(k for k, c in enumerate(readings[j].characters) if abs(c.x - true) < 1e-9)
            out[j][k] = dataclasses.replace(out[j][k], x=float(2 * middle - true))
    return [types.SimpleNamespace(characters=characters) for characters in out]


def test_a_video_that_heeds_left_and_right_follows_by_1_and_one_that_does_not_by_0(segments):
    motion = _load("motion")
    heeds = _rows(motion, segments, _mirrored)
    assert heeds["follows"] == pytest.approx(1.0, abs=1e-6) and heeds["walks"] == 1.0
    assert heeds["walks_exchanged"] < 0.25 and heeds["height"] == pytest.approx(1.0)
    deaf = _rows(motion, segments, lambda truths, readings: readings)
    assert deaf["follows"] == 0.0 and deaf["walks"] == deaf["walks_exchanged"] == 1.0


def test_left_and_right_are_exchanged_in_captions_and_in_tokens():
    motion, words = _load("motion"), _load("words")
    caption = "a big red circle walks left and a small blue star jumps right at night"
    other = "a big red circle walks right and a small blue star jumps left at night"
    assert motion.exchanged(caption) == other and motion.exchanged(other) == caption
    tokenizer = text.WordTokenizer(512, 24)
    networks = types.SimpleNamespace(tokenizer=tokenizer)
    tokens = np.asarray(tokenizer.encode(caption))
    np.testing.assert_array_equal(words.exchanged(networks, tokens, "left", "right"), tokenizer.encode(other))
