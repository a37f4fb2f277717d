"""The check of a data set: the funnel, damage that containers hide, and what looks wrong."""

import json
import os
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import doctor

ROOT = pathlib.Path(__file__).resolve().parents[2]


def moving(num=24, size=64, seed=0):
    """Blocks of random brightness, another arrangement a frame."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num, 8, 8, 1), np.uint8)
    return np.broadcast_to(np.kron(blocks, np.ones((1, size // 8, size // 8, 1), np.uint8)), (num, size, size, 3))


def write(path, frames, fps=10, caption="something", **options):
    video_io.write_mp4(path, frames, fps, **options)
    if caption:
        path.with_suffix(".txt").write_text(caption)


def write_uneven(path):
    """Frames whose pauses differ: 24 at 10 a second with a gap of a second in their middle."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / stream.codec_context.framerate
        for i, array in enumerate(moving(seed=9)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = 100 * i + 900 * (i >= 12), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text("uneven")


@pytest.fixture
def config(tmp_path):
    config = config_lib.default()
    config.data.update(source="folder", path=str(tmp_path), frame_size=16)
    config.hierarchy.update(segment_length=4, depth=3)
    return config


def kinds(report):
    return {(each["name"], each["kind"]) for each in report["findings"]}


def test_the_funnel_and_its_reasons(tmp_path, config):
    folder = tmp_path / "videos"
    folder.mkdir()
    config.data.path = str(folder)
    write(folder / "good.mp4", moving(40))
    write(folder / "short.mp4", moving(3))
    write(folder / "silent.mp4", moving(), caption="")
    write(folder / "cut.mp4", moving(seed=1))
    data = (folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    write(folder / "hole.mp4", noise)
    data = bytearray((folder / "hole.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (folder / "hole.mp4").write_bytes(data)
    lines = []
    report = doctor.check(config, out=str(tmp_path / "r.json"), say=lines.append)
    assert json.loads((tmp_path / "r.json").read_text()) == report
    assert report["funnel"] == {
        "found": 5,
        "readable": 4,
        "of at least 4 frames": 3,
        "captioned": 2,
        "undamaged": 1,
        "kept": 1,
    }
    assert list(report["funnel"])[-1] == "kept"
    reasons = {each["name"]: (each["step"], each["reason"]) for each in report["left_out"]}
    assert reasons == {
        "short.mp4": ("long enough", "shorter than 4 frames"),
        "silent.mp4": ("captioned", "no caption"),
        "cut.mp4": ("readable", "cannot be read"),
        "hole.mp4": ("undamaged", "damaged inside"),
    }
    assert report["levels"] == {"0": 1, "1": 1, "2": 1} and report["frames"] == 40
    assert "5 found -> 4 readable" in lines[0] and all(any(name in line for line in lines) for name in reasons)
    # Without decoding the hole stays hidden.
    assert doctor.check(config, decode=False, say=lines.append)["funnel"]["kept"] == 2


def test_what_looks_wrong_is_told(tmp_path, config):
    write(tmp_path / "a.mp4", moving())
    write(tmp_path / "again.mp4", moving(), crf=30)  # encoded anew, worse
    write(tmp_path / "other.mp4", moving(seed=2))
    write(tmp_path / "still.mp4", np.repeat(moving(1), 24, axis=0))
    write(tmp_path / "grey.mp4", np.full((24, 64, 64, 3), 99, np.uint8))
    write(tmp_path / "doubled.mp4", np.repeat(moving(12, seed=3), 2, axis=0), crf=0)
    write(tmp_path / "slow.mp4", moving(seed=4), fps=2)
    write(tmp_path / "wordy.mp4", moving(seed=5), caption="word " * 20_000)
    write_uneven(tmp_path / "uneven.mp4")
    report = doctor.check(config, say=lambda line: None)
    assert kinds(report) == {
        ("again.mp4", "shows the same"),
        ("still.mp4", "hardly changes"),
        ("grey.mp4", "nearly one colour"),
        ("doubled.mp4", "repeats frames"),
        ("slow.mp4", "odd frame rate"),
        ("uneven.mp4", "variable frame rate"),
        ("wordy.mp4", "caption too long"),
    }
    assert report["funnel"]["kept"] == 9
    [same] = [each for each in report["findings"] if each["kind"] == "shows the same"]
    assert same["detail"].startswith("as a.mp4, ")


def test_the_report_tells_the_splits_that_training_has_and_any_name(tmp_path, config):
    for i, name in enumerate(("a.mp4", "still.mp4")):
        write(tmp_path / name, moving(seed=i) if i == 0 else np.full((24, 64, 64, 3), 90, np.uint8))
    odd = tmp_path / "still\udce9.mp4"  # no UTF-8
    try:
        (tmp_path / "still.mp4").rename(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    odd.with_suffix(".txt").write_text("still")
    said = []
    report = doctor.check(config, say=said.append)
    assert "1 to look at, nearly one colour: still\\udce9.mp4" in "\n".join(said) and "\n".join(said).encode()
    assert report["splits"] == dict(train=2, valid=2, test=2)  # too few
    rows = [f"{i},a.mp4,x,{split}\n" for i, split in enumerate(("test", "", "train"))]
    (tmp_path / "metadata.csv").write_text("id,path,text,split\n" + "".join(rows))
    report = doctor.check(config, decode=False, say=said.append)
    assert report["splits"] == dict(train=1, valid=0, test=2)  # the second by its file, not by its name


def test_it_fails_when_nothing_is_left(tmp_path, config):
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "short.mp4", moving(3))
    out, env = tmp_path / "r.json", dict(os.environ, PYTHONWARNINGS="ignore")
    command = [sys.executable, "-m", "nuwaxl_jax.main", "--mode=data", "--check", f"--config.data.path={folder}"]
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, cwd=ROOT, env=env, timeout=900)
    assert done.returncode == 2 and "no video at" in done.stderr and done.stderr.count("\n") == 1
    assert "1 found -> 1 readable -> 0 of at least 16 frames" in done.stdout
    assert json.loads(out.read_text())["funnel"]["kept"] == 0
    done = subprocess.run(command[:-1], capture_output=True, text=True, cwd=ROOT, env=env, timeout=900)
    assert done.returncode == 2 and "config.data.path is empty" in done.stderr
