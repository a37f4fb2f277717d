"""A prepared set gives what the videos give, bit for bit, and TFDS reads it too."""

import copy
import json
import os
import pathlib
import random
import re
import sys
import threading

from array_record.python import array_record_module
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import sources
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey
from nuwaxl_jax.data.prepared import captions as captions_lib
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import run
from nuwaxl_jax.data.prepared import source as source_lib

SIZE = 16


def moving(num, seed, height=24, width=32):
    """uint8 [num, H, W, 3]: noise that changes from frame to frame."""
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), np.uint8)


def write_videos(folder, lengths=(30, 5, 12, 50, 7, 9, 40, 11, 6, 25)):
    """Videos c0.mp4, .. of these lengths, 8 frames a second; the second is a folder of frames."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, num in enumerate(lengths):
        frames = moving(num, i)
        if i == 1:
            (folder / "c1").mkdir()
            for t, frame in enumerate(frames):
                Image.fromarray(frame).save(folder / "c1" / f"{t:03d}.png")
        else:
            video_io.write_mp4(folder / f"c{i}.mp4", frames, 8, gop=12)
        name = "c1" if i == 1 else f"c{i}.mp4"
        lines += [f'{{"video": "{name}", "start": 0.2, "end": 0.5, "text": "beginning of {i}"}}']
        lines += [f'{{"video": "{name}", "frame": {num - 1}, "text": "end of {i}", "caption_source": "machine"}}']
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config_for(place, **data):
    config = config_lib.default()
    config.data.update(**{"source": "folder", "path": str(place), "frame_size": SIZE} | data)
    config.data.level_weights = (1.0, 1.0)
    config.hierarchy.update(segment_length=4, depth=2)
    return config


def prepare(path, out, part_frames=16, config=None, **options):
    return run.prepare(config or config_for(path), out, part_frames=part_frames, threads=2, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(videos, set prepared of them)."""
    folder = tmp_path_factory.mktemp("prepared")
    write_videos(folder / "videos")
    prepare(folder / "videos", folder / "out")
    return folder / "videos", folder / "out"


def pair(place, split="train", **options):
    options = dict(split=split, frame_size=SIZE) | options
    return videos.VideoSource(place[0], **options), source_lib.PreparedSource(place[1], **options)


