"""TFDS's data set flintstones_hd, built here from tiny episodes with CRAFT's annotations; without TensorFlow."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from nuwaxl_jax import video_io
from nuwaxl_jax.data import flintstones_hd
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import flintstones
from nuwaxl_jax.data.intake import survey
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import source as source_lib

EPISODES = ("s01e01", "s01e02", "s01e03", "s01e04", "s02e05", "s03e09")
FRAMES, SIZE = 48, 16


def make_episodes(folder, num=FRAMES):
    """Episodes of noise, of which two clips are annotated; those of season 1's first two are in 'val' and 'test'."""
    folder.mkdir(parents=True)
    annotations, splits = [], {"train": [], "val": [], "test": []}
    for i, name in enumerate(EPISODES):
        frames = np.random.default_rng(i).integers(0, 256, (num, 24, 32, 3), np.uint8)
        video_io.write_mp4(folder / f"{name}.mp4", frames, 25, gop=12)
        season, episode = int(name[1:3]), int(name[4:])
        for first, last, text in ((5, 19, "Fred drives"), (30, 39, "Wilma waits")):
            clip = f"s_{season:02d}_e_{episode:02d}_shot_{first:06d}_{last:06d}"
            annotations.append(dict(globalID=clip, description=f"{text} in {name}"))
            splits[("val", "test", "train")[min(i, 2)]].append(clip)
    (folder / flintstones.ANNOTATIONS).write_text(json.dumps(annotations))
    (folder / flintstones.SPLIT).write_text(json.dumps(splits))
    return folder


def small(**options):
    return flintstones_hd.Builder.builder_config_cls(name="small", frame_size=SIZE, part_frames=20, **options)


def opened(data_dir, config=None, **options):
    return tfds.builder("flintstones_hd", config=config or small(), data_dir=data_dir, try_gcs=False, **options)


def build(builder, episodes):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=episodes))
    return builder


