"""Parts of files as videos of their own, and captions of frame intervals: frames and captions at exact borders."""

import json
import copy

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import video_io
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey


def write_video(path, num=40, fps=10):
    """Frame i is grey of level 5 i."""
    frames = np.broadcast_to((5 * np.arange(num, dtype=np.uint8))[:, None, None, None], (num, 32, 32, 3))
    video_io.write_mp4(path, frames, fps, gop=8)


def numbers(frames):
    return np.round(frames.astype(float).mean(axis=(1, 2, 3)) / 5).astype(int).tolist()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def left_out(listing):
    return {each.name: each.reason for each in listing.left_out}


def test_spans_of_a_file_are_videos_of_their_own(tmp_path):
    write_video(tmp_path / "a.mp4")
    rows = [
        dict(path="a.mp4", first_frame=10, last_frame=19, text="whole of the span"),
        dict(path="a.mp4", start_frame=20, end_frame=39, text="early", frame=5, last=21),
        dict(path="a.mp4", start_frame=20, end_frame=39, text="late", frame=30),
        dict(path="a.mp4", start_frame=20, end_frame=39, text="gone", frame=0, last=19),
        dict(path="a.mp4", start_frame=20, end_frame=39, text="by seconds", start=3.5, end=3.7),
        dict(path="a.mp4", text="all"),
    ]
    listing = places.read(write_lines(tmp_path / "m.jsonl", rows))
    assert left_out(listing) == {"m.jsonl:4": "frame is outside the row's span"}
    assert [(e.name, e.span, e.episode) for e in listing.entries] == [
        ("a.mp4", None, ""),
        ("a.mp4#000010-000019", (10, 19), "a.mp4"),
        ("a.mp4#000020-000039", (20, 39), "a.mp4"),
    ]
    _, ten, twenty = survey.survey(listing.entries).videos
    assert (ten.index.info.num_frames, ten.index.info.fps, ten.index.info.seconds) == (10, 10, pytest.approx(1.0))
    assert ten.index.times[0] == 0 and ten.index.times[-1] == pytest.approx(0.9)
    with survey.open_reader(ten.entry, index=ten.index) as reader:
        assert numbers(reader.read(np.array([9, 0, 4]), 16)) == [19, 10, 14]
        assert numbers(np.concatenate(list(reader.chunks(4, size=16)))) == list(range(10, 20))
        for wrong in (10, -1):  # the frames beside are not this video's
            with pytest.raises(IndexError):
                reader.read(np.array([wrong]))
    assert survey.texts(ten, np.arange(10), ten.index.times) == ["whole of the span"] * 10
    wanted = {0: "early", 1: "early", 10: "late", 15: "by seconds", 16: "by seconds"}
    assert survey.texts(twenty, np.arange(20), twenty.index.times) == [wanted.get(i, "") for i in range(20)]
    with survey.open_reader(listing.entries[2]) as reader:  # without an index
        assert numbers(reader.read(np.array([0, 19]), 16)) == [20, 39]
    assert survey.survey([ten.entry]).videos[0].entry == ten.entry  # captions are moved once


