"""Captioning: frames at a stride, restartable, filtered, overruled; an external program and a real BLIP's code."""

import json
import sys

import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.captioning import captioners
from nuwaxl_jax.data.captioning import filters
from nuwaxl_jax.data.captioning import run


def write_video(path, num=30, fps=10, caption="a grey wall"):
    frames = np.broadcast_to((8 * np.arange(num, dtype=np.uint8))[:, None, None, None], (num, 48, 64, 3))
    video_io.write_mp4(path, frames, fps)
    if caption:
        path.with_suffix(".txt").write_text(caption)


class Counting:
    """Says the number of the frame, and fails at the n-th call."""

    source, model, revision = "machine", "counting", "1"

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def __call__(self, frames, video, numbers):
        if len(self.calls) == self.fail_at:
            raise captioners.CaptioningError("the machine went off")
        self.calls.append(video.entry.name)
        assert frames.shape == (len(numbers), run.SIZE, run.SIZE, 3)
        return [captioners.Made(f"a wall, shade {number}", 0.5) for number in numbers]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        write_video(tmp_path / "videos" / f"{name}.mp4")
    return tmp_path / "videos"


@pytest.fixture
def config(place):
    config = config_lib.default()
    config.data.update(source="folder", path=str(place))
    return config


def captions(config, captioner, out, **options):
    counts = run.run(config, captioner, str(out), say=lambda line: None, **options)
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_stopped_run_goes_on_and_gives_the_same(tmp_path, config):
    counts, whole = captions(config, Counting(), tmp_path / "whole.jsonl", stride=0.5)
    assert counts == dict(videos=2, left_out=0, frames=12, filtered={}, overridden=0, kept=12)
    assert [line["frame"] for line in whole] == [0, 5, 10, 15, 20, 25] * 2
    line = dict(video="a.mp4", frame=5, text="a wall, shade 5", caption_source="machine", model="counting")
    assert whole[1] == line | dict(revision="1", score=0.5)
    out = tmp_path / "parts.jsonl"
    with pytest.raises(captioners.CaptioningError, match="went off"):
        captions(config, Counting(fail_at=1), out, stride=0.5)
    assert not out.exists()
    second = Counting()
    assert captions(config, second, out, stride=0.5)[1] == whole and second.calls == ["b.mp4"]
    with pytest.raises(captioners.CaptioningError, match="parts: holds captions of other settings; remove it"):
        captions(config, Counting(), out, stride=1.0)


def test_what_was_made_is_what_training_reads(tmp_path, config, place):
    captions(config, Counting(), tmp_path / "c.jsonl", stride=0.5)
    options = dict(split="train", frame_size=16, captions=str(tmp_path / "c.jsonl"))
    source = videos.VideoSource(place, **options)
    assert source.captions(1, np.array([5, 6])) == ["a wall, shade 5", "a grey wall"]
    with pytest.raises(FileNotFoundError, match="data.captions: .*nowhere.jsonl does not exist"):
        videos.VideoSource(place, **options | dict(captions=str(tmp_path / "nowhere.jsonl")))


def test_annotations_become_frames(tmp_path, config, place):
    (place / "a.jsonl").write_text('{"start": 1, "end": 2, "text": "lighter"}\n{"frame": 25, "text": "the last"}\n')
    _, lines = captions(config, captioners.FromAnnotations(), tmp_path / "c.jsonl", stride=0.5)
    wanted = ["a grey wall", "a grey wall", "lighter", "lighter", "a grey wall", "the last"]
    assert [line["text"] for line in lines if line["video"] == "a.mp4"] == wanted
    assert {line["caption_source"] for line in lines} == {"human"}
    (place / "a.jsonl").unlink()  # what was made of other annotations is not taken for these
    _, lines = captions(config, captioners.FromAnnotations(), tmp_path / "c.jsonl", stride=0.5)
    assert {line["text"] for line in lines} == {"a grey wall"}


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "empty"),
        (" .,- ", "empty"),
        ("12 34 :: 56 a", "not text"),
        ("dog", "one word"),
        ("a man and a man and a man and a man and a man", "repeats itself"),
        ("word " * 201, "over 200 words"),
        ("a man and a dog", ""),
        ("ein Mädchen läuft über 3 Straßen", ""),
        ("一 只 猫", ""),
    ],
)
def test_filters(text, why):
    line = dict(video="v", frame=0, text=text, caption_source="machine")
    kept, gone = filters.apply([line, line | dict(text="dog", caption_source="human")])
    assert filters.problem(text) == why and len(kept) == (1 if why else 2) and dict(gone) == ({why: 1} if why else {})


