"""What people have: every layout read alike, and every row or file that cannot be used named with its reason."""

import csv
import json
import os

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data import text as text_lib
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey


def write_video(path, num=8, size=32, fps=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.broadcast_to((5 * np.arange(num, dtype=np.uint8))[:, None, None, None], (num, size, size, 3))
    video_io.write_mp4(path, frames, fps)


def write_images(folder, count, size=(20, 16), suffix=".png", mode="RGB"):
    folder.mkdir(parents=True)
    for i in range(count):
        image = Image.new("RGB", size, (9 * i, 0, 255 - 9 * i))
        image.convert(mode).save(folder / f"frame_{i}{suffix}")


def left_out(listing):
    return {each.name: each.reason for each in listing.left_out}


ROWS = [
    dict(path="a.mp4", text="a  red\nstar"),
    dict(path="sub/b.mp4", text="a blue circle, far away"),
    dict(path="gone.mp4", text="nothing"),
    dict(path="", text="no name"),
    dict(path="a.mp4", text="a second one"),
]


def write_manifest(place, suffix, rows):
    path = place / f"clips{suffix}"
    if suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_table_says_the_same(tmp_path, suffix):
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "sub" / "b.mp4")
    path = write_manifest(tmp_path, suffix, ROWS)
    listing = places.read(path)
    assert listing.layout == "manifest"
    assert [(e.name, e.path, [c.text for c in e.captions]) for e in listing.entries] == [
        ("a.mp4", tmp_path / "a.mp4", ["a red star"]),
        ("sub/b.mp4", tmp_path / "sub" / "b.mp4", ["a blue circle, far away"]),
    ]
    assert sorted(left_out(listing).values()) == ["name occurs twice", "names no video", "no such file"]
    path.rename(tmp_path / f"metadata{suffix}")  # found in its folder under this name
    assert places.read(tmp_path).entries == listing.entries


def test_column_names_of_others(tmp_path):
    write_video(tmp_path / "a.mp4")
    for names in (("video", "caption"), ("file_name", "text"), ("Video_Path", "Prompt"), ("filename", "description")):
        path = write_manifest(tmp_path, ".csv", [dict(zip(names, ("a.mp4", "a star")))])
        [entry] = places.read(path).entries
        assert entry.captions[0].text == "a star"
    path = write_manifest(tmp_path, ".csv", [dict(url="a.mp4", text="a")])
    with pytest.raises(records.IntakeError, match="no column names the video; there are url, text; call one .* 'path'"):
        places.read(path)


def test_rows_with_seconds_caption_one_video(tmp_path):
    write_video(tmp_path / "a.mp4")
    rows = [
        dict(id="x", path="a.mp4", text="one", start=0, end=0.5, split="val", fps=24),
        dict(id="x", path="a.mp4", text="two", start=0.5, end=1, split="val", fps=24),
        dict(id="y", path="a.mp4", text="three", start=1, end=0.5, split="val", fps=24),
        dict(id="z", path="a.mp4", text="four", start=None, end=None, split="holdout", fps=24),
        dict(id="w", path="a.mp4", text="five", start="soon", end=None, split="train", fps=24),
    ]
    listing = places.read(write_manifest(tmp_path, ".jsonl", rows))
    [entry] = listing.entries
    assert (entry.name, entry.split, entry.fps) == ("x", "valid", 24)
    assert entry.captions == (records.Caption("one", 0, 0.5), records.Caption("two", 0.5, 1))
    assert left_out(listing) == {
        "clips.jsonl:3": "start is not before end",
        "clips.jsonl:4": "split is unknown",
        "clips.jsonl:5": "start is no number",
    }


def test_rows_of_single_frames(tmp_path):
    write_video(tmp_path / "a.mp4")
    rows = [dict(path="a.mp4", frame=i, text=f"frame {i}") for i in (0, 4)]
    [entry] = places.read(write_manifest(tmp_path, ".csv", rows)).entries
    assert [(c.text, c.frame) for c in entry.captions] == [("frame 0", 0), ("frame 4", 4)]
    listing = places.read(write_manifest(tmp_path, ".csv", [dict(path="a.mp4", frame="1.5", text="no")]))
    assert left_out(listing) == {"clips.csv:2": "frame is no number by itself"}


def test_half_a_character_stops_nothing(tmp_path):
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4")
    rows = [dict(path="a.mp4", text="a cat \ud83d"), dict(path="a.mp4", id="\ud83d", text="x")]
    rows += [dict(path="b.mp4", text="whole \U0001f408"), dict(path="\ud83d.mp4", text="x")]
    listing = places.read(write_manifest(tmp_path, ".jsonl", rows))
    assert [e.captions[0].text for e in listing.entries] == ["a cat \ufffd", "whole \U0001f408"]
    assert left_out(listing) == {
        "clips.jsonl:2": "name is not UTF-8 text",
        "clips.jsonl:4": "path is not UTF-8 text",
    }
    (tmp_path / "captions.jsonl").write_text('{"video": "c.mp4", "text": "\\ude00 a dog"}\n')
    c = places.read(tmp_path).entries[2]
    assert c.captions[0].text == "\ufffd a dog"
    assert text_lib.WordTokenizer(512, 8).encode(c.captions[0].text)[0] == 1


