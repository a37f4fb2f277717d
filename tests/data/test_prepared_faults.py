"""Whatever is killed, full, damaged or changed: a set is complete and right, or not there, and it is told why."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import video_io
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import plan as plan_lib
from nuwaxl_jax.data.prepared import run
from nuwaxl_jax.data.prepared import source as source_lib

pytestmark = pytest.mark.slow
LENGTHS = (30, 9, 12, 40, 7, 25)


def write_videos(folder, lengths=LENGTHS, height=24):
    """Folders of frames and videos, noise, each with a caption."""
    folder.mkdir(parents=True)
    for i, num in enumerate(lengths):
        frames = np.random.default_rng(i).integers(0, 256, (num, height, 32, 3), np.uint8)
        if i % 2:
            (folder / f"c{i}").mkdir()
            for t, frame in enumerate(frames):
                Image.fromarray(frame).save(folder / f"c{i}" / f"{t:03d}.png")
        else:
            video_io.write_mp4(folder / f"c{i}.mp4", frames, 8, gop=12)
        (folder / f"c{i}.txt").write_text(f"clip {i}")
    return folder


def prepare(folder, out, *, fps=0.0, **options):
    config = config_lib.default()
    config.data.update(source="folder", path=str(folder), frame_size=16, fps=fps)
    return run.prepare(config, out, **dict(part_frames=16, threads=2) | options)


def content(folder):
    """Path -> bytes of everything in it."""
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(videos, what an undisturbed run makes of them)."""
    folder = tmp_path_factory.mktemp("prepared")
    write_videos(folder / "videos")
    prepare(folder / "videos", folder / "out")
    return folder / "videos", content(folder / "out")