def test_a_file_is_walked_once_for_its_spans(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4")
    rows = [dict(path="a.mp4", first_frame=4 * i, last_frame=4 * i + 3, text="x") for i in range(10)]
    listing = places.read(write_lines(tmp_path / "m.jsonl", rows))
    walks = []
    scan = video_io.VideoReader._scan
    monkeypatch.setattr(video_io.VideoReader, "_scan", lambda self: walks.append(1) or scan(self))
    found = survey.survey(listing.entries)
    assert len(found.videos) == 10
    for video in copy.deepcopy(found.videos):  # as for a worker process
        with survey.open_reader(video.entry, index=video.index) as reader:
            assert numbers(reader.read(np.arange(4), 16)) == list(range(video.entry.span[0], video.entry.span[1] + 1))
    assert len(walks) == 1
    video = found.videos[3]
    write_video(tmp_path / "a.mp4", 41)
    with pytest.raises(video_io.VideoError, match="has changed since"):
        survey.open_reader(video.entry, index=video.index)


def test_spans_that_cannot_be_used_are_named(tmp_path):
    write_video(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    rows = [
        dict(path="a.mp4", first_frame=30, last_frame=40, text="x"),
        dict(path="a.mp4", first_frame=0, last_frame=39, text="x", frame=39, last=50),
        dict(path="b.mp4", first_frame=0, last_frame=1, text="x"),
        dict(path="b.mp4", first_frame=2, last_frame=3, text="x"),
        dict(path="a.mp4", first_frame=5, text="x"),
        dict(path="a.mp4", first_frame=5, last_frame=4, text="x"),
        dict(path="a.mp4", first_frame=0.5, last_frame=4, text="x"),
        dict(path="a.mp4", first_frame=0, last_frame=9, text="x", last=4),
        dict(path="a.mp4", first_frame=0, last_frame=9, text="x", frame=4, last=3),
        dict(path="a.mp4", first_frame=0, last_frame=9, text="x", caption_source=["human"]),
        dict(path="a.mp4", first_frame=10, last_frame=19, text="elsewhere", frame=3),
        dict(path="a.mp4", first_frame=10, last_frame=19, text="until then", start=0, end=1),
        dict(path="a.mp4", first_frame=10, last_frame=19, text="from then on", start=2),
    ]
    listing = places.read(write_lines(tmp_path / "m.jsonl", rows))
    assert left_out(listing) == {
        "m.jsonl:5": "first_frame and last_frame are no span",
        "m.jsonl:6": "first_frame and last_frame are no span",
        "m.jsonl:7": "first_frame is no whole number",
        "m.jsonl:8": "last is before frame, or without it",
        "m.jsonl:9": "last is before frame, or without it",
        "m.jsonl:10": "caption_source is no text",
        "m.jsonl:11": "frame is outside the row's span",
    }
    found = survey.survey(listing.entries)
    assert [video.entry.name for video in found.videos] == ["a.mp4#000000-000039"]
    gone = {each.name: (each.reason, each.detail) for each in found.left_out}
    assert gone["a.mp4#000030-000040"][1].endswith("a.mp4: has 40 frames; frames 30 to 40 are not there.")
    assert gone["b.mp4#000000-000001"][0] == gone["b.mp4#000002-000003"][0] == "cannot be read"
    assert gone["a.mp4#000010-000019"][0] == "no caption"


def test_spans_of_frame_folders_and_arrays(tmp_path):
    (tmp_path / "v").mkdir()
    for i in range(12):
        Image.new("RGB", (8, 8), (5 * i, 5 * i, 5 * i)).save(tmp_path / "v" / f"{i}.png")
    np.save(tmp_path / "a.npy", np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None] * 5, (12, 8, 8, 3)))
    rows = [dict(path=path, first_frame=3, last_frame=7, fps=4, text="x") for path in ("v", "a.npy")]
    for video in survey.survey(places.read(write_lines(tmp_path / "m.jsonl", rows)).entries).videos:
        assert (video.index.info.fps, video.index.info.seconds) == (4, 1.25)
        with survey.open_reader(video.entry, index=video.index) as reader:
            assert numbers(reader.read(np.arange(5))) == [3, 4, 5, 6, 7]


def test_spans_of_one_file_are_in_one_split(tmp_path):
    rows = []
    for name in "abcdefgh":
        write_video(tmp_path / f"{name}.mp4", 8)
        rows += [dict(path=f"{name}.mp4", first_frame=i, last_frame=i + 1, text="x") for i in range(0, 8, 2)]
    rows += [dict(path="a.mp4", first_frame=0, last_frame=7, text="x", episode="of b")]
    entries = places.read(write_lines(tmp_path / "m.jsonl", rows)).entries
    assert {e.episode for e in entries} == {f"{name}.mp4" for name in "abcdefgh"} | {"of b"}
    splits = {split: survey.of_split(entries, split, 0.3) for split in survey.SPLITS}
    held = [{e.episode for e in its} for its in splits.values()]
    assert sum(len(its) for its in splits.values()) == len(entries)
    assert all(held) and not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])


