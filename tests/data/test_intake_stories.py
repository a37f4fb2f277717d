"""Stories of captioned pictures, of AR-LDM's HDF5 and of tables: the right picture with the right caption."""

import io
import json
import sys

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import video_io
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey


def left_out(listing):
    return {each.name: each.reason for each in listing.left_out}


def png(levels, size=8):
    """Squares one below the other, red of these levels: as OpenCV stores an RGB array, in the blue channel."""
    array = np.zeros((size * len(levels), size, 3), np.uint8)
    array[..., 2] = np.repeat(levels, size)[:, None]
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write_h5(path, groups, texts=None):
    """groups: name -> stories; a story is five lists of levels."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, stories in groups.items():
            group = file.create_group(name)
            for i in range(5):
                data = group.create_dataset(f"image{i}", (len(stories),), dtype=h5py.vlen_dtype(np.dtype("uint8")))
                for row, story in enumerate(stories):
                    data[row] = story[i] if isinstance(story[i], np.ndarray) else png(story[i])
            said = group.create_dataset("text", (len(stories),), dtype=h5py.string_dtype(encoding="utf-8"))
            for row in range(len(stories)):
                said[row] = (texts or {}).get((name, row), "|".join(f"{name} {row} {i}" for i in range(5)))


SINGLE = [[10 * i] for i in range(5)]
STRIPS = [[50 * i + k for k in range(5)] for i in range(5)]


def test_a_story_is_a_video(tmp_path):
    write_h5(tmp_path / "story.h5", dict(train=[SINGLE, STRIPS], val=[STRIPS], test=[[[7, 8], [9], [1], [2], [3]]]))
    listing = places.read(tmp_path / "story.h5")
    assert listing.layout == "arldm" and not listing.left_out
    assert [(e.name, e.split) for e in listing.entries] == [
        ("test/000000", "test"),
        ("train/000000", "train"),
        ("train/000001", "train"),
        ("val/000000", "valid"),
    ]
    uneven, single, strips, _ = survey.survey(listing.entries).videos
    with survey.open_reader(single.entry, index=single.index) as reader:
        frames = reader.read(np.array([4, 0, 2]), 4)
        np.testing.assert_array_equal(frames[:, 1, 1], [[40, 0, 0], [0, 0, 0], [20, 0, 0]])  # red again
        assert (reader.info.num_frames, reader.info.seconds, reader.info.fps) == (5, 15.0, 1 / 3)
    assert survey.texts(single, np.arange(5), single.index.times) == [f"train 0 {i}" for i in range(5)]
    with survey.open_reader(strips.entry) as reader:
        assert np.concatenate(list(reader.chunks(4)))[:, 0, 0, 0].tolist() == sum(STRIPS, [])
        assert (reader.info.width, reader.info.height) == (8, 8)
    assert survey.texts(strips, np.arange(25), strips.index.times) == [
        f"train 1 {i}" for i in range(5) for _ in range(5)
    ]
    with survey.open_reader(uneven.entry) as reader:
        assert reader.read(np.arange(6))[:, 0, 0, 0].tolist() == [7, 8, 9, 1, 2, 3]
        np.testing.assert_allclose(reader.index.times, [0, 1.5, 3, 6, 9, 12])
    assert survey.texts(uneven, np.arange(6), uneven.index.times)[:3] == ["test 0 0", "test 0 0", "test 0 1"]


def test_training_and_threads_on_one_h5(tmp_path):
    write_h5(tmp_path / "story.hdf5", dict(train=[STRIPS] * 12))
    source = videos.VideoSource(tmp_path / "story.hdf5", split="train", frame_size=4, min_frames=20)
    assert len(source) == 12
    for i in range(12):  # more than stay open
        assert source.frames(i, np.array([0, 24]))[:, 0, 0, 0].tolist() == [0, 204]
    with pytest.raises(ValueError, match="no video is left"):
        videos.VideoSource(tmp_path / "story.hdf5", split="test", frame_size=4)


def test_stories_that_cannot_be_used_are_named(tmp_path):
    broken = [png([1])[:40], *SINGLE[1:]]
    sizes = [SINGLE[0], png([1], size=4), *SINGLE[2:]]
    nothing = [np.zeros(0, np.uint8), *SINGLE[1:]]
    texts = {("train", 0): "a|b|c|d", ("train", 1): "a|b||d|e"}
    write_h5(tmp_path / "s.h5", dict(train=[SINGLE, SINGLE, broken, sizes, nothing]), texts)
    listing = places.read(tmp_path / "s.h5")
    assert left_out(listing) == {"train/000000": "captions are not one a picture"}
    found = survey.survey(listing.entries)
    assert [video.entry.name for video in found.videos] == ["train/000001", "train/000003"]
    assert survey.texts(found.videos[0], np.arange(5), found.videos[0].index.times) == ["a", "b", "", "d", "e"]
    details = {each.name: each.detail for each in found.left_out}
    assert "train/image0[2]: cannot be read as an image" in details["train/000002"]
    assert "train/image0[4]: holds 0 values" in details["train/000004"]
    with survey.open_reader(found.videos[1].entry) as reader:
        with pytest.raises(video_io.VideoError, match="train/000003, frame 1: is 4x4, the first image 8x8"):
            reader.read(np.arange(5))


def test_files_that_are_no_arldm(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_h5(tmp_path / "s.h5", dict(train=[SINGLE] * 40))
    data = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file["train/image0"] = np.zeros(3)
    write_h5(tmp_path / "uneven.h5", dict(val=[SINGLE]))
    with h5py.File(tmp_path / "uneven.h5", "a") as file:
        del file["val/text"]
        file["val/text"] = ["a|b|c|d|e"] * 2
    for name, problem in (
        ("cut.h5", "cannot be read as HDF5"),
        ("text.h5", "cannot be read as HDF5"),
        ("other.h5", "has none of the groups train, val, test; there are images"),
        ("half.h5", "train has no image1, image2, image3, image4, text; there are image0"),
        ("uneven.h5", "val has .*'image0': 1.*'text': 2.* rows"),
    ):
        with pytest.raises(records.IntakeError, match=f"{name}: {problem}") as error:
            places.read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_hdf5_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "s.h5").write_bytes(b"")
    with pytest.raises(records.IntakeError, match=r"pip install '.\[hdf5\]'"):
        places.read(tmp_path / "s.h5")


def write_picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, 0, 0)).save(path)


def write_table(path, rows):
    path.write_text(json.dumps(rows))


def test_pictures_of_an_episode_in_order(tmp_path):
    names = [f"s_01_e_{e:02}_shot_{f:06}_{f + 74:06}.png" for e, f in ((26, 198), (26, 55), (26, 1000), (2, 55))]
    for level, name in enumerate(names):
        write_picture(tmp_path / ("images" if level % 2 else "") / name, 10 * level)
    rows = [dict(id=i, image=name, text=f"text {i}") for i, name in enumerate(names)]
    write_table(tmp_path / "Train_Data_FlintstonesSV.json", rows)
    listing = places.read(tmp_path / "Train_Data_FlintstonesSV.json")
    assert listing.layout == "pictures" and not listing.left_out
    assert [(e.name, e.episode) for e in listing.entries] == [("s01e02", "s01e02"), ("s01e26", "s01e26")]
    video = survey.survey(listing.entries).videos[1]
    with survey.open_reader(video.entry, index=video.index) as reader:
        assert reader.read(np.arange(3))[:, 0, 0, 0].tolist() == [10, 0, 20]
    assert survey.texts(video, np.arange(3), video.index.times) == ["text 1", "text 0", "text 2"]
    assert [(c.source, c.clip) for c in video.entry.captions][0] == ("human", names[1][:-4])
    (tmp_path / "Train_Data_FlintstonesSV.json").rename(tmp_path / "Train_Data_FlintstonesSV++.json")
    [entry, _] = places.read(tmp_path / "Train_Data_FlintstonesSV++.json").entries
    assert entry.captions[0].source == "machine"
    rows[3]["caption_source"] = "human"
    write_table(tmp_path / "metadata.json", rows)
    assert places.read(tmp_path).entries[0].captions[0].source == "human"


def test_stories_by_folder_and_name(tmp_path):
    names = ["ep1/10.png", "ep1/9.png", "tale_2.png", "tale_1.png", "7.png", "cover.png"]
    for level, name in enumerate(names):
        write_picture(tmp_path / name, level)
    write_table(tmp_path / "t.json", [dict(image=name, caption=name, split="val") for name in names])
    listing = places.read(tmp_path / "t.json")
    assert [(e.name, e.split, [c.text for c in e.captions]) for e in listing.entries] == [
        ("ep1", "valid", ["ep1/9.png", "ep1/10.png"]),
        ("tale", "valid", ["tale_1.png", "tale_2.png"]),
    ]
    reason = "the picture's name tells no story"
    assert left_out(listing) == {"t.json:5": reason, "t.json:6": reason}


def test_rows_of_pictures_that_cannot_be_used_are_named(tmp_path):
    for i in range(3):
        write_picture(tmp_path / f"a_{i}.png", i)
    rows = [
        dict(image="a_0.png", text="fine", split="train"),
        dict(image="a_0.png", text="again", split="train"),
        dict(image="gone_1.png", text="x"),
        dict(image=None, text="x"),
        dict(image={"bytes": "x"}, text="x"),
        dict(image="a_1.png", text=None),
        dict(image="a_1.png", text="x", caption_source=3),
        dict(image="a_1.png", text="x", split="holdout"),
        dict(image="a_2.png", text="x", split="test"),
        "no row",
    ]
    write_table(tmp_path / "t.json", rows)
    listing = places.read(tmp_path / "t.json")
    assert [(e.name, len(e.parts)) for e in listing.entries] == [("a", 1)]
    assert left_out(listing) == {
        "t.json:2": "picture occurs twice",
        "t.json:3": "no such file",
        "t.json:4": "names no picture",
        "t.json:5": "names no picture",
        "t.json:6": "text is no UTF-8 text",
        "t.json:7": "caption_source is no text",
        "t.json:8": "split is unknown",
        "t.json:9": "split is not its story's",
        "t.json:10": "row cannot be read",
    }


@pytest.mark.parametrize(
    "data, problem",
    [
        (b'{"image": "a.png"}', "holds no list"),
        (b'[{"image": "a.png"', "is no JSON"),
        (b'[{"image": "\xff"}]', "is not UTF-8 text"),
        (b'[{"picture": "a.png"}]', "no column names the video; there are picture"),
    ],
)
def test_a_table_of_pictures_that_is_none(tmp_path, data, problem):
    (tmp_path / "t.json").write_bytes(data)
    with pytest.raises(records.IntakeError, match=f"t.json: {problem}") as error:
        places.read(tmp_path / "t.json")
    assert "\n" not in str(error.value)


def test_pictures_in_a_parquet_by_name_and_by_content(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["a_0.png", "a_1.png"]
    for i, name in enumerate(names):
        write_picture(tmp_path / name, i)
    parquet.write_table(pa.table(dict(image=names, text=["x", "y"])), tmp_path / "t.parquet")
    [entry] = places.read(tmp_path / "t.parquet").entries
    assert [part.path.name for part in entry.parts] == names
    inside = [dict(bytes=(tmp_path / name).read_bytes(), path=name) for name in names]
    parquet.write_table(pa.table(dict(image=inside, text=["x", "y"])), tmp_path / "u.parquet")
    assert set(left_out(places.read(tmp_path / "u.parquet")).values()) == {"names no picture"}


def test_pictures_in_a_csv_and_damaged_ones(tmp_path):
    for i in range(3):
        write_picture(tmp_path / f"a_{i}.png", i)
    (tmp_path / "t.csv").write_text("image,text\n" + "".join(f"a_{i}.png,text {i}\n" for i in range(3)))
    [entry] = places.read(tmp_path / "t.csv").entries
    assert [c.text for c in entry.captions] == ["text 0", "text 1", "text 2"]
    (tmp_path / "a_2.png").write_bytes(b"damaged")
    with survey.open_reader(entry) as reader:
        with pytest.raises(video_io.VideoError, match="a_2.png: cannot be read as an image"):
            reader.read(np.arange(3))