def content(folder):
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(episodes, data_dir)."""
    folder = tmp_path_factory.mktemp("flintstones")
    episodes = make_episodes(folder / "manual")
    build(opened(folder / "tfds"), episodes)
    return episodes, folder / "tfds"


def test_records_are_frames_with_the_captions_on_exactly_theirs(place):
    builder = opened(place[1])
    assert builder.info.full_name == "flintstones_hd/small/1.0.0"
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    names = {"train": EPISODES[2:], "validation": EPISODES[:1], "test": EPISODES[1:2]}
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        split: FRAMES * len(its) for split, its in names.items()
    }
    for ours, theirs in format_lib.SPLITS.items():
        expected = videos.VideoSource(place[0], split=ours, frame_size=SIZE)
        data = builder.as_data_source(split=theirs)
        for row in (0, 4, 5, 19, 20, 30, 39, 40, len(data) - 1):
            example, (episode, frame) = data[row], divmod(row, FRAMES)
            np.testing.assert_array_equal(example["image"], expected.frames(episode, np.array([frame]))[0])
            name = names[theirs][episode]
            text = {True: f"Fred drives in {name}"}.get(5 <= frame <= 19, "")
            text = f"Wilma waits in {name}" if 30 <= frame <= 39 else text
            assert example["caption"].decode() == text
            assert example["caption_source"] == (b"human" if text else b"none")
            shot = "000005_000019" if 5 <= frame <= 19 else "000030_000039"
            clip = f"s_{name[1:3]}_e_{name[4:]}_shot_{shot}" if text else ""
            assert [example["clip_id"].decode(), example["frame"]] == [clip, frame]
            assert name in example["episode"].decode()
            np.testing.assert_allclose([example["seconds"], example["fps"]], [frame / 25, 25], rtol=1e-6)
    assert builder.info.metadata["episodes"]["frames"] == [FRAMES] * len(EPISODES)
    assert "tensorflow" not in sys.modules


def test_our_own_reader_takes_it_by_the_same_folder(place):
    for split in survey.SPLITS:
        expected = videos.VideoSource(place[0], split=split, frame_size=SIZE, caption_fill="nearest")
        found = source_lib.PreparedSource(place[1], split=split, frame_size=SIZE, caption_fill="nearest")
        assert len(found) == len(expected)
        for i in range(len(found)):
            index = np.arange(FRAMES)[::-2]
            np.testing.assert_array_equal(found.frames(i, index), expected.frames(i, index))
            assert found.captions(i, index) == expected.captions(i, index)


def test_a_second_call_changes_nothing(place):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in place[1].rglob("*")}
    for builder in (build(opened(place[1]), place[0]), opened(place[1], file_format="array_record")):
        assert builder.info.splits["train"].num_examples == 4 * FRAMES
        assert len(builder.as_data_source(split="test")) == FRAMES
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in place[1].rglob("*")} == before


SCRIPT = """
import sys
import tensorflow_datasets as tfds
from nuwaxl_jax.data import flintstones_hd
config = flintstones_hd.Builder.builder_config_cls(name="small", frame_size=96, part_frames=20)
builder = tfds.builder("flintstones_hd", config=config, data_dir=sys.argv[2], try_gcs=False)
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path):
    episodes = make_episodes(tmp_path / "manual", 160)
    run = [sys.executable, "-c", SCRIPT, str(episodes)]
    subprocess.run([*run, str(tmp_path / "undisturbed")], check=True, capture_output=True, timeout=400)
    notes = tmp_path / "killed" / "flintstones_hd" / "small" / ".1.0.0.partial" / "shards"
    kept = []
    for wanted in (2, 9, 25):
        process = subprocess.Popen(
            [*run, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list(notes.glob("*.json"))) < wanted and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept.append({path.name: path.stat().st_ino for path in notes.glob("*.json")})
    assert kept[0].items() <= kept[1].items() <= kept[2].items() and len(kept[2]) < 6 * 8
    assert not (notes.parent.parent / "1.0.0").exists()
    subprocess.run([*run, str(tmp_path / "killed")], check=True, capture_output=True, timeout=400)
    assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")
    assert not notes.parent.exists()


def test_killed_while_tfds_renames_nothing_is_lost(place, tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    builder = opened(tmp_path)
    (tmp_path / "flintstones_hd" / "small" / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)  # as a kill leaves it
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(tfds.core.DatasetInfo, "write_to_directory", crash)
        build(builder, place[0])
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(tfds.core.DatasetInfo, "update_data_dir", crash)  # the folder has its name, ours is still there
        build(opened(tmp_path), place[0])
    builder = build(opened(tmp_path), place[0])
    assert builder.info.splits["train"].num_examples == 4 * FRAMES
    assert os.listdir(tmp_path / "flintstones_hd" / "small") == ["1.0.0"]
    for name, data in content(place[1] / "flintstones_hd").items():
        assert content(tmp_path / "flintstones_hd")[name] == data, name


def test_two_calls_at_once(tmp_path):
    episodes = make_episodes(tmp_path / "manual", 100)
    run = [sys.executable, "-c", SCRIPT, str(episodes), str(tmp_path / "tfds")]
    crew = [subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in crew:
        _, complaints = process.communicate(timeout=400)
        assert process.returncode == 0, complaints
    config = flintstones_hd.Builder.builder_config_cls(name="small", frame_size=96, part_frames=20)
    builder = opened(tmp_path / "tfds", config=config)
    assert builder.info.splits["train"].num_examples == 400
    assert os.listdir(tmp_path / "tfds" / "flintstones_hd" / "small") == ["1.0.0"]


def test_configurations_and_mistakes(place, tmp_path):
    for name, size, image in (("128", 128, "png"), ("256_jpeg", 256, "jpeg")):
        builder = tfds.builder(f"flintstones_hd/{name}", data_dir=tmp_path, try_gcs=False)
        assert builder.info.features["image"].shape == (size, size, 3)
        assert builder.info.features["image"].encoding_format == image
    assert tfds.builder("flintstones_hd", data_dir=tmp_path, try_gcs=False).info.config_name == "128"
    with pytest.raises(ValueError, match="file_format is 'tfrecord'; flintstones_hd is kept as 'array_record' alone"):
        opened(tmp_path, file_format="tfrecord")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match="does not exist or is empty.(?s:.*)HD episodes(?s:.*)s01e01"):
        build(opened(tmp_path), tmp_path / "empty")
    build(opened(tmp_path, small(image="jpeg", quality=80)), place[0])
    frames = [
        source_lib.PreparedSource(p, split="test", frame_size=SIZE).frames(0, np.arange(5))
        for p in (place[1], tmp_path)
    ]
    assert 0 < np.abs(frames[0].astype(float) - frames[1]).mean() < 20