def test_shared_captions_of_a_span_and_of_its_file(tmp_path):
    write_video(tmp_path / "a.mp4")
    rows = [dict(path="a.mp4", first_frame=10, last_frame=19), dict(path="a.mp4", first_frame=20, last_frame=29)]
    place = write_lines(tmp_path / "m.jsonl", rows)
    lines = [
        {"video": "a.mp4#000010-000019", "frame": 0, "last": 1, "text": "of the span"},
        {"video": "a.mp4", "frame": 18, "last": 20, "text": "of the file", "caption_source": "git"},
        {"video": "a.mp4", "frame": 10, "text": "below"},
        {"video": "a.mp4#000010-000020", "text": "of none"},
    ]
    listing = places.read(place, str(write_lines(tmp_path / "captions.jsonl", lines)))
    assert left_out(listing) == {"a.mp4#000010-000020": "caption of no video"}
    first, second = survey.survey(listing.entries).videos
    wanted = {0: "of the span", 1: "of the span", 8: "of the file", 9: "of the file"}
    assert survey.texts(first, np.arange(10), first.index.times) == [wanted.get(i, "") for i in range(10)]
    assert survey.texts(second, np.arange(10), second.index.times) == ["of the file"] + 9 * [""]
    assert second.entry.captions == (records.Caption("of the file", frame=0, last=0, source="machine"),)


def test_training_on_spans_by_time(tmp_path):
    write_video(tmp_path / "a.mp4")
    rows = [dict(path="a.mp4", first_frame=10, last_frame=29, text="x", start=2.0, end=2.5)]
    place = write_lines(tmp_path / "m.jsonl", rows)
    source = videos.VideoSource(place, split="train", frame_size=16, fps=5.0)
    assert source.num_frames(0) == 10
    assert numbers(source.frames(0, np.arange(10))) == list(range(10, 30, 2))
    assert source.captions(0, np.array([4, 5, 7, 8])) == ["", "x", "x", ""]


@pytest.mark.parametrize(
    "line, problem",
    [
        ({"frame": 3, "last": 2, "text": "x"}, '"last" = 2 must be a number from "frame" = 3 on'),
        ({"last": 2, "text": "x"}, '"last" = 2 must be a number from "frame" = None on'),
        ({"frame": 1, "last": 2.5, "text": "x"}, '"last" = 2.5 must be'),
        ({"frame": 1, "last": True, "text": "x"}, '"last" = True must be'),
        ({"frame": 1, "last": 2, "start": 0, "text": "x"}, '"frame" = 1 must be a number'),
        ({"text": "x", "caption_source": 1}, '"caption_source" = 1 must be "human" or "machine"'),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, line, problem):
    write_video(tmp_path / "v.mp4", 4)
    write_lines(tmp_path / "v.jsonl", [{"text": "fine"}, line])
    with pytest.raises(records.IntakeError) as error:
        places.read(tmp_path)
    assert f"v.jsonl:2: {problem}" in str(error.value) and "\n" not in str(error.value)


def test_intervals_and_sources_of_captions(tmp_path):
    write_video(tmp_path / "v.mp4", 20)
    said = (None, "human", "Human", "machine", "GIT", "none")
    lines = [{"frame": 3 * i, "last": 3 * i + 1, "text": str(i), "caption_source": who} for i, who in enumerate(said)]
    write_lines(tmp_path / "v.jsonl", lines)
    [video] = survey.survey(places.read(tmp_path).entries).videos
    assert [c.source for c in video.entry.captions] == ["human"] * 3 + ["machine"] * 3
    assert survey.texts(video, np.arange(7), video.index.times[:7]) == ["0", "0", "", "1", "1", "", "2"]
