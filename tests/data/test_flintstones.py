"""CRAFT's clips: those that follow each other are one video, frame for frame, with each caption on its own frames."""

import json

import numpy as np
import pytest

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import flintstones
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey


def clip_id(first, last, episode=1, season=1):
    return f"s_{season:02}_e_{episode:02}_shot_{first:06}_{last:06}"


def write_array(folder, name, size=16, count=None, mark=0):
    """Frame k of the episode is grey of level k (modulo 256) + mark."""
    _, _, first, last = flintstones.parse_id(name)
    levels = (first + np.arange(last - first + 1 if count is None else count) + mark) % 256
    folder.mkdir(exist_ok=True)
    np.save(
        folder / f"{name}.npy",
        np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), size, size, 3)),
    )


def write_annotations(folder, names, splits=None):
    entries = [dict(globalID=name, description=f"of {name[-6:]}") for name in names]
    (folder / flintstones.ANNOTATIONS).write_text(json.dumps(entries))
    if splits is not None:
        (folder / flintstones.SPLIT).write_text(json.dumps(splits))


def write_clips(folder, names, splits=None, **kwargs):
    write_annotations(folder, names, splits)
    for name in names:
        write_array(folder / "video_frames", name, **kwargs)


def levels(reader, index):
    return reader.read(np.asarray(index), 8)[:, 0, 0, 0].tolist()


def reasons(listing):
    return [(each.name, each.step, each.reason, each.detail) for each in listing.left_out]


def test_clips_that_touch_are_one_video(tmp_path):
    names = [clip_id(10, 19), clip_id(20, 24), clip_id(25, 34), clip_id(36, 40), clip_id(35, 44, episode=2)]
    write_clips(tmp_path, names)
    listing = places.read(tmp_path)
    assert [entry.name for entry in listing.entries] == [clip_id(10, 34), clip_id(36, 40), names[4]]
    assert [entry.episode for entry in listing.entries] == ["s01e01", "s01e01", "s01e02"]
    assert not listing.left_out
    [video, *_] = survey.survey(listing.entries).videos
    with survey.open_reader(video.entry, index=video.index) as reader:
        assert (reader.info.num_frames, reader.info.fps, reader.info.seconds) == (25, 25.0, 1.0)
        assert levels(reader, [24, 0, 9, 10, 14, 15, 9]) == [34, 10, 19, 20, 24, 25, 19]
        np.testing.assert_array_equal(np.concatenate(list(reader.chunks(7)))[:, 0, 0, 0], np.arange(10, 35))
        with pytest.raises(IndexError):
            reader.read(np.array([25]))
    index = np.array([0, 9, 10, 14, 15, 24])
    texts = survey.texts(video, index, video.index.times[index])
    assert texts == ["of 000019", "of 000019", "of 000024", "of 000024", "of 000034", "of 000034"]
    assert [(c.frame, c.last, c.clip, c.source) for c in video.entry.captions] == [
        (0, 9, names[0], "human"),
        (10, 14, names[1], "human"),
        (15, 24, names[2], "human"),
    ]
    assert listing.entries[1].captions == (records.Caption("of 000040", clip=names[3]),)


def test_overlaps_are_of_the_first_clip_that_has_the_frame(tmp_path):
    names = [clip_id(0, 9), clip_id(5, 14), clip_id(6, 8), clip_id(15, 19)]
    write_annotations(tmp_path, names)
    for mark, name in enumerate(names):
        write_array(tmp_path / "video_frames", name, mark=100 * (mark == 1) + 50 * (mark == 2))
    [entry] = places.read(tmp_path).entries
    assert entry.name == clip_id(0, 19)
    with survey.open_reader(entry) as reader:
        assert levels(reader, range(20)) == [*range(10), *range(110, 115), *range(15, 20)]
    [video] = survey.survey([entry]).videos
    texts = survey.texts(video, np.arange(20), video.index.times)
    assert texts[4:9] == ["of 000009", "of 000014", "of 000008", "of 000008", "of 000008"] and texts[9] == "of 000014"