def assert_same(expected, found):
    assert len(found) == len(expected) > 0
    for i in range(len(expected)):
        count = expected.num_frames(i)
        assert [found.name(i), found.num_frames(i), found.fps(i)] == [expected.name(i), count, expected.fps(i)]
        every, mixed = np.arange(count), np.array([count - 1, 0, count // 2, 0])
        for index in (every, mixed, every[::-3], np.array([], np.int64)):
            np.testing.assert_array_equal(found.frames(i, index), expected.frames(i, index))
            assert found.captions(i, index) == expected.captions(i, index)


@pytest.mark.parametrize("fill", ["none", "nearest"])
@pytest.mark.parametrize("split", survey.SPLITS)
def test_bit_for_bit_what_the_videos_give(place, split, fill):
    expected, found = pair(place, split, caption_fill=fill, min_frames=6)
    assert isinstance(found, sources.EpisodeSource)
    assert_same(expected, found)


def test_frames_by_time_and_more_often_than_the_file_has_them(tmp_path):
    write_videos(tmp_path / "videos", (20, 4, 33, 8))
    for fps in (3.0, 12.5):
        out = tmp_path / f"out{fps:g}"
        prepare("", out, config=config_for(tmp_path / "videos", fps=fps))
        assert_same(*pair((tmp_path / "videos", out), fps=fps, caption_fill="nearest"))
    assert source_lib.PreparedSource(out, split="train", frame_size=SIZE).fps(0) == 12.5


@pytest.mark.parametrize("plan", [dict(num_threads=2), dict(num_workers=2)])
def test_batches_are_those_of_the_videos(place, plan):
    config = config_for(place[0], **plan)
    config.train.denoiser.update(batch_size=4, clip_length=4)
    batches = []
    for source in pair(place, min_frames=4):
        iterator = pipeline.make_iterator(config, "train", "denoiser", seed=3, source=source)
        batches.append([next(iterator) for _ in range(3)])
        iterator.close()
    for expected, found in zip(*batches, strict=True):
        assert set(expected) == set(found)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_opened_by_the_configuration(place):
    config = config_for(place[1], source="prepared")
    source = source_lib.open_source(config, "valid")
    expected = videos.VideoSource(place[0], split="valid", frame_size=SIZE, min_frames=4)
    assert_same(expected, source)
    for field, value, said in (
        ("frame_size", 32, "was prepared with data.frame_size=16, data.fps=0; asked for are 32 and 0: set them"),
        ("fps", 4.0, "asked for are 16 and 4"),
        ("eval_fraction", 0.2, "data.eval_fraction is 0.2, .* was divided with 0.1; set it to that"),
        ("captions", "more.jsonl", "data.captions: a prepared set has its captions in it"),
        ("path", str(place[0]), "holds no prepared set; make one: python"),
    ):
        with pytest.raises(ValueError, match=said):
            source_lib.open_source(config_for(place[1], **{"source": "prepared", field: value}), "train")
    with pytest.raises(FileNotFoundError, match="data.path: .*nowhere does not exist"):
        source_lib.open_source(config_for(place[1].parent / "nowhere"), "train")


def test_what_is_left_out_is_named(place, capsys):
    source_lib.PreparedSource(place[1], split="train", frame_size=SIZE, min_frames=30)
    assert re.search(r"left out, shorter than 30 frames: c1; .*", capsys.readouterr().out)
    with pytest.raises(ValueError, match="no episode is left.*0 of at least 99 frames"):
        source_lib.PreparedSource(place[1], split="train", frame_size=SIZE, min_frames=99)


def test_videos_without_captions_are_kept_and_left_out_in_training(tmp_path, capsys):
    write_videos(tmp_path / "videos", (8, 6, 7, 4, 4, 4, 4))
    video_io.write_mp4(tmp_path / "videos" / "mute.mp4", moving(5, 9), 8)
    report = prepare(tmp_path / "videos", tmp_path / "out")
    assert report["without_caption"] == ["mute.mp4"] and report["frames"] == 42
    assert "1 kept without any caption, which training leaves out: mute.mp4" in capsys.readouterr().out
    found = []
    for split in survey.SPLITS:
        assert_same(*pair((tmp_path / "videos", tmp_path / "out"), split))
        expected, every = pair((tmp_path / "videos", tmp_path / "out"), split, require_captions=False)
        assert_same(expected, every)
        found += [every.name(i) for i in range(len(every))]
    assert sorted(found) == ["c0.mp4", "c1", *(f"c{i}.mp4" for i in range(2, 7)), "mute.mp4"]
    assert "  1 left out, no caption: mute.mp4" in capsys.readouterr().out.splitlines()


def test_too_few_videos_are_kept_once_and_serve_for_every_split(tmp_path):
    write_videos(tmp_path / "videos", (8, 6))
    report = prepare(tmp_path / "videos", tmp_path / "out")
    assert report["frames"] == 14 and report["splits"] == {"train": 2, "valid": 2, "test": 2}
    for split in survey.SPLITS:
        assert_same(*pair((tmp_path / "videos", tmp_path / "out"), split))
    (folder,) = format_lib.find(tmp_path / "out")
    assert list(tfds.builder_from_directory(folder).info.splits) == ["train"]


def test_tfds_reads_it_without_tensorflow(place):
    (folder,) = format_lib.find(place[1])
    builder = tfds.builder("nuwaxl_videos/16_png", data_dir=place[1], try_gcs=False)
    assert builder.info.splits["train"].num_shards == len(list(folder.glob("*-train.array_record-*-of-*"))) > 3
    expected = videos.VideoSource(place[0], split="train", frame_size=SIZE)
    data, at = builder.as_data_source(split="train"), 0
    for i in range(len(expected)):
        count = expected.num_frames(i)
        frames, captions = expected.frames(i, np.arange(count)), expected.captions(i, np.arange(count))
        for t in (0, 3, count - 1):
            example = data[at + t]
            np.testing.assert_array_equal(example["image"], frames[t])
            said = (example["episode"].decode(), example["frame"], example["caption"].decode())
            assert said == (expected.name(i), t, captions[t])
            kind = b"machine" if t == count - 1 else b"human" if captions[t] else b"none"
            assert example["caption_source"] == kind
            fps = expected.fps(i)
            np.testing.assert_allclose([example["seconds"], example["fps"]], [t / fps, fps], rtol=1e-6)
        at += count
    assert at == len(data) == builder.info.splits["train"].num_examples
    assert "tensorflow" not in sys.modules


def test_a_record_is_a_frame_in_a_group_of_its_own(place):
    (folder,) = format_lib.find(place[1])
    for file in folder.glob("*.array_record*"):
        reader = array_record_module.ArrayRecordReader(str(file))
        assert "group_size:1," in reader.writer_options_string()
        if "captions" not in file.name:
            for record in reader.read_all():
                proto = tf_example_pb2.Example.FromString(record)
                assert format_lib.image_of(record) == proto.features.feature["image"].bytes_list.value[0]
                assert proto.SerializeToString(deterministic=True) == record
    for wrong in (b"", b"\x0a\x05\x00", b"\x08\x01", b"\x0a\x00", record[:50]):
        with pytest.raises(ValueError, match="the record"):
            format_lib.image_of(wrong)


def test_opening_reads_no_record_and_captions_no_image(place, tmp_path):
    (folder,) = format_lib.find(place[1])
    for name in ("metadata.json", "sources.json", "dataset_info.json", "captions.array_record"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    expected, _ = pair(place)
    source = source_lib.PreparedSource(tmp_path, split="train", frame_size=SIZE)
    index = np.arange(source.num_frames(0))
    assert source.captions(0, index) == expected.captions(0, index)
    with pytest.raises(FileNotFoundError):
        source.frames(0, index)


def test_many_threads_share_the_files_and_copies_open_their_own(place, monkeypatch):
    monkeypatch.setattr(source_lib, "_OPEN_FILES", 2)
    expected, source = pair(place)
    wanted = [expected.frames(i, np.arange(expected.num_frames(i))) for i in range(len(expected))]
    for each in (source, copy.deepcopy(source)):
        wrong = []

        def read(seed):
            draw = random.Random(seed)
            for _ in range(60):
                i = draw.randrange(len(wanted))
                index = np.array([draw.randrange(len(wanted[i])) for _ in range(5)])
                if not np.array_equal(each.frames(i, index), wanted[i][index]):
                    wrong.append((i, index))

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(each._readers) <= 2
    with pytest.raises(IndexError, match="frames -1"):
        source.frames(0, np.array([-1]))


def test_jpeg_is_near_and_smaller(place, tmp_path):
    slope = np.add.outer(np.arange(24), np.arange(24))[..., None] * 4
    picture = (slope + moving(1, 0, 24, 24)[0] // 16).astype(np.uint8)
    pictures = {}
    for image, quality in (("png", 95), ("jpeg", 95), ("jpeg", 40)):
        settings = format_lib.Settings(24, image=image, quality=quality)
        out = np.empty((24, 24, 3), np.uint8)
        data = format_lib.encode_image(picture, settings)
        format_lib.decode_image(data, out)
        pictures[image, quality] = len(data), np.abs(out.astype(float) - picture).mean()
    assert pictures["png", 95][1] == 0 < pictures["jpeg", 95][1] < 4 < pictures["jpeg", 40][1]
    assert pictures["jpeg", 40][0] < pictures["jpeg", 95][0] < pictures["png", 95][0]
    report = prepare(place[0], tmp_path / "out", image="jpeg", quality=90)
    assert report["settings"]["quality"] == 90 and (tmp_path / "out" / "nuwaxl_videos" / "16_jpeg90").is_dir()
    expected, found = pair((place[0], tmp_path / "out"))
    frames = [each.frames(0, np.arange(8)).astype(float) for each in (expected, found)]
    assert 0 < np.abs(frames[0] - frames[1]).mean() < 8


def test_captions_of_all_frames_follow_the_rule_for_a_clip():
    draw = random.Random(0)
    for _ in range(40):
        count = draw.randrange(1, 60)
        times = np.cumsum([0.0] + [draw.choice([0.04, 0.04, 0.2]) for _ in range(count - 1)])
        captions = []
        for k in range(draw.randrange(5)):
            begin = draw.randrange(count)
            if draw.random() < 0.5:
                last = draw.choice([None, min(count - 1, begin + draw.randrange(5))])
                captions.append(records.Caption(f"c{k}", frame=begin, last=last, source="machine", clip=f"{k}"))
            else:
                captions.append(records.Caption(f"c{k}", times[begin], times[begin] + draw.choice([0.1, 1.0, np.inf])))
        info = video_io.VideoInfo(count, 25.0, 32, 32, float(times[-1] + 0.04))
        entry = records.Entry("v", pathlib.Path("v.mp4"), tuple(captions))
        video = survey.Video(entry, video_io.VideoIndex(info, times, None, None, (0, 0)))
        parts, step = [], draw.randrange(1, count + 1)
        for first in range(0, count, step):
            numbers = np.arange(first, min(first + step, count))
            parts.append((first, captions_lib.runs(*captions_lib.which(video, numbers, times[numbers]))))
        table = captions_lib.table(video, parts)
        runs = np.array(table["runs"]).reshape(-1, 3)
        table = format_lib.CaptionTable(tuple(table["texts"]), runs[:, 0], runs[:, 1], runs[:, 2] > 0)
        for nearest in (False, True):
            assert table.at(np.arange(count), nearest) == survey.texts(video, np.arange(count), times, nearest)


def damage(path, places):
    data = bytearray(path.read_bytes())
    for at in places:
        data[at : at + 4] = b"oops"
    path.write_bytes(data)


def test_a_damaged_record_is_named_and_training_leaves_its_episode_out(place, tmp_path, capsys):
    prepare(place[0], tmp_path / "out", part_frames=1000)
    (folder,) = format_lib.find(tmp_path / "out")
    file = max(folder.glob("*-train*"), key=lambda path: path.stat().st_size)
    source = source_lib.PreparedSource(folder, split="train", frame_size=16)
    whole = [source.frames(i, np.arange(source.num_frames(i))) for i in range(len(source))]
    damage(file, range(2500, 25_000, 2500))  # within the first episode, of about 1 KB a frame
    source = source_lib.PreparedSource(folder, split="train", frame_size=16)
    with pytest.raises(video_io.VideoError, match=rf"{file.name}: record \d+ is damaged \(.*hash mismatch.*prepare it"):
        source.frames(0, np.arange(source.num_frames(0)))
    for i in range(1, len(source)):
        np.testing.assert_array_equal(source.frames(i, np.arange(source.num_frames(i))), whole[i])
    config = config_for(folder, num_threads=1)
    config.train.denoiser.update(batch_size=4, clip_length=4)
    iterator = pipeline.make_iterator(config, "train", "denoiser", seed=0, source=source)
    batches = [next(iterator) for _ in range(30)]
    assert set(iterator.bad_files.times) == {0} and len(batches) == 30
    iterator.close()
    assert "left out from here on (1 of at most 20 bad videos)" in capsys.readouterr().err


def test_record_files_that_are_cut_off_gone_or_changed(place, tmp_path):
    prepare(place[0], tmp_path / "out", part_frames=1000)
    (folder,) = format_lib.find(tmp_path / "out")
    file = max(folder.glob("*-train*"), key=lambda path: path.stat().st_size)
    kept = file.read_bytes()
    for broken, kind, said in (
        (kept[: len(kept) // 2], video_io.VideoError, f"has {len(kept) // 2} bytes of {len(kept)}; copy or prepare"),
        (None, FileNotFoundError, file.name),
        (b"\0" * len(kept), video_io.VideoError, "cannot be read|is damaged"),
    ):
        os.remove(file)
        if broken is not None:
            file.write_bytes(broken)
        source = source_lib.PreparedSource(folder, split="train", frame_size=16)
        with pytest.raises(kind, match=said):
            source.frames(0, np.arange(3))
        file.write_bytes(kept)
    captions = folder / "captions.array_record"
    captions.write_bytes(captions.read_bytes()[:100])
    with pytest.raises(video_io.VideoError, match="captions.array_record"):
        source.captions(0, np.arange(3))
    facts = json.loads((folder / "metadata.json").read_text())
    for field, value in (("frames", 10**6), ("first", 10**6)):
        row, kept = facts["episodes"]["split"].index("train"), list(facts["episodes"][field])
        facts["episodes"][field][row] = value
        (folder / "metadata.json").write_text(json.dumps(facts))
        facts["episodes"][field] = kept
        with pytest.raises(ValueError, match="metadata.json is not whole; prepare the set anew"):
            source_lib.PreparedSource(folder, split="train", frame_size=16)
    facts["shards"]["train"][0][0] = "../elsewhere"
    (folder / "metadata.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="metadata.json is not whole"):
        source_lib.PreparedSource(folder, split="train", frame_size=16)
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match="metadata.json cannot be understood; prepare the set anew"):
        source_lib.PreparedSource(folder, split="train", frame_size=16)


def test_mistakes_are_named(place, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for options, said in (
        (dict(out=tmp_path / "mine"), "--out: .*mine exists and is no prepared set; give another folder"),
        (dict(out=tmp_path / "mine" / "thesis.tex"), "exists and is no prepared set"),
        (dict(image="webp"), "image is 'webp'; choose one of"),
        (dict(image="jpeg", quality=0), "quality is 0; give 1 to 95"),
        (dict(shard=2, shards=2), "shard is 2; it must lie in 0..1"),
        (dict(config=config_for(place[1], source="prepared")), "data.source is 'prepared'"),
        (dict(config=config_for("")), "data.path is empty; give the folder of videos"),
    ):
        with pytest.raises(ValueError, match=said):
            prepare(place[0], **dict(out=tmp_path / "out") | options)
    with pytest.raises(FileNotFoundError, match="data.path: .*nowhere does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="no video at .*bad can be read .*x.mp4"):
        prepare(tmp_path / "bad", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["bad", "mine"]