def test_rows_that_are_no_rows(tmp_path):
    write_video(tmp_path / "a.mp4")
    (tmp_path / "m.jsonl").write_bytes(
        b'{"path": "a.mp4", "text": "\xff"}\n{"path": \n\n[1]\n{"path": "a.mp4", "text": "fine"}\n'
    )
    listing = places.read(tmp_path / "m.jsonl")
    assert [entry.captions[0].text for entry in listing.entries] == ["fine"]
    assert left_out(listing) == {
        "m.jsonl:1": "text is not UTF-8 text",
        "m.jsonl:2": "row cannot be read",
        "m.jsonl:4": "row cannot be read",
    }
    (tmp_path / "m.csv").write_text('path,text\na.mp4,"two, of them"\na.mp4\nb.mp4,a,b\n')
    listing = places.read(tmp_path / "m.csv")
    assert listing.entries[0].captions[0].text == "two, of them"
    assert left_out(listing) == {"m.csv:3": "row cannot be read", "m.csv:4": "row cannot be read"}


def test_a_caption_of_100_kb_and_an_empty_one(tmp_path):
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4")
    rows = [dict(path="a.mp4", text="word " * 20_000), dict(path="b.mp4", text=" \n ")]
    a, b = places.read(write_manifest(tmp_path, ".csv", rows)).entries
    assert len(a.captions[0].text) == records.MAX_CHARACTERS - 1 and b.captions == ()