def test_arrays_that_do_not_fit_stay_alone_and_are_told(tmp_path):
    names = [clip_id(0, 9), clip_id(10, 19), clip_id(20, 29), clip_id(30, 39), clip_id(50, 59)]
    write_clips(tmp_path, names)
    write_array(tmp_path / "video_frames", names[1], count=7)
    write_array(tmp_path / "video_frames", names[3], size=12)
    write_array(tmp_path / "video_frames", names[4], count=3)  # no neighbour: nothing to tell
    listing = places.read(tmp_path)
    assert [entry.name for entry in listing.entries] == names
    why = "of joining with its neighbours, used alone"
    assert reasons(listing) == [
        (names[1], "joined", why, "7 frames, 10 by its name"),
        (names[3], "joined", why, "frames of (12, 12) after (16, 16), height and width"),
    ]
    data = (tmp_path / "video_frames" / f"{names[2]}.npy").read_bytes()
    (tmp_path / "video_frames" / f"{names[2]}.npy").write_bytes(data[:-5])
    write_array(tmp_path / "video_frames", names[1])
    write_array(tmp_path / "video_frames", names[3])
    listing = places.read(tmp_path)
    assert [entry.name for entry in listing.entries] == [clip_id(0, 19), names[2], names[3], names[4]]
    assert not listing.left_out
    [gone] = survey.survey(listing.entries).left_out
    assert gone.name == names[2] and gone.reason == "cannot be read"


def test_no_clip_is_joined_to_one_of_another_split(tmp_path):
    names = [clip_id(10 * i, 10 * i + 9) for i in range(4)]
    splits = dict(train=names[:2], val=names[2:3], test=names[3:])
    write_clips(tmp_path, names, splits)
    listing = places.read(tmp_path)
    assert [(e.name, e.split) for e in listing.entries] == [
        (clip_id(0, 19), "train"),
        (names[2], "valid"),
        (names[3], "test"),
    ]
    assert reasons(listing) == [(names[0], "joined", "of joining over splits", "test, train, valid")]


def test_clips_without_a_split_take_their_episodes(tmp_path):
    names = [clip_id(0, 9), clip_id(10, 19), clip_id(0, 9, episode=2), clip_id(50, 59, episode=2)]
    write_clips(tmp_path, names, dict(test=[names[0], "s_01_e_01_shot_none"]))
    listing = places.read(tmp_path)
    assert [(e.name, e.split) for e in listing.entries] == [
        (clip_id(0, 19), "test"),
        (names[2], None),
        (names[3], None),
    ]
    for fraction in (0.1, 0.3, 0.45):  # by the episode's hash: both or none
        for split in survey.SPLITS:
            chosen = survey.of_split(listing.entries, split, fraction)
            assert chosen is None or {e.name for e in chosen} & set(names[2:]) in (set(), set(names[2:]))


def test_five_frames_of_each_clip_are_not_joined(tmp_path):
    names = [clip_id(0, 74), clip_id(75, 149)]
    write_annotations(tmp_path, names)
    for name in names:
        write_array(tmp_path / "video_frames_sampled", name, count=5)
    listing = places.read(tmp_path)
    assert [e.name for e in listing.entries] == names and not listing.left_out
    assert [(e.episode, e.captions[0].clip) for e in listing.entries] == [("s01e01", name) for name in names]
    assert survey.survey(listing.entries).videos[0].index.info.seconds == pytest.approx(3)


