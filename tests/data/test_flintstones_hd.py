"""A user's own episodes with CRAFT's annotations: captions on exactly their frames; all that does not fit is told."""

import json

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import flintstones
from nuwaxl_jax.data.intake import hd_episodes
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import survey


def write_episode(path, num=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.broadcast_to((5 * np.arange(num, dtype=np.uint8))[:, None, None, None], (num, 32, 32, 3))
    video_io.write_mp4(path, frames, 25, gop=8)


def annotate(folder, clips, splits=None):
    entries = [dict(globalID=name, description=text) for name, text in clips.items()]
    (folder / flintstones.ANNOTATIONS).write_text(json.dumps(entries))
    if splits is not None:
        (folder / flintstones.SPLIT).write_text(json.dumps(splits))


@pytest.mark.parametrize(
    "name, found",
    [
        ("s01e02.mp4", (1, 2)),
        ("The Flintstones - S1E2 - Flintstone Flyer.mkv", (1, 2)),
        ("The.Flintstones.S02E13.1080p.x265.mkv", (2, 13)),
        ("tv/1x02 - The Flyer.mp4", (1, 2)),
        ("s_1_e_2.mp4", (1, 2)),
        ("s_01_e_26/", (1, 26)),
        ("Season 1/Episode 02 - The Flyer.mp4", (1, 2)),
        ("Season 01/Ep.12.mp4", (1, 12)),
        ("Season 3/02.mp4", (3, 2)),
        ("season_3/07 The 2nd Man (720p).mp4", (3, 7)),
        ("The Flintstones Season 1 - 02.mp4", (1, 2)),
        ("Season 1 Episode 2.mp4", (1, 2)),
        ("S01/E02.mp4", (1, 2)),
        ("S01/s01e03.mp4", (1, 3)),
        ("s01 e02.mp4", (1, 2)),
        ("frames/s01e02/png", (1, 2)),
        ("s01e01-e02.mp4", "names more than one episode"),
        ("1x01-1x02.mp4", "names more than one episode"),
        ("s_01_e_02_shot_000001_000075.mp4", "is a clip and no episode"),
        ("clips/s_01_e_02_shot_000001_000075", "is a clip and no episode"),
        ("trailer 128x128.mp4", "names no season and episode"),
        ("movie 1920x1080.mp4", "names no season and episode"),
        ("episode 2.mp4", "names no season and episode"),
        ("Season 1/bonus.mp4", "names no season and episode"),
    ],
)
def test_names_of_episodes(name, found):
    assert hd_episodes.parse_name(name.rstrip("/")) == found


def test_captions_lie_on_their_frames(tmp_path):
    write_episode(tmp_path / "Season 1" / "Episode 02.mp4")
    annotate(
        tmp_path,
        {
            "s_01_e_02_shot_000012_000015": "later",
            "s_01_e_02_shot_000003_000007": "three to seven",
            "s_01_e_02_shot_000018_000092": "over the end",
            "s_01_e_02_shot_000020_000094": "behind the end",
        },
    )
    listing = places.read(tmp_path)
    assert listing.layout == "flintstones_hd" and not listing.left_out
    [entry] = listing.entries
    assert (entry.name, entry.episode) == ("Season 1/Episode 02.mp4", "s01e02")
    assert entry.captions[0].clip == "s_01_e_02_shot_000003_000007"
    found = survey.survey(listing.entries)
    [video] = found.videos
    texts = survey.texts(video, np.arange(20), video.index.times)
    wanted = {
        **{i: "three to seven" for i in range(3, 8)},
        **{i: "later" for i in range(12, 16)},
        18: "over the end",
        19: "over the end",
    }
    assert texts == [wanted.get(i, "") for i in range(20)]
    assert [(e.name, e.step, e.reason, e.detail) for e in found.left_out] == [
        (entry.name, "caption", "caption begins after the last frame", "s_01_e_02_shot_000020_000094 of 20")
    ]
    assert found.funnel["found"] == found.funnel["kept"] == 1


def test_what_does_not_fit_is_named(tmp_path):
    write_episode(tmp_path / "a" / "s01e01.mp4")
    write_episode(tmp_path / "b" / "S1E1.mp4")
    write_episode(tmp_path / "s01e09.mp4")
    write_episode(tmp_path / "trailer.mp4")
    for i in range(3):
        folder = tmp_path / "1x03"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(folder / f"{i:04}.png")
    (tmp_path / "video_frames").mkdir()
    np.save(tmp_path / "video_frames" / "s_01_e_01_shot_000000_000001.npy", np.zeros((2, 8, 8, 3), np.uint8))
    annotate(
        tmp_path,
        {
            "s_01_e_01_shot_000000_000001": "one",
            "s_01_e_03_shot_000001_000001": "three",
            "s_02_e_05_shot_000000_000074": "not here",
            "s_02_e_05_shot_000075_000149": "not here",
            "s_02_e_05_shot_000150": "no globalID",
        },
    )
    listing = places.read(tmp_path)
    assert [entry.name for entry in listing.entries] == ["1x03", "a/s01e01.mp4", "s01e09.mp4"]
    assert sorted((e.name, e.step, e.reason, e.detail) for e in listing.left_out) == [
        ("b/S1E1.mp4", "listed", "episode occurs twice", "a/s01e01.mp4 is used"),
        (f"{flintstones.ANNOTATIONS}, entry 5", "listed", "globalID is none", "'s_02_e_05_shot_000150'"),
        ("s02e05", "caption", "annotated episode is not here", "2 annotations"),
        ("trailer.mp4", "listed", "names no season and episode", ""),
        ("video_frames/", "unused", "episodes are used instead", "1 arrays"),
    ]
    found = survey.survey(listing.entries)
    assert [(e.name, e.reason) for e in found.left_out] == [("s01e09.mp4", "no caption")]
    assert survey.texts(found.videos[0], np.arange(3), np.arange(3) / 25) == ["", "three", ""]


def test_splits_are_of_episodes(tmp_path):
    clips = {f"s_01_e_{e:02}_shot_{f:06}_{f + 4:06}": "x" for e in (1, 2, 3) for f in (0, 5)}
    names = list(clips)
    for e in (1, 2, 3):
        write_episode(tmp_path / f"s01e{e:02}.mp4")
    annotate(tmp_path, clips, dict(train=names[:1] + names[2:3], val=names[1:2], test=names[4:]))
    listing = places.read(tmp_path)
    # Of the first both splits, of the second but one clip is named, of the third all.
    assert [(e.episode, e.split) for e in listing.entries] == [
        ("s01e01", None),
        ("s01e02", "train"),
        ("s01e03", "test"),
    ]