@pytest.mark.parametrize(
    "name, data, problem",
    [
        ("m.parquet", b"PAR1 nothing", "cannot be read as parquet"),
        ("m.json", b'{"path": "a.mp4"}', "holds no list"),
        ("m.json", b"[", "is no JSON"),
        ("m.csv", b"path,text\n", "has no row"),
        ("m.txt", b"a.mp4", "is no manifest"),
    ],
)
def test_a_table_that_is_none(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(records.IntakeError, match=problem) as error:
        places.read(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_pair_of_lists(tmp_path):
    write_video(tmp_path / "clips" / "a.mp4")
    write_video(tmp_path / "clips" / "b.mp4")
    (tmp_path / "videos.txt").write_text("clips/b.mp4\nclips/a.mp4\n")
    (tmp_path / "prompts.txt").write_text("of b\nof a\n")
    listing = places.read(tmp_path)
    assert listing.layout == "lists"
    assert [(e.name, e.captions[0].text) for e in listing.entries] == [("clips/a.mp4", "of a"), ("clips/b.mp4", "of b")]
    for more in ("", "\n"):
        (tmp_path / "prompts.txt").write_text("of b\n\n" + more)  # of the last video none
        assert [(e.name, len(e.captions)) for e in places.read(tmp_path).entries] == [
            ("clips/a.mp4", 0),
            ("clips/b.mp4", 1),
        ]
    (tmp_path / "prompts.txt").write_text("of b\n")
    with pytest.raises(records.IntakeError, match="videos.txt has 2 lines, prompts.txt 1"):
        places.read(tmp_path)


def test_two_manifests_in_one_folder_are_not_guessed_between(tmp_path):
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(records.IntakeError, match="metadata.csv and metadata.jsonl; name the one"):
        places.read(tmp_path)


def test_folders_of_frames_are_videos(tmp_path):
    write_images(tmp_path / "shot.v1", 12)  # 10 comes after 9
    (tmp_path / "shot.v1.txt").write_text("red to blue")
    write_video(tmp_path / "with_poster" / "a.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "with_poster" / "poster_1.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "with_poster" / "poster_2.png")
    listing = places.read(tmp_path)
    assert [entry.name for entry in listing.entries] == ["shot.v1", "with_poster/a.mp4"]
    with survey.open_reader(listing.entries[0]) as reader:
        assert (reader.info.num_frames, reader.info.width, reader.info.height) == (12, 20, 16)
        frames = reader.read(np.array([11, 2, 2]), 8)
        assert frames.shape == (3, 8, 8, 3)
        np.testing.assert_array_equal(frames[:, 4, 4], [[99, 0, 156], [18, 0, 237], [18, 0, 237]])
        np.testing.assert_array_equal(np.concatenate(list(reader.chunks(5)))[:, 0, 0, 0], 9 * np.arange(12))
        with pytest.raises(IndexError):
            reader.read(np.array([12]))
    found = survey.survey(listing.entries, min_frames=9, require_captions=False)
    assert [video.entry.name for video in found.videos] == ["shot.v1"]
    assert found.videos[0].index.info.fps == 25


@pytest.mark.parametrize("mode, suffix", [("RGBA", ".png"), ("L", ".png"), ("P", ".png"), ("RGB", ".jpg")])
def test_images_of_other_kinds(tmp_path, mode, suffix):
    write_images(tmp_path / "v", 3, suffix=suffix, mode=mode)
    frames = frames_io.FrameFolder(tmp_path / "v").read(np.arange(3))
    assert frames.shape == (3, 16, 20, 3) and frames.dtype == np.uint8


def test_sixteen_bit_images_and_turned_ones(tmp_path):
    (tmp_path / "v").mkdir()
    for i in range(2):
        Image.fromarray(np.full((4, 6), 256 * (100 + i), np.uint16)).save(tmp_path / "v" / f"{i}.png")
    np.testing.assert_array_equal(frames_io.FrameFolder(tmp_path / "v").read(np.arange(2))[:, 0, 0, 0], [100, 101])
    (tmp_path / "w").mkdir()
    for i in range(2):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        Image.new("RGB", (6, 4)).save(tmp_path / "w" / f"{i}.jpg", exif=exif)
    assert frames_io.FrameFolder(tmp_path / "w").read(np.arange(2)).shape == (2, 6, 4, 3)


def test_damaged_images_are_named(tmp_path):
    write_images(tmp_path / "v", 4)
    data = (tmp_path / "v" / "frame_2.png").read_bytes()
    reader = frames_io.FrameFolder(tmp_path / "v")
    (tmp_path / "v" / "frame_2.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(video_io.VideoError, match="frame_2.png: cannot be read as an image"):
        reader.read(np.arange(4))
    Image.new("RGB", (8, 8)).save(tmp_path / "v" / "frame_2.png")
    with pytest.raises(video_io.VideoError, match="frame_2.png: is 8x8, the first image 20x16"):
        reader.read(np.arange(4))
    index = reader.index
    Image.new("RGB", (20, 16)).save(tmp_path / "v" / "frame_9.png")
    with pytest.raises(video_io.VideoError, match="has changed since"):
        frames_io.FrameFolder(tmp_path / "v", index=index)


def test_an_image_written_over_changes_its_folder(tmp_path):
    write_images(tmp_path / "v", 4)
    with frames_io.FrameFolder(tmp_path / "v") as reader:
        index, folder = reader.index, os.stat(tmp_path / "v").st_mtime_ns
    with frames_io.FrameFolder(tmp_path / "v", index=index) as reader:
        assert reader.read(np.arange(4)).shape == (4, 16, 20, 3)
    image = tmp_path / "v" / "frame_2.png"
    os.utime(image, ns=(1, 1))  # as many bytes, at another time
    assert os.stat(tmp_path / "v").st_mtime_ns == folder
    with pytest.raises(video_io.VideoError, match="has changed since"):
        frames_io.FrameFolder(tmp_path / "v", index=index)
    again = frames_io.FrameFolder(tmp_path / "v").index
    image.write_bytes(image.read_bytes() + b"0")
    os.utime(image, ns=(1, 1))  # more bytes, at the same time
    assert os.stat(tmp_path / "v").st_mtime_ns == folder
    with pytest.raises(video_io.VideoError, match="has changed since"):
        frames_io.FrameFolder(tmp_path / "v", index=again)


def test_flintstones_by_its_layout(tmp_path):
    ids = [f"s_01_e_0{e}_shot_000{f}_000{f + 74}" for e, f in ((1, 100), (1, 175), (2, 300))]
    annotations = [dict(globalID=name, description=f"Fred {i}.", setting="room") for i, name in enumerate(ids)]
    strangers = [dict(description="nobody"), dict(globalID="s_01_e_09_shot_000001_000075", description="gone")]
    (tmp_path / "flintstones_annotations_v1-0.json").write_text(json.dumps(annotations + strangers))
    (tmp_path / "train-val-test_split.json").write_text(json.dumps(dict(train=ids[:1], val=ids[1:2], test=ids[2:])))
    with pytest.raises(records.IntakeError, match="none of the folders video_frames, "):
        places.read(tmp_path)
    (tmp_path / "video_frames").mkdir()
    for i, name in enumerate(ids):
        frames = np.broadcast_to(np.arange(75, dtype=np.uint8)[:, None, None, None] + i, (75, 16, 16, 3))
        np.save(tmp_path / "video_frames" / f"{name}.npy", frames)
    listing = places.read(tmp_path)
    assert listing.layout == "flintstones"
    assert [(e.name, e.split, e.captions[0].text) for e in listing.entries] == [
        (name, split, f"Fred {i}.") for i, (name, split) in enumerate(zip(ids, survey.SPLITS))
    ]
    assert sorted(left_out(listing).values()) == ["globalID is none", "no such file", "of joining over splits"]
    with survey.open_reader(listing.entries[1]) as reader:
        assert (reader.info.num_frames, reader.info.fps) == (75, 25.0)
        np.testing.assert_array_equal(reader.read(np.array([70, 3]), 8)[:, 0, 0, 0], [71, 4])


@pytest.mark.parametrize("array", [np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8), np.uint8), np.array([{}], object)])
def test_arrays_that_are_no_frames(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(video_io.VideoError, match="a.npy: (holds|cannot be read)"):
        frames_io.FrameArray(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:100])
    with pytest.raises(video_io.VideoError, match="b.npy: cannot be read"):
        frames_io.FrameArray(tmp_path / "b.npy")