def test_change_of_any_part_is_seen(tmp_path):
    names = [clip_id(10 * i, 10 * i + 9) for i in range(7)]
    write_clips(tmp_path, names)
    [entry] = places.read(tmp_path).entries
    with survey.open_reader(entry) as reader:
        index = reader.index
        assert levels(reader, range(70)) == list(range(70))  # more parts than stay open
    assert len(index.stamp) == 2
    write_array(tmp_path / "video_frames", names[4], mark=1)
    with pytest.raises(video_io.VideoError, match="has changed since"):
        survey.open_reader(entry, index=index)
    (tmp_path / "video_frames" / f"{names[4]}.npy").unlink()
    [gone] = survey.survey([entry]).left_out
    assert gone.reason == "cannot be read" and names[4] in gone.detail


def test_parts_that_leave_a_gap_are_refused(tmp_path):
    write_array(tmp_path, clip_id(0, 9))
    part = frames_io.Part(tmp_path / f"{clip_id(0, 9)}.npy", 0, 10)
    with pytest.raises(ValueError, match="do not follow those up to 9"):
        frames_io.FrameSequence([part, frames_io.Part(part.path, 11, 10)])
    with pytest.raises(ValueError, match="no parts"):
        frames_io.FrameSequence([])
    with pytest.raises(video_io.VideoError, match=r"holds \(10, 16, 16, 3\), not \(12, 16, 16, 3\)"):
        frames_io.FrameSequence([frames_io.Part(part.path, 0, 12)])


def test_training_reads_across_clips(tmp_path):
    names = [clip_id(0, 9), clip_id(10, 19)]
    write_clips(tmp_path, names)
    source = videos.VideoSource(tmp_path, split="train", frame_size=8, min_frames=15)
    assert (len(source), source.name(0), source.num_frames(0)) == (1, clip_id(0, 19), 20)
    assert source.frames(0, np.arange(5, 16))[:, 0, 0, 0].tolist() == list(range(5, 16))
    assert source.captions(0, np.array([9, 10])) == ["of 000009", "of 000019"]


@pytest.mark.parametrize(
    "text, problem", [("{", "is no JSON"), ("[]", "holds no dict"), ('{"train": 3}', "train is no list")]
)
def test_splits_that_are_none(tmp_path, text, problem):
    write_clips(tmp_path, [clip_id(0, 9)])
    (tmp_path / flintstones.SPLIT).write_text(text)
    with pytest.raises(records.IntakeError, match=f"train-val-test_split.json: {problem}") as error:
        places.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data, problem", [(b"{", "is no JSON"), (b"{}", "holds no list"), (b'[{"globalID": "\xff"}]', "is not UTF-8 text")]
)
def test_annotations_that_are_none(tmp_path, data, problem):
    write_clips(tmp_path, [clip_id(0, 9)])
    (tmp_path / flintstones.ANNOTATIONS).write_bytes(data)
    with pytest.raises(records.IntakeError, match=f"flintstones_annotations_v1-0.json: {problem}") as error:
        places.read(tmp_path)
    assert "\n" not in str(error.value)


def test_annotations_without_a_description_are_told(tmp_path):
    names = [clip_id(0, 9), clip_id(10, 19), clip_id(40, 49)]
    write_clips(tmp_path, names)
    entries = [dict(globalID=names[0], description="said"), dict(globalID=names[1]), dict(globalID=names[2])]
    (tmp_path / flintstones.ANNOTATIONS).write_text(json.dumps(entries))
    listing = places.read(tmp_path)
    assert reasons(listing) == [(names[1], "caption", "annotation has no description", "")]
    found = survey.survey(listing.entries)
    assert [(each.name, each.reason) for each in found.left_out] == [(names[2], "no caption")]
    assert survey.texts(found.videos[0], np.array([9, 10]), np.array([0.36, 0.4])) == ["said", ""]
    video_io.write_mp4(tmp_path / "s01e01.mp4", np.zeros((20, 16, 16, 3), np.uint8), 25)
    assert {(each.name, each.reason) for each in places.read(tmp_path).left_out} == {
        (names[1], "annotation has no description"),
        (names[2], "annotation has no description"),
        ("video_frames/", "episodes are used instead"),
    }
