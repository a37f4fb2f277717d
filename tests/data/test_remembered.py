"""Indexes kept between runs, and hashes of what videos hold."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import remembered
from nuwaxl_jax.data.intake import survey


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two captioned clips, and a folder to remember in."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "kept"))
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        video_io.write_mp4(tmp_path / f"v/{name}.mp4", rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), 5, gop=4)
        (tmp_path / f"v/{name}.txt").write_text(f"clip {name}")
    return tmp_path / "v"


@pytest.fixture(autouse=True)
def folders(tmp_path):
    (tmp_path / "v").mkdir(exist_ok=True)


def entries(place):
    return [records.Entry(name, place / name, (records.Caption("x"),)) for name in ("a.mp4", "b.mp4")]


def walks(monkeypatch):
    """The files walked from now on."""
    seen, scan = [], video_io.VideoReader._scan

    def counted(reader):
        seen.append(os.path.basename(reader.path))
        return scan(reader)

    monkeypatch.setattr(video_io.VideoReader, "_scan", counted)
    return seen


def test_a_file_is_walked_once_until_it_changes(place, monkeypatch):
    seen = walks(monkeypatch)
    first = survey.survey(entries(place)).videos
    again = survey.survey(entries(place)).videos
    assert sorted(seen) == ["a.mp4", "b.mp4"]
    for one, other in zip(first, again):
        assert one.index.info == other.index.info and one.index.stamp == other.index.stamp
        for name in ("times", "pts", "keys"):
            np.testing.assert_array_equal(getattr(one.index, name), getattr(other.index, name))
        with (
            survey.open_reader(one.entry, index=one.index) as r1,
            survey.open_reader(other.entry, index=other.index) as r2,
        ):
            np.testing.assert_array_equal(r1.read(np.array([7, 2])), r2.read(np.array([7, 2])))
    os.utime(place / "b.mp4", ns=(1, 1))
    survey.survey(entries(place))
    assert seen[2:] == ["b.mp4"]


def test_a_remembered_index_meets_todays_limits_and_a_damaged_one_is_none(place, monkeypatch):
    survey.survey(entries(place))
    [gone, _] = survey.survey(entries(place), limits=video_io.Limits(max_frames=11)).left_out
    assert "12 frames are over the limit of 11" in gone.detail
    kept = sorted((remembered.folder()).iterdir())
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(file.read_bytes()[:-30])
    seen = walks(monkeypatch)
    assert len(survey.survey(entries(place)).videos) == 2 and len(seen) == 2


def test_an_index_of_another_version_is_walked_again(place, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(remembered, "_VERSION", remembered._VERSION - 1)
        survey.survey(entries(place))
    seen = walks(monkeypatch)
    survey.survey(entries(place))
    survey.survey(entries(place))
    assert sorted(seen) == ["a.mp4", "b.mp4"]


def test_nothing_is_kept_where_nothing_can_be(place, monkeypatch):
    seen = walks(monkeypatch)
    for value in ("off", "/proc/nowhere"):
        monkeypatch.setenv("NUWAXL_CACHE", value)
        assert len(survey.survey(entries(place)).videos) == 2
        assert len(survey.survey(entries(place)).videos) == 2
    assert len(seen) == 8


def fingerprint(place):
    return videos.VideoSource(place, split="train", frame_size=8).fingerprint()


def test_a_copy_elsewhere_is_the_same_and_another_picture_or_caption_is_not(place, tmp_path):
    before = fingerprint(place)
    shutil.copytree(place, tmp_path / "copy")
    os.utime(tmp_path / "copy/a.mp4", ns=(5, 5))
    assert fingerprint(tmp_path / "copy") == before
    (tmp_path / "copy/a.txt").write_text("clip A")
    assert fingerprint(tmp_path / "copy") != before
    (tmp_path / "copy/a.txt").write_text("clip a")
    assert fingerprint(tmp_path / "copy") == before
    shutil.copy(place / "b.mp4", tmp_path / "copy/a.mp4")
    assert fingerprint(tmp_path / "copy") != before


def test_every_part_and_image_of_a_video_counts(tmp_path):
    from nuwaxl_jax.data.intake import contents

    for number in (1, 2):
        np.save(tmp_path / f"{number}.npy", np.full((3, 4, 4, 3), number, np.uint8))
    parts = tuple(frames_io.Part(tmp_path / f"{number}.npy", 0, 3) for number in (1, 2))
    joined = records.Entry("j", parts[0].path, parts=parts)
    before = contents.digest(joined)
    assert contents.digest(dataclasses.replace(joined, parts=())) != before
    assert contents.digest(dataclasses.replace(joined, parts=(), span=(0, 1))) != contents.digest(
        dataclasses.replace(joined, parts=())
    )
    np.save(tmp_path / "2.npy", np.full((3, 4, 4, 3), 9, np.uint8))
    assert contents.digest(joined) != before
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"x" * (number + 1))
    one = records.Entry("f", folder)
    before = contents.digest(one)
    (folder / "1.png").write_bytes(b"yy")
    assert contents.digest(one) != before
