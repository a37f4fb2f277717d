"""Cuts: found at the very frame, told of no fade or still, written as a manifest that training reads as shots."""

import json
import sys

import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import shots
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import survey

pytest.importorskip("scenedetect")

COLOURS = np.array([[200, 40, 40], [30, 160, 60], [40, 60, 210], [220, 220, 90]], np.uint8)


def scenes(*lengths, size=48, width=64):
    """Scenes of a colour each, in which a bright square moves; [F, size, width, 3]."""
    frames = []
    for scene, length in enumerate(lengths):
        for i in range(length):
            frame = np.broadcast_to(COLOURS[scene % 4], (size, width, 3)).copy()
            left = (7 * scene + i) % (width - 12)
            frame[8:20, left : left + 12] = 255
            frames.append(frame)
    return np.stack(frames)


def write(path, frames, fps=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    video_io.write_mp4(path, frames, fps, gop=16)


def make_config(path, captions=""):
    config = config_lib.default()
    config.data.update(path=str(path), captions=captions)
    return config


def cut(path, out, captions="", **kwargs):
    said = []
    counts = shots.run(make_config(path, captions), str(out), say=said.append, **kwargs)
    return counts, [json.loads(line) for line in out.read_text().splitlines()], said


def bounds(rows):
    return sorted({(row["id"], row["first_frame"], row["last_frame"]) for row in rows})


def test_cuts_are_at_the_very_frame(tmp_path):
    write(tmp_path / "in" / "sub" / "a.mp4", scenes(23, 70, 31))
    out = tmp_path / "in" / "shots.jsonl"
    counts, rows, said = cut(tmp_path / "in", out)
    assert bounds(rows) == [("sub/a.mp4", 0, 22), ("sub/a.mp4", 23, 92), ("sub/a.mp4", 93, 123)]
    assert {row["path"] for row in rows} == {"sub/a.mp4"} and {row["episode"] for row in rows} == {"sub/a.mp4"}
    wanted = dict(videos=1, left_out=0, shots=3, short=0, kept=3, captioned=0, rows=3)
    assert counts == wanted and "1 videos -> 3 shots -> 3 of at least 1 s (0 shorter" in said[0]
    for entry in places.read(out).entries:
        with survey.open_reader(entry) as reader:
            frames = reader.read(np.arange(reader.info.num_frames), 16)
            assert np.abs(frames[:, -1, -1].astype(int) - frames[0, -1, -1]).max() < 12  # of one colour from end to end


def test_a_fade_and_a_still_have_none(tmp_path):
    fade = np.broadcast_to(np.linspace(0, 240, 60).astype(np.uint8)[:, None, None, None], (60, 48, 48, 3))
    write(tmp_path / "in" / "fade.mp4", fade)
    write(tmp_path / "in" / "still.mp4", np.full((30, 48, 48, 3), 90, np.uint8))
    (tmp_path / "elsewhere").mkdir()
    _, rows, _ = cut(tmp_path / "in", tmp_path / "elsewhere" / "shots.jsonl")
    assert bounds(rows) == [("fade.mp4", 0, 59), ("still.mp4", 0, 29)]
    assert rows[0]["path"] == str(tmp_path / "in" / "fade.mp4")  # not below the manifest: absolute


def test_captions_stay_on_their_frames(tmp_path):
    write(tmp_path / "v" / "a.mp4", scenes(20, 30))
    lines = [
        {"text": "whole"},
        {"start": 1.5, "end": 2.5, "text": "over the cut"},
        {"frame": 40, "text": "one frame", "caption_source": "git"},
        {"frame": 45, "last": 90, "text": ""},
    ]
    (tmp_path / "v" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, rows, _ = cut(tmp_path / "v", tmp_path / "s.jsonl")
    assert [(r["first_frame"], r["frame"], r["last"], r["text"], r["caption_source"]) for r in rows] == [
        (0, 0, 14, "whole", "human"),
        (0, 15, 19, "over the cut", "human"),
        (20, 20, 24, "over the cut", "human"),
        (20, 25, 39, "whole", "human"),
        (20, 40, 40, "one frame", "machine"),
        (20, 41, 44, "whole", "human"),
    ]
    source = videos.VideoSource(tmp_path / "s.jsonl", split="train", frame_size=16)
    assert [source.name(i) for i in range(2)] == ["a.mp4#000000-000019", "a.mp4#000020-000049"]
    whole = videos.VideoSource(tmp_path / "v", split="train", frame_size=16)
    for i, (first, count) in enumerate([(0, 20), (20, 30)]):
        assert source.num_frames(i) == count
        assert source.captions(i, np.arange(count)) == whole.captions(0, first + np.arange(count))
        np.testing.assert_array_equal(source.frames(i, np.arange(count)), whole.frames(0, first + np.arange(count)))


def test_shots_of_spans_and_frame_rates(tmp_path):
    write(tmp_path / "a.mp4", scenes(20, 30, 10))
    rows = [
        dict(path="a.mp4", id="a", first_frame=10, last_frame=54, text="second", frame=20, last=49, split="test"),
        dict(path="a.mp4", id="b", text="all", episode="e"),
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, made, _ = cut(tmp_path / "m.jsonl", tmp_path / "s.jsonl", min_seconds=0.5)
    assert [
        (r["id"], r["first_frame"], r["last_frame"], r.get("text"), r.get("frame"), r.get("last")) for r in made
    ] == [
        ("a", 10, 19, None, None, None),
        ("a", 20, 49, "second", 20, 49),
        ("a", 50, 54, None, None, None),
        ("b", 0, 19, "all", 0, 19),
        ("b", 20, 49, "all", 20, 49),
        ("b", 50, 59, "all", 50, 59),
    ]
    entries = places.read(tmp_path / "s.jsonl").entries
    assert [(e.split, e.episode) for e in entries] == 3 * [("test", "a.mp4")] + 3 * [(None, "e")]


def test_short_shots_and_bad_videos_are_counted_and_named(tmp_path):
    place = tmp_path / "in"
    write(place / "a.mp4", scenes(9, 10, 30))
    (place / "bad.mp4").write_bytes(b"no video")
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), np.uint8)
    write(place / "holed.mp4", noise)
    data = bytearray((place / "holed.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (place / "holed.mp4").write_bytes(data)
    counts, rows, said = cut(place, tmp_path / "s.jsonl")
    assert bounds(rows) == [("a.mp4", 9, 18), ("a.mp4", 19, 48)]
    assert counts == dict(videos=1, left_out=2, shots=3, short=1, kept=2, captioned=0, rows=2)
    assert "(1 shorter left out)" in said[0]
    assert any("cannot be read: bad.mp4" in line for line in said)
    assert any("damaged inside: holed.mp4" in line for line in said)
    with pytest.raises(shots.ShotsError, match="--min_seconds: all 3 shots are shorter than 9 s"):
        cut(place, tmp_path / "s.jsonl", min_seconds=9)
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 2  # as it was


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / "in" / f"{name}.mp4", scenes(12, 14))
    out, seen, detect = tmp_path / "s.jsonl", [], shots.detect

    def failing(video, threshold):
        if video.entry.name == "b.mp4":
            raise KeyboardInterrupt
        return detect(video, threshold)

    def counting(video, threshold):
        seen.append(video.entry.name)
        return detect(video, threshold)

    monkeypatch.setattr(shots, "detect", failing)
    with pytest.raises(KeyboardInterrupt):
        cut(tmp_path / "in", out)
    assert not out.exists()
    monkeypatch.setattr(shots, "detect", counting)
    _, rows, _ = cut(tmp_path / "in", out)
    assert "b.mp4" in seen and "a.mp4" not in seen and len(bounds(rows)) == 6
    seen.clear()
    assert cut(tmp_path / "in", out, min_seconds=1.3)[0]["kept"] == 3 and not seen  # no detection again
    write(tmp_path / "in" / "c.mp4", scenes(12, 15))
    assert bounds(cut(tmp_path / "in", out)[1])[-1] == ("c.mp4", 12, 26) and seen == ["c.mp4"]
    with pytest.raises(shots.ShotsError, match="holds cuts of other settings; remove it"):
        cut(tmp_path / "in", out, threshold=30.0)


def test_what_cannot_be_cut(tmp_path, monkeypatch):
    for clip in ("s_01_e_01_shot_000000_000009", "s_01_e_01_shot_000010_000019"):
        (tmp_path / "craft" / "video_frames").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "craft" / "video_frames" / f"{clip}.npy", np.zeros((10, 8, 8, 3), np.uint8))
    ids = [dict(globalID=path.stem) for path in (tmp_path / "craft" / "video_frames").iterdir()]
    (tmp_path / "craft" / "flintstones_annotations_v1-0.json").write_text(json.dumps(ids))
    with pytest.raises(shots.ShotsError, match="no video at .*craft can be cut"):
        cut(tmp_path / "craft", tmp_path / "s.jsonl")
    write(tmp_path / "in" / "a.mp4", scenes(12))
    for kwargs, problem in (
        (dict(threshold=0), "--threshold is 0"),
        (dict(min_seconds=float("nan")), "--min_seconds nan"),
        (dict(out=tmp_path / "s.csv"), "--out is .*s.csv'; give a .jsonl file"),
    ):
        out = kwargs.pop("out", tmp_path / "s.jsonl")
        with pytest.raises(shots.ShotsError, match=problem):
            cut(tmp_path / "in", out, **kwargs)
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(shots.ShotsError, match=r"--cut needs the package scenedetect; pip install '.\[shots\]'"):
        cut(tmp_path / "in", tmp_path / "s.jsonl")


def test_a_threshold_of_its_own(tmp_path):
    frames = np.concatenate([np.full((10, 48, 48, 3), 100, np.uint8), np.full((10, 48, 48, 3), 130, np.uint8)])
    write(tmp_path / "in" / "a.mp4", frames)
    assert cut(tmp_path / "in", tmp_path / "one.jsonl")[0]["shots"] == 1  # a step of 30 in value alone: 10 on average
    rows = cut(tmp_path / "in", tmp_path / "two.jsonl", threshold=8.0)[1]
    assert bounds(rows) == [("a.mp4", 0, 9), ("a.mp4", 10, 19)]