def test_a_second_run_changes_nothing_and_says_so(place, tmp_path, capsys):
    prepare(place[0], tmp_path / "out")
    assert content(tmp_path / "out") == place[1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    report = prepare(place[0], tmp_path / "out")
    assert report["finished"] and report["frames_made"] == 0 and report["frames"] == sum(LENGTHS)
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/out: is complete already; nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


class Crash(BaseException):
    """Nothing catches it, as nothing catches a killed process."""


def test_stopped_at_any_step_on_the_disk_it_goes_on(tmp_path, monkeypatch):
    """Each rename, write and fsync in turn is the one that does not happen."""
    folder = write_videos(tmp_path / "videos", (3,))
    steps = {(os, "replace"), (os, "rename"), (os, "fsync"), (files, "write_bytes")}
    for crash_at in range(1, 200):
        out, count = tmp_path / f"out{crash_at}", 0

        def counted(what):
            def step(*args):
                nonlocal count
                count += 1
                if count == crash_at:
                    raise Crash
                return what(*args)

            return step

        with monkeypatch.context() as patch:
            for where, name in steps:
                patch.setattr(where, name, counted(getattr(where, name)))
            try:
                prepare(folder, out, threads=1, part_frames=2)
                break
            except Crash:
                assert not out.exists() or content(out)
        resumed = prepare(folder, out, threads=1, part_frames=2)
        assert resumed["finished"] and resumed["frames"] == 3
        if crash_at == 1:
            expected = content(out)
        assert content(out) == expected, crash_at
        assert not pathlib.Path(f"{out}.partial").exists()
    assert crash_at > 25


SCRIPT = """
import sys
from nuwaxl_jax import config as config_lib
from nuwaxl_jax.data.prepared import plan as plan_lib
from nuwaxl_jax.data.prepared import run
config = config_lib.default()
config.data.update(source="folder", path=sys.argv[1], frame_size=int(sys.argv[3]))
import tensorflow_datasets
from tensorflow_datasets.core import dataset_info, example_serializer
print("ready", flush=True)
sys.stdin.readline()
run.prepare(config, sys.argv[2], part_frames=int(sys.argv[4]), threads=2)
"""


def start(folder, out, size=16, part_frames=16):
    """A process that prepares, when it is about to."""
    program = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(out), str(size), str(part_frames)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(program, text=True, **pipes)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()
    return process


def finish(process):
    said, complaints = process.communicate(timeout=400)
    assert process.returncode == 0, complaints
    return said


def test_killed_ten_times_it_is_what_an_undisturbed_run_makes(tmp_path):
    write_videos(tmp_path / "videos", (150, 60, 90, 200), height=96)
    finish(go(start(tmp_path / "videos", tmp_path / "undisturbed", 96, 40)))
    draw, parts = random.Random(0), tmp_path / "out.partial" / "shards"
    done = lambda: len(list(parts.glob("*.json"))) if parts.exists() else -1
    progress = []
    for kill in range(10):
        process = go(start(tmp_path / "videos", tmp_path / "out", 96, 40))
        while process.poll() is None and done() < kill // 3:  # the first before anything is done
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        progress.append(done())
    assert progress == sorted(progress) or progress[-1] == -1  # nothing that was done is lost
    assert progress[-1] >= 3 or (tmp_path / "out").exists(), progress  # kills fell into the work
    finish(go(start(tmp_path / "videos", tmp_path / "out", 96, 40)))
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert sorted(os.listdir(tmp_path)) == ["out", "undisturbed", "videos"]


def test_two_writers_at_once_divide_the_work(tmp_path):
    write_videos(tmp_path / "videos", (60, 30, 45, 80), height=96)
    finish(go(start(tmp_path / "videos", tmp_path / "alone", 96, 8)))
    for out in (tmp_path / "first", tmp_path / "second", tmp_path / "third"):
        crew = [start(tmp_path / "videos", out, 96, 8) for _ in range(2)]
        said = [finish(process) for process in [go(process) for process in crew]]
        made = [re.search(r"([\d,]+) frames made here", text) for text in said]
        made = [int(found.group(1)) if found else 0 for found in made]
        assert sum(made) == 60 + 30 + 45 + 80, said
        assert content(out) == content(tmp_path / "alone")
        assert not pathlib.Path(f"{out}.partial").exists()
        if min(made):
            return
    pytest.fail(f"three times one of two did all the work: {said}")


def test_shards_of_the_work_in_any_order(place, tmp_path, capsys):
    for shard in (2, 0):
        report = prepare(place[0], tmp_path / "out", shard=shard, shards=3)
        assert not report["finished"] and 0 < report["frames_made"] < sum(LENGTHS)
        assert "record files are for the other shards to make" in capsys.readouterr().out
        assert not (tmp_path / "out").exists()
        with pytest.raises(FileNotFoundError, match="data.path"):
            source_lib.PreparedSource(tmp_path / "out", split="train", frame_size=16)
        with pytest.raises(ValueError, match="holds no prepared set .it is still being made."):
            source_lib.PreparedSource(tmp_path / "out.partial", split="train", frame_size=16)
    assert prepare(place[0], tmp_path / "out", shard=1, shards=3)["finished"]
    assert content(tmp_path / "out") == place[1]


@pytest.mark.parametrize("name, frame", [("c3", 37), ("c3", 3), ("c1", 8)])
def test_videos_damaged_inside_are_left_out_and_named(tmp_path, capsys, name, frame):
    """c3 is divided among three record files; c1 shares one with others."""
    folder = write_videos(tmp_path / "videos")
    (folder / name / f"{frame:03d}.png").write_bytes(b"no image")
    report = prepare(folder, tmp_path / "out")
    assert [each["name"] for each in report["left_out"]] == [name]
    assert f"{frame:03d}.png: cannot be read as an image" in report["left_out"][0]["detail"]
    assert report["funnel"] == {"found": 6, "readable": 6, "undamaged": 5}
    said = capsys.readouterr().out
    assert f"1 left out, damaged inside: {name} (" in said
    (made,) = format_lib.find(tmp_path / "out")
    assert json.loads((made / "report.json").read_text())["left_out"] == report["left_out"]
    # The others are as if it had never been there, whoever came upon the damage, and when.
    for shard in (1, 0):
        prepare(folder, tmp_path / "other", shard=shard, shards=2, threads=1)
    assert content(tmp_path / "other") == content(tmp_path / "out")
    facts = json.loads((made / "metadata.json").read_text())["episodes"]
    assert name not in facts["name"] and len(facts["name"]) == 5
    again = prepare(folder, tmp_path / "out")
    assert again["finished"] and not again["frames_made"]
    for each in ("c3", "c1"):
        if each != name:
            row = facts["name"].index(each)
            source = source_lib.PreparedSource(tmp_path / "out", split=facts["split"][row], frame_size=16)
            episode = [source.name(i) for i in range(len(source))].index(each)
            assert source.frames(episode, np.arange(source.num_frames(episode))).shape[0] == facts["frames"][row]


def test_all_damaged(tmp_path):
    folder = write_videos(tmp_path / "videos", (5, 5))
    os.remove(folder / "c0.mp4")
    (folder / "c1" / "004.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="data.path: all 1 videos at .* are damaged inside: .*004.png"):
        prepare(folder, tmp_path / "out")


@pytest.mark.parametrize("begun", [True, False])
def test_other_settings_or_videos_are_refused(tmp_path, begun):
    folder, out = write_videos(tmp_path / "videos"), tmp_path / "out"
    options = dict(shards=2) if begun else {}
    prepare(folder, out, **options)
    before = content(tmp_path)
    mend = "remove .*out.partial, or give another --out" if begun else "give another --out, or remove .*out$"
    for change, said in (
        (dict(fps=4.0), "data.fps is 4.0, it was made with 0.0"),
        (dict(image="jpeg"), "image is jpeg, it was made with png"),
        (dict(part_frames=32), "shard_frames is 32, it was made with 16"),
    ):
        with pytest.raises(
            format_lib.PreparationError, match=f"--out|partial.*: {said}; set that back.*{mend}"
        ) as error:
            prepare(folder, out, **options | change)
        assert said in str(error.value) and "\n" not in str(error.value)
    (folder / "c2.txt").write_text("another caption")
    with pytest.raises(format_lib.PreparationError, match=r"have changed since: 1 changed \(c2.mp4\); set that back"):
        prepare(folder, out, **options)
    (folder / "c2.txt").write_text("clip 2")
    os.rename(folder / "c5", folder / "c9")
    os.rename(folder / "c5.txt", folder / "c9.txt")
    with pytest.raises(format_lib.PreparationError, match=r"1 added \(c9\); 1 gone \(c5\)"):
        prepare(folder, out, **options)
    os.rename(folder / "c9", folder / "c5")
    os.rename(folder / "c9.txt", folder / "c5.txt")
    assert content(tmp_path) == before
    assert prepare(folder, out)["finished"]


def test_a_full_disk_is_one_line_and_what_is_done_is_kept(place, tmp_path):
    out, shards = tmp_path / "out", tmp_path / "out.partial" / "shards"
    shards.mkdir(parents=True)
    (shards / "train-000001.tmp").symlink_to("/dev/full")
    with pytest.raises(
        format_lib.PreparationError, match="cannot be written .*No space left on device.*; free some"
    ) as e:
        prepare(place[0], out, threads=1)
    assert "\n" not in str(e.value) and not out.exists()
    assert (shards / "train-000000.json").exists() and not list(shards.glob("*.tmp"))
    kept = (shards / "train-000000.array_record").stat().st_mtime_ns
    assert prepare(place[0], out)["frames_made"] < sum(LENGTHS)
    (made,) = format_lib.find(out)
    assert kept in {path.stat().st_mtime_ns for path in made.iterdir()}
    assert content(out) == place[1]


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_one_line(place):
    with pytest.raises(format_lib.PreparationError, match="/sys/kernel/out.partial: cannot be written") as error:
        prepare(place[0], "/sys/kernel/out")
    assert "\n" not in str(error.value)


def test_a_video_that_vanishes_is_named_and_nothing_is_lost(place, tmp_path, monkeypatch):
    folder = write_videos(tmp_path / "videos")
    hidden = folder / "c3" / "030.png"
    count = 0

    def progress(line):
        nonlocal count
        count += line.startswith("preparing")
        if count == 1 and hidden.exists():
            os.rename(folder / "c3", tmp_path / "away")

    with pytest.raises(ValueError, match="c3: is gone; put it back") as error:
        prepare(folder, tmp_path / "out", threads=1, progress=progress)
    assert isinstance(error.value, format_lib.PreparationError)
    os.rename(tmp_path / "away", folder / "c3")
    assert prepare(folder, tmp_path / "out")["frames_made"] < sum(LENGTHS)


def test_a_long_video_is_never_held_whole(tmp_path, monkeypatch):
    folder = write_videos(tmp_path / "videos", (400,), height=8)
    asked, read = [], video_io.VideoReader.read
    monkeypatch.setattr(
        video_io.VideoReader, "read", lambda self, i, s=None: (asked.append(len(i)), read(self, i, s))[1]
    )
    prepare(folder, tmp_path / "out", part_frames=300)
    assert max(asked) == 64 and sum(asked) == 400


@pytest.mark.parametrize("lengths, files", [((30, 9), 1), ((400, 200), 3), ((20_000, 100), 65), ((10**6,), 245)])
def test_the_size_of_record_files_goes_by_the_number_of_frames(lengths, files):
    units = plan_lib._units(lengths, ["train"] * len(lengths), plan_lib.shard_frames(sum(lengths)))
    assert len(units) == files and max(unit.frames for unit in units) <= 4096
    for video, length in enumerate(lengths):
        pieces = [piece for unit in units for piece in unit.pieces if piece.video == video]
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == length
    units = plan_lib._units((5, 99, 7, 20), ["train"] * 4, 10, {1})
    assert [[(p.video, p.start, p.stop) for p in unit.pieces] for unit in units] == [
        [(0, 0, 5)],
        [(1, 0, 99)],  # an AVI or GIF, which could only be divided by decoding it again and again
        [(2, 0, 7)],
        [(3, 0, 10)],
        [(3, 10, 20)],
    ]
