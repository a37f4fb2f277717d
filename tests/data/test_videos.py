"""A folder of videos: what is kept and why, captions by time, splits that stay, frames that are the right ones."""

import concurrent.futures
import contextlib
import itertools
import json
import copy

import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import sources
from nuwaxl_jax.data import videos as videos_lib
from nuwaxl_jax.data.intake import survey


def striped(num, height=32, width=32):
    """Frame i is grey of level 5 i: 50 frames that stay apart through H.264."""
    return np.broadcast_to((5 * np.arange(num, dtype=np.uint8))[:, None, None, None], (num, height, width, 3))


def numbers(frames):
    return np.round(frames.astype(float).mean(axis=(1, 2, 3)) / 5).astype(int)


def write_video(path, num=30, fps=10, caption="a red star", **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        video_io.write_gif(path, striped(num, **size), fps)
    else:
        video_io.write_mp4(path, striped(num, **size), fps, gop=8)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def open_folder(path, **kwargs):
    return videos_lib.VideoSource(path, **{"split": "train", "frame_size": 16} | kwargs)


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_frames_and_captions_of_nested_files(tmp_path):
    write_video(tmp_path / "b" / "one.mp4", 30, caption="  a red\n star ")
    write_video(tmp_path / "a.gif", 20, fps=5, width=48, caption="a blue circle")
    write_video(tmp_path / ".hidden" / "x.mp4")
    (tmp_path / "notes.md").write_text("no video")
    source = open_folder(tmp_path)
    assert isinstance(source, sources.EpisodeSource)
    assert [len(source), source.num_frames(0), source.num_frames(1)] == [2, 20, 30]
    assert [source.fps(0), source.fps(1)] == [5, 10]
    for episode, num in ((0, 20), (1, 30)):
        index = np.random.default_rng(0).permutation(num)[:10]
        frames = source.frames(episode, index)
        assert frames.shape == (10, 16, 16, 3) and frames.dtype == np.uint8
        np.testing.assert_array_equal(numbers(frames), index)
    assert source.captions(1, np.array([3, 0])) == ["a red star"] * 2


def test_captions_by_time_and_their_precedence(tmp_path):
    write_video(tmp_path / "v.mp4", 40, fps=10, caption="whole")
    write_video(tmp_path / "w.mp4", 40, fps=10, caption=None)
    write_lines(
        tmp_path / "captions.jsonl",
        [
            {"video": "v.mp4", "start": 1.0, "end": 3.0, "text": "shared"},
            {"video": "w.mp4", "start": 2.0, "text": "from two"},
            {"video": "w.mp4", "end": 0.5, "text": "to a half"},
        ],
    )
    write_lines(tmp_path / "v.jsonl", [{"start": 2, "end": 2.5, "text": "own\nline"}])
    source = open_folder(tmp_path)
    index = np.array([0, 9, 10, 19, 20, 24, 25, 29, 30])
    assert source.captions(0, index) == ["whole"] * 2 + ["shared"] * 2 + ["own line"] * 2 + ["shared"] * 2 + ["whole"]
    assert source.captions(1, np.array([4, 5, 19, 20, 39])) == ["to a half", "", "", "from two", "from two"]


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{", "captions.jsonl:2"),
        ("[1]", "must be an object"),
        ('{"video": "v.mp4", "caption": "a"}', r'"text" is missing.*caption'),
        ('{"video": "v.mp4", "text": "a", "start": 2, "end": 1}', "0 <= start < end"),
        ('{"video": "v.mp4", "text": "a", "start": "0:01"}', "must be seconds"),
        ('{"text": "a"}', 'no field "video"'),
    ],
)
def test_malformed_captions_name_file_line_and_field(tmp_path, line, problem):
    write_video(tmp_path / "v.mp4")
    (tmp_path / "captions.jsonl").write_text('{"video": "v.mp4", "text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=problem) as error:
        open_folder(tmp_path)
    assert "captions.jsonl" in str(error.value)


def test_captions_that_are_not_utf8(tmp_path, capsys):
    write_video(tmp_path / "v.mp4")
    write_video(tmp_path / "w.mp4")
    (tmp_path / "v.txt").write_bytes(b"caf\xe9 \xff")
    assert [video.entry.name for video in open_folder(tmp_path).videos] == ["w.mp4"]
    assert "1 left out, caption is not UTF-8 text: v.mp4" in capsys.readouterr().out


def test_marks_that_end_lines_elsewhere_are_of_the_caption(tmp_path):
    write_video(tmp_path / "v.mp4")
    said = "one\u2028two\x85three\u2029four"
    lines = [dict(video="v.mp4", text=said), dict(video="v.mp4", start=1, text="end")]
    (tmp_path / "captions.jsonl").write_text("\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert open_folder(tmp_path).captions(0, np.array([0, 29])) == ["one two three four", "end"]


def test_a_file_name_that_is_not_utf8_is_used_and_printed(tmp_path, capsys):
    names = ["caf\udce9.mp4", "\udcff.mp4", "a.mp4"]  # as Python gives b"caf\xe9.mp4"
    write_video(tmp_path / "a.mp4")
    try:
        for name in names[:2]:
            (tmp_path / name).write_bytes((tmp_path / "a.mp4").read_bytes() if "caf" in name else b"no video")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    (tmp_path / "caf\udce9.txt").write_text("a star")
    source = open_folder(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a.mp4", "caf\udce9.mp4"]
    assert numbers(source.frames(1, np.array([7]))) == [7] and source.captions(1, np.array([7])) == ["a star"]
    assert "cannot be read: \\udcff.mp4 (" in capsys.readouterr().out
    assert survey.split_of("caf\udce9.mp4", 0.35) == "valid"  # by sha256sum of the bytes: 9ad3.. = 0.60


def test_funnel_leaves_out_and_says_why(tmp_path, capsys):
    write_video(tmp_path / "good.mp4", 30)
    write_video(tmp_path / "short.mp4", 5)
    write_video(tmp_path / "silent.mp4", 30, caption=None)
    write_video(tmp_path / "cut.mp4", 30)
    data = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    (tmp_path / "empty.webm").write_bytes(b"")
    write_lines(tmp_path / "captions.jsonl", [{"video": "gone.mp4", "text": "a"}])
    source = open_folder(tmp_path, min_frames=16)
    assert [video.path for video in source.videos] == [str(tmp_path / "good.mp4")]
    printed = capsys.readouterr().out
    assert "5 found -> 3 readable -> 2 of at least 16 frames -> 1 captioned -> 1 kept" in printed
    assert "cut.mp4" in printed and "empty.webm" in printed and "gone.mp4" in printed
    assert len(open_folder(tmp_path, min_frames=16, require_captions=False)) == 2


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="0 found.*0 kept.*captions.jsonl"):
        open_folder(tmp_path)
    write_video(tmp_path / "v.mp4", 30)
    with pytest.raises(ValueError, match="1 found -> 1 readable -> 0 of at least 31"):
        open_folder(tmp_path, min_frames=31)
    with pytest.raises(FileNotFoundError, match="data.path"):
        open_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="split"):
        open_folder(tmp_path, split="dev")


def test_splits_follow_from_the_name_alone():
    names = [f"s_01_e_{i:02}/clip_{j}.mp4" for i in range(30) for j in range(40)]
    splits = [survey.split_of(name, 0.1) for name in names]
    shares = [splits.count(split) / len(names) for split in survey.SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)
    # By sha256sum: a.mp4 e6d4.. = 0.90, c.webm 1cb1.. = 0.11, i.mp4 1968.. = 0.099.
    assert [survey.split_of(name, 0.1) for name in ("a.mp4", "c.webm", "i.mp4")] == ["train", "valid", "test"]


def test_splits_are_disjoint_and_tiny_folders_share(tmp_path, capsys):
    names = {}
    for number in itertools.count():
        names.setdefault(survey.split_of(f"{number}.mp4", 0.2), []).append(f"{number}.mp4")
        if len(names) == 3:
            break
    for split in names:
        write_video(tmp_path / names[split][0], 4)
    kept = {
        split: [video.path for video in open_folder(tmp_path, split=split, eval_fraction=0.2).videos]
        for split in survey.SPLITS
    }
    assert kept == {split: [str(tmp_path / names[split][0])] for split in survey.SPLITS}
    assert "alike" not in capsys.readouterr().out
    (tmp_path / names["valid"][0]).unlink()
    for split in survey.SPLITS:
        assert len(open_folder(tmp_path, split=split, eval_fraction=0.2)) == 2
        assert "all 2 are in train, valid and test alike" in capsys.readouterr().out


def test_threads_and_copies_read_the_same_frames(tmp_path):
    for number in range(12):  # more than a thread keeps open
        write_video(tmp_path / f"{number:02}.mp4", 20 + number)
    source = open_folder(tmp_path, split="valid", eval_fraction=0.0)
    again = copy.deepcopy(source)

    def read(job):
        which, episode, start = job
        return numbers(which.frames(episode, np.arange(start, start + 5))).tolist()

    jobs = [
        (which, int(e), int(s))
        for which in (source, again)
        for e, s in np.random.default_rng(0).integers(0, [12, 15], (60, 2))
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for (_, _, start), got in zip(jobs, pool.map(read, jobs)):
            assert got == list(range(start, start + 5))


def test_damage_inside_a_file_names_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    video_io.write_mp4(tmp_path / "bad.mp4", noise, 10)
    (tmp_path / "bad.txt").write_text("noise")
    data = bytearray((tmp_path / "bad.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "bad.mp4").write_bytes(data)
    with pytest.raises(video_io.VideoError, match="bad.mp4"):
        open_folder(tmp_path).frames(0, np.arange(40))


def test_pipeline_over_a_folder(tmp_path):
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", 40, caption="a big star")
    config = config_lib.default()
    config.data.update(source="folder", path=str(tmp_path), frame_size=16)
    config.hierarchy.update(segment_length=4, depth=3)
    config.train.denoiser.update(batch_size=4, clip_length=4)
    iterator = pipeline.make_iterator(config, "train", "denoiser", seed=0)
    batch = next(iterator)
    iterator.close()
    strides = np.array([9, 3, 1])[batch["level"]]
    for row in range(4):
        np.testing.assert_array_equal(numbers(batch["frames"][row]), batch["start"][row] + strides[row] * np.arange(4))
    assert batch["tokens"][0, 0, :6].tolist() == [1, 3, 6, 16, 2, 0]


def _damaged(folder, count):
    """`count` videos, the files of the first two good when they are listed and bad when they are read."""
    for number in range(count):
        write_video(folder / f"{number}.mp4", 40)
    config = config_lib.default()
    config.data.update(source="folder", path=str(folder), frame_size=16)
    config.hierarchy.update(segment_length=4, depth=3)
    config.train.denoiser.update(batch_size=8, clip_length=4)
    source = pipeline.make_source(config, "train")
    good = [i for i in range(len(source)) if source.name(i) not in ("0.mp4", "1.mp4")]
    (folder / "0.mp4").unlink()
    (folder / "1.mp4").write_bytes(b"no video any more")
    return config, source, good


def test_files_that_go_bad_are_replaced_and_named(tmp_path, capsys):
    config, source, good = _damaged(tmp_path, 4)
    rows = {}
    for hosts, workers in ((1, 0), (2, 0), (1, 2)):
        config.data.num_workers = workers
        made = []
        for host in range(hosts):
            options = dict(seed=3, process_index=host, process_count=hosts, source=source)
            with contextlib.closing(pipeline.make_iterator(config, "train", "denoiser", **options)) as iterator:
                made.append([next(iterator) for _ in range(3)])
                assert set(iterator.bad_files.times) <= {i for i in range(4) if i not in good}
        rows[hosts, workers] = [np.concatenate([each[k]["frames"] for each in made]) for k in range(3)]
        assert set(np.concatenate([each[k]["episode"] for each in made for k in range(3)]).tolist()) == set(good)
    for other in ((2, 0), (1, 2)):
        for one, two in zip(rows[1, 0], rows[other]):
            np.testing.assert_array_equal(one, two)
    printed = capsys.readouterr().err
    assert "0.mp4 left out from here on" in printed and "1.mp4 left out from here on" in printed
    assert "0.mp4: no such file" in printed


def test_too_many_bad_files_end_the_run(tmp_path):
    config, source, _ = _damaged(tmp_path, 4)
    config.data.max_bad = 1
    with contextlib.closing(pipeline.make_iterator(config, "train", "denoiser", seed=3, source=source)) as iterator:
        with pytest.raises(video_io.VideoError, match="data.max_bad: 2 videos .*0.mp4.*--mode=data --check"):
            for _ in range(9):
                next(iterator)


def test_by_time_at_any_rate(tmp_path):
    """Two seconds at 10 and at 25 frames a second are the same 20 frames at 10; pauses are held."""
    write_video(tmp_path / "a.mp4", 20, fps=10)
    write_video(tmp_path / "b.mp4", 50, fps=25)
    source = open_folder(tmp_path, split="valid", fps=10.0)
    assert [source.num_frames(0), source.num_frames(1), source.fps(1)] == [20, 20, 10.0]
    np.testing.assert_array_equal(numbers(source.frames(0, np.arange(20))), np.arange(20))
    np.testing.assert_array_equal(numbers(source.frames(1, np.arange(20))), np.arange(0, 50, 2.5).astype(int))
    np.testing.assert_array_equal(numbers(open_folder(tmp_path, fps=40.0).frames(0, np.arange(9))), np.arange(9) // 4)
    write_lines(tmp_path / "b.jsonl", [{"start": 1.0, "text": "later"}])
    texts = open_folder(tmp_path, fps=10.0).captions(1, np.array([9, 10]))
    assert texts == ["a red star", "later"]


def test_captions_of_single_frames_and_the_nearest(tmp_path):
    write_video(tmp_path / "v.mp4", 40, fps=10, caption=None)
    lines = [{"frame": 5, "text": "five"}, {"frame": 15, "text": "fifteen"}, {"start": 3, "end": 3.5, "text": "late"}]
    write_lines(tmp_path / "v.jsonl", lines)
    index = np.array([0, 5, 9, 11, 15, 22, 23, 30, 39])
    assert open_folder(tmp_path).captions(0, index) == ["", "five", "", "", "fifteen", "", "", "late", ""]
    wanted = ["five", "five", "five", "fifteen", "fifteen", "fifteen", "late", "late", "late"]
    assert open_folder(tmp_path, caption_fill="nearest").captions(0, index) == wanted
    write_lines(tmp_path / "v.jsonl", [{"frame": 5, "start": 1, "text": "both"}])
    with pytest.raises(ValueError, match='v.jsonl:1: "frame" = 5 must be a number'):
        open_folder(tmp_path)
