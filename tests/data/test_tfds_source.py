"""A TFDS data set built here and read as episodes, without TensorFlow."""

import copy
import io
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import sources
from nuwaxl_jax.data import tfds_source


def _png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (level,) * 3).save(buffer, "png")
    return buffer.getvalue()


class SmallVideos(tfds.core.GeneratorBasedBuilder):
    """Frame t of example i is of level 10 i + t."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        frame = tfds.features.Image(shape=(24, 32, 3))
        features = {
            "video": tfds.features.Sequence(frame),
            "fixed": tfds.features.Tensor(shape=(6, 16, 16, 1), dtype=np.uint8),
            "steps": tfds.features.Sequence({"image": frame, "text": tfds.features.Text()}),
            "label": tfds.features.ClassLabel(names=["jump", "run_far"]),
            "text": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            video = [_png(10 * i + t) for t in range(4 + i)]
            yield (
                i,
                {
                    "video": video,
                    "fixed": np.full((6, 16, 16, 1), i, np.uint8),
                    "steps": [dict(image=frame, text=f"step {t}") for t, frame in enumerate(video)],
                    "label": i % 2,
                    "text": f"clip {i}",
                },
            )


class SmallHeldOut(SmallVideos):
    """The same with a split for validation and none for tests."""

    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "validation": self._generate_examples(3)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    for builder in (SmallVideos, SmallHeldOut):
        builder(data_dir=place, file_format="array_record").download_and_prepare()
    return str(place)


def opened(data_dir, **options):
    return tfds_source.TFDSSource("small_videos", data_dir=data_dir, **dict(split="test", frame_size=8) | options)


def example(source, i):
    """Which example it is: its first frame's level / 10."""
    return int(source.frames(i, np.array([0]))[0, 0, 0, 0]) // 10


def test_frames_captions_and_lengths(data_dir):
    source = opened(data_dir, caption="label")
    assert isinstance(source, sources.EpisodeSource) and len(source) == 4
    for i in range(4):
        which = example(source, i)
        assert source.num_frames(i) == 4 + which
        frames = source.frames(i, np.array([3, 1, 1]))
        assert frames.shape == (3, 8, 8, 3) and frames.dtype == np.uint8
        np.testing.assert_array_equal(frames[:, 4, 4, 0], 10 * which + np.array([3, 1, 1]))
        assert source.captions(i, np.array([0, 2])) == [("jump", "run far")[which % 2]] * 2
    assert "tensorflow" not in sys.modules
    again = copy.deepcopy(source)
    np.testing.assert_array_equal(again.frames(2, np.arange(4)), source.frames(2, np.arange(4)))


def test_other_features(data_dir):
    fixed = opened(data_dir, video="fixed", caption="text")
    assert [fixed.num_frames(i) for i in range(4)] == [6] * 4
    frames = fixed.frames(0, np.arange(6))
    assert frames.shape == (6, 8, 8, 3)
    assert fixed.captions(0, np.array([1])) == [f"clip {frames[0, 0, 0, 0]}"]
    nested = opened(data_dir, video="steps/image", caption="steps/text")
    assert nested.captions(0, np.array([3, 0])) == ["step 3", "step 0"]
    assert opened(data_dir).captions(0, np.array([0])) == [""]


def test_splits_that_tfds_lacks_are_cut_from_the_end(data_dir):
    shares = dict(eval_fraction=0.2)
    found = {split: opened(data_dir, split=split, **shares) for split in ("train", "valid", "test")}
    assert [len(found[split]) for split in found] == [8, 2, 4]
    train, valid = ({example(found[s], i) for i in range(len(found[s]))} for s in ("train", "valid"))
    assert not train & valid and len(train | valid) == 10
    assert tfds_source._split(["test"], "train", 0.1) == "test[0%:80%]"
    assert tfds_source._split(["test"], "valid", 0.1) == "test[80%:90%]"
    assert tfds_source._split(["test"], "test", 0.1) == "test[90%:100%]"
    assert tfds_source._split(["train", "validation", "test"], "valid", 0.1) == "validation"


def test_a_split_that_tfds_has_is_taken(data_dir):
    options = dict(data_dir=data_dir, frame_size=8, eval_fraction=0.2)
    found = {s: tfds_source.TFDSSource("small_held_out", split=s, **options) for s in ("train", "valid", "test")}
    assert [found[split].name(0) for split in found] == [
        "train[0%:80%], example 0",
        "validation, example 0",
        "train[80%:100%], example 0",
    ]
    assert [len(found[split]) for split in found] == [8, 3, 2]
    train, test = ({example(found[s], i) for i in range(len(found[s]))} for s in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(
    "names, splits",
    [
        (["train"], ("train[0%:80%]", "train[80%:90%]", "train[90%:100%]")),
        (["train", "test"], ("train[0%:90%]", "train[90%:100%]", "test")),
        (["train", "val", "test"], ("train", "val", "test")),
        (["test", "validation"], ("test[0%:90%]", "validation", "test[90%:100%]")),
        (["validation"], ("validation[0%:80%]", "validation[80%:90%]", "validation[90%:100%]")),
        (["valid", "full"], ("full[0%:90%]", "valid", "full[90%:100%]")),
    ],
)
def test_no_example_is_in_two_splits(names, splits):
    assert tuple(tfds_source._split(names, split, 0.1) for split in ("train", "valid", "test")) == splits


def test_short_examples_are_left_out_and_counted(data_dir, capsys):
    source = opened(data_dir, min_frames=6)
    assert sorted(source.num_frames(i) for i in range(len(source))) == [6, 7]
    assert "4 found -> 2 of at least 6 frames" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no video is left.*0 of at least 99"):
        opened(data_dir, min_frames=99)


def test_mistakes_are_named(data_dir, tmp_path):
    with pytest.raises(
        ValueError, match="data.tfds_video: small_videos has no feature 'frames'; there are fixed, label"
    ):
        opened(data_dir, video="frames")
    with pytest.raises(ValueError, match="data.tfds_caption: .* no feature 'steps/words'.*steps/text"):
        opened(data_dir, caption="steps/words")
    with pytest.raises(ValueError, match='is not prepared in .*file_format="array_record"'):
        opened(str(tmp_path))
    with pytest.raises(ValueError, match="data.tfds_name: no_such_set cannot be opened.*prepare it"):
        tfds_source.TFDSSource("no_such_set", split="train", frame_size=8, data_dir=str(tmp_path))
    SmallVideos(data_dir=tmp_path, file_format="parquet").download_and_prepare()
    with pytest.raises(ValueError, match="is kept as parquet, not array_record"):
        opened(str(tmp_path))


def test_batches(data_dir):
    config = config_lib.default()
    config.data.update(source="tfds", tfds_name="small_videos", tfds_caption="text", path=data_dir, frame_size=16)
    config.data.level_weights = (1.0, 1.0)
    config.hierarchy.update(segment_length=4, depth=2)
    config.train.denoiser.update(batch_size=4, clip_length=4)
    iterator = pipeline.make_iterator(config, "train", "denoiser", seed=0)
    batch = next(iterator)
    iterator.close()
    assert batch["frames"].shape == (4, 4, 16, 16, 3) and set(batch["level"].tolist()) <= {0, 1}
    levels = batch["frames"][:, :, 0, 0, 0].astype(int)
    strides = np.array([3, 1])[batch["level"]]
    np.testing.assert_array_equal(np.diff(levels), np.broadcast_to(strides[:, None], (4, 3)))
