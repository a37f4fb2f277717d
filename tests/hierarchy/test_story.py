"""Stories: which frame has which prompt, and mistakes that end with one clear line."""

import json
import re

import numpy as np
import pytest

from nuwaxl_jax.hierarchy import story as story_lib


def _load(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return story_lib.Story.load(path)


def test_text_lines_are_spread_evenly(tmp_path):
    story = _load(tmp_path, "a.txt", "\ufeffFred walks\r\n\n  # Barney sits  \n\nWilma sings")
    assert story.prompts == ("Fred walks", "# Barney sits", "Wilma sings")
    prompts, index = story.frame_prompts(7)
    assert prompts == list(story.prompts)
    assert index.dtype == np.int32
    assert index.tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_json_prompts_begin_at_their_fraction(tmp_path):
    entries = [{"at": 0.5, "text": "b"}, {"at": 1, "text": "c"}, {"at": 0, "text": "a"}]
    story = _load(tmp_path, "a.json", json.dumps({"prompts": entries}))
    assert story.frame_prompts(11)[1].tolist() == [0] * 5 + [1] * 5 + [2]
    assert story.frame_prompts(10)[1].tolist() == [0] * 5 + [1] * 4 + [2]


def test_rounding_does_not_move_a_prompt():
    for k in range(1, 100):  # 0.29 * 100 and others are not whole in floating point
        story = story_lib.Story(("a", "b"), (0.0, k / 100))
        assert story.frame_prompts(101)[1].argmax() == k


@pytest.mark.parametrize("text", ['["a", "b"]', '{"prompts": ["a", "b"]}'])
def test_json_strings_are_spread_evenly(tmp_path, text):
    assert _load(tmp_path, "a.json", text) == story_lib.Story(("a", "b"))


def test_captions_are_one_a_frame_and_equal_ones_are_encoded_once():
    captions = ["x", "y", "y", "", "x"]
    prompts, index = story_lib.Story.from_captions(captions).frame_prompts(5)
    assert prompts == ["x", "y", ""]
    assert [prompts[i] for i in index] == captions


def test_fewer_frames_than_prompts_is_a_preview():
    prompts, index = story_lib.Story(tuple("abcdef")).frame_prompts(3)
    assert prompts == ["a", "c", "e"] and index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("at", [None, (0.0, 0.3)])
def test_json_round_trip(tmp_path, at):
    story = story_lib.Story(("Frédéric walks", ' "b" '), at)
    assert _load(tmp_path, "a.json", story.to_json()) == story


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "", "prompts is empty"),
        ("a.txt", " \n\n", "prompts is empty"),
        ("a.txt", b"caf\xe9", "byte 3 is not UTF-8"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "3", "prompts is a int; give a list"),
        ("a.json", "[]", "prompts is empty"),
        ("a.json", '{"prompts": []}', "prompts is empty"),
        ("a.json", '{"prompt": ["a"]}', "the fields are ['prompt']"),
        ("a.json", '["a", 3]', "prompts[1] is 3"),
        ("a.json", '["a", " "]', "prompts[1] is ' '"),
        ("a.json", '[{"at": 0, "text": ""}]', "prompts[0].text is ''"),
        ("a.json", '[{"at": 0, "text": 5}]', "prompts[0].text is 5"),
        ("a.json", '[{"at": 0, "txt": "a"}]', 'give {"at": 0.0, "text": "..."}'),
        ("a.json", '[{"at": 0, "text": "a"}, {"at": 1.5, "text": "b"}]', "prompts[1].at is 1.5"),
        ("a.json", '[{"at": -1, "text": "a"}]', "prompts[0].at is -1"),
        ("a.json", '[{"at": NaN, "text": "a"}]', "prompts[0].at is nan"),
        ("a.json", '[{"at": true, "text": "a"}]', "prompts[0].at is True"),
        ("a.json", '[{"at": "0", "text": "a"}]', "prompts[0].at is '0'"),
        ("a.json", '[{"at": 1%s, "text": "a"}]' % ("0" * 400), "prompts[0].at is 1"),
        ("a.json", '[{"at": 0, "text": "a"}, {"at": 0.0, "text": "b"}]', 'two prompts have "at" 0.0'),
        ("a.json", '[{"at": 0.1, "text": "a"}]', "start one at 0"),
    ],
)
def test_mistakes_name_the_file_the_field_and_the_mend(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        _load(tmp_path, name, content)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such.txt: no such story file"):
        story_lib.Story.load(tmp_path / "no-such.txt")
    with pytest.raises(FileNotFoundError):
        story_lib.Story.load(tmp_path)


def test_mistakes_in_code():
    with pytest.raises(ValueError, match="prompts is empty"):
        story_lib.Story.from_captions([])
    with pytest.raises(ValueError, match=r"prompts\[1\] is 3"):
        story_lib.Story.from_captions(["a", 3])
    with pytest.raises(ValueError, match="rising"):
        story_lib.Story(("a", "b", "c"), (0.0, 0.5, 0.4))
    with pytest.raises(ValueError, match="num_frames"):
        story_lib.Story(("a",)).frame_prompts(0)