def test_overrides_come_last(tmp_path, config):
    by_hand = tmp_path / "by_hand.jsonl"
    rows = [
        dict(video="a.mp4", frame=10, text="written by hand"),
        dict(video="a.mp4", frame=0, text=""),
        dict(video="b.mp4", text="all of b"),
    ]
    by_hand.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts, lines = captions(config, Counting(), tmp_path / "c.jsonl", overrides=str(by_hand))
    assert counts["overridden"] == 3 and counts["kept"] == 3
    assert [(line["video"], line["frame"], line["text"]) for line in lines] == [
        ("a.mp4", 10, "written by hand"),
        ("a.mp4", 20, "a wall, shade 20"),
        ("b.mp4", None, "all of b"),
    ]
    by_hand.write_text('{"video": "a.mp4", "frame": 5, "last": 10, "text": "both"}\n')
    _, lines = captions(config, Counting(), tmp_path / "d.jsonl", overrides=str(by_hand))
    assert [(line["frame"], line.get("last"), line["text"]) for line in lines if line["video"] == "a.mp4"] == [
        (0, None, "a wall, shade 0"),
        (5, 10, "both"),
        (20, None, "a wall, shade 20"),
    ]
    by_hand.write_text('{"video": "a.mp4", "frame": 10, "text": "one\u2028two\x85three"}\n')
    _, lines = captions(config, Counting(), tmp_path / "e.jsonl", overrides=str(by_hand))
    assert lines[1]["text"] == "one two three"
    by_hand.write_text('{"text": "of what?"}\n')
    with pytest.raises(ValueError, match='by_hand.jsonl:1: give "video"'):
        captions(config, Counting(), tmp_path / "c.jsonl", overrides=str(by_hand))
    config.data.captions = str(tmp_path / "c.jsonl")  # a whole video's caption is read too
    source = videos.VideoSource(config.data.path, split="train", frame_size=16, captions=config.data.captions)
    assert source.captions(1, np.array([3])) == ["all of b"]


PROGRAM = """
import sys
from PIL import Image
for line in sys.stdin:
    print("brightness is", Image.open(line.strip()).convert("L").getpixel((9, 9)))
"""


def test_an_external_program(tmp_path, config):
    (tmp_path / "program.py").write_text(PROGRAM)
    captioner = captioners.make("command", f"{sys.executable} {tmp_path / 'program.py'}")
    _, lines = captions(config, captioner, tmp_path / "c.jsonl")
    said = [int(line["text"].split()[-1]) for line in lines if line["video"] == "a.mp4"]
    np.testing.assert_allclose(said, [0, 80, 160], atol=3)
    for source, problem in (
        ("import sys; sys.exit('no GPU')", "ended with 1 at a.mp4: no GPU"),
        ("print('one line')", "printed 1 lines for 3 images of a.mp4; print one caption a line"),
    ):
        (tmp_path / "bad.py").write_text(source)
        with pytest.raises(captioners.CaptioningError, match=problem):
            captions(config, captioners.Command(f"{sys.executable} {tmp_path / 'bad.py'}"), tmp_path / "d.jsonl")
    with pytest.raises(captioners.CaptioningError, match="'/no/such/program' cannot be used"):
        captions(config, captioners.Command("/no/such/program"), tmp_path / "e.jsonl")
    assert not (tmp_path / "d.jsonl").exists()


@pytest.mark.parametrize("printed, kept", [("one wall\n\n\n", [0]), ("\n\na wall\n", [20]), ("\n" * 5, [])])
def test_a_program_may_have_nothing_to_say_of_an_image(tmp_path, config, printed, kept):
    (tmp_path / "program.py").write_text(f"print({printed!r}, end='')")
    captioner = captioners.Command(f"{sys.executable} {tmp_path / 'program.py'}")
    counts, lines = captions(config, captioner, tmp_path / "c.jsonl")
    assert [line["frame"] for line in lines] == kept * 2
    assert counts["filtered"] == {"empty": 6 - 2 * len(kept)}


def test_a_program_that_leaves_the_last_image_out_is_refused(tmp_path, config):
    (tmp_path / "program.py").write_text("print('a wall')\nprint('a wall')")
    with pytest.raises(captioners.CaptioningError, match="printed 2 lines for 3 images of a.mp4"):
        captions(config, captioners.Command(f"{sys.executable} {tmp_path / 'program.py'}"), tmp_path / "c.jsonl")


def test_a_model_that_is_none(tmp_path):
    with pytest.raises(captioners.CaptioningError, match="has no config.json with .safetensors"):
        captioners.make("transformers", model=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(captioners.CaptioningError, match="is of kind 'bert'; give one of blip, git"):
        captioners.make("transformers", model=str(tmp_path))


@pytest.mark.parity
def test_blip_by_path(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "grey", "wall", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(small, vocab_size=len(words), encoder_hidden_size=16, bos_token_id=5, sep_token_id=3, pad_token_id=0)
    vision = dict(small, image_size=32, patch_size=16)
    blip = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    )
    blip.save_pretrained(tmp_path / "blip")
    images = transformers.BlipImageProcessor(size=dict(height=32, width=32))
    transformers.BlipProcessor(images, tokenizer).save_pretrained(tmp_path / "blip")
    captioner = captioners.make("transformers", model=str(tmp_path / "blip"))
    assert captioner.model == "blip (blip)" and len(captioner.revision) == 16
    made = captioner(np.zeros((3, run.SIZE, run.SIZE, 3), np.uint8), None, [0, 1, 2])
    assert len(made) == 3 and all(set(caption.text.split()) <= {*words, "."} for caption in made)
