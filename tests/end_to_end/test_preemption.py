"""Told to stop in any phase, by one process and by two: status 42, and the same command goes on to the same results.

A chain of launches of the same command, each told to stop in another phase (see phases.py), the last one in none; what
it leaves is compared with what one process leaves undisturbed.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import video_io
from nuwaxl_jax import weights

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALLER = {"vae.channel_mults": (1,), "unet.channel_mults": (1,), "unet.prompt_levels": (True,)}
TINY = [f"--config={ROOT}/configs/toons.py:tiny", *(f"--config.{name}={value}" for name, value in SMALLER.items())]
STORY = "a small red square jumps in the desert\na big blue star stands in the forest\n"

pytestmark = pytest.mark.slow


def _train(folder):
    values = dict(num_steps=12, checkpoint_every=8, log_every=1)
    fields = [f"--config.train.image_vae.{name}={value}" for name, value in values.items()]
    return ["--mode=train", *TINY, "--config.train.stages=('image_vae',)", *fields]


def _cache(folder):
    data = [f"--config.data.cache={folder}/cache", "--items=192", "--config.train.stages=('denoiser',)"]
    return ["--mode=data", "--cache", *TINY, *data, f"--config.train.init_from={folder.parent}/start.safetensors"]


def _sample(folder):
    return [
        "--mode=sample",
        f"--story={folder.parent}/s.txt",
        "--frames=10",
        f"--weights={folder.parent}/start.safetensors",
    ]


def _eval(folder):
    return ["--mode=eval", "--stories=1", "--frames=4", f"--weights={folder.parent}/start.safetensors"]


def _losses(folder):
    """{step: loss}; a step that was done twice is an error."""
    lines = [json.loads(line) for line in (folder / "image_vae" / "metrics.jsonl").read_text().splitlines()]
    pairs = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert [step for step, _ in pairs] == list(range(1, 13))
    return dict(pairs)


def _latent_files(folder):
    return {path.name: path.read_bytes() for path in (folder / "cache" / "denoiser").glob("*.array_record")}


def _scores(folder):
    record = json.loads((folder / "eval" / "eval.json").read_text())
    for way in record["stories"].values():
        way.pop("cost", None)
    return record["denoising"], record["stories"], (folder / "eval" / "story0.png").read_bytes()


# command -> (flags, the phases it is told to stop in, what it leaves)
CHAINS = {
    "train": (_train, ("compilation", "step", "saving"), _losses),
    "cache": (_cache, ("caching",), _latent_files),
    "sample": (_sample, ("sampling", "decoding"), lambda folder: (folder / "s.mp4").read_bytes()),
    "eval": (_eval, ("evaluation",), _scores),
}


def _has_ended(group, seconds=5.0):
    """Whether no process of a group is left; Python's own tracker of resources takes a moment."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _launch(phase, command, count, *more):
    """[(status, what it said)] of the processes, when none of their children is left."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        host = f"--hosts=localhost:{free.getsockname()[1]}"
    flags = [[host, f"--processes={count}", f"--process={i}"] for i in range(count)] if count > 1 else [[]]
    env = dict(os.environ, PYTHONWARNINGS="ignore", PYTHONPATH=str(ROOT))
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    start = [sys.executable, str(pathlib.Path(__file__).with_name("phases.py")), phase, *command, "--cpu_devices=1"]
    options = dict(env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    jobs = [subprocess.Popen([*start, *each, *more], **options) for each in flags]
    try:
        said = [job.communicate(timeout=900)[0] for job in jobs]
        assert all(_has_ended(job.pid) for job in jobs), phase
        return [(job.returncode, text) for job, text in zip(jobs, said)]
    finally:
        for job in jobs:
            job.kill()


@pytest.fixture(scope="module")
def folder(toons_presets, tmp_path_factory):
    """Holds s.txt and start.safetensors: a model of random numbers."""
    path, config, draw = (
        tmp_path_factory.mktemp("preemption"),
        toons_presets.get_config("tiny"),
        np.random.default_rng(0),
    )
    config.update_from_flattened_dict(SMALLER)
    networks = networks_lib.build(config)
    numbers = lambda x: draw.normal(0, 0.1, x.shape).astype(np.float32)  # noqa: E731
    vae, denoiser = (
        jax.tree.map(numbers, jax.eval_shape(init, jax.random.key(0)))
        for init in (networks.init_vae, networks.init_denoiser)
    )
    scale = dict(latent_shift=np.zeros(4, np.float32), latent_scale=np.ones(4, np.float32))
    weights.save(path / "start.safetensors", dict(scale, vae=vae, denoisers=(denoiser,)), config, {}, dtype="float32")
    (path / "s.txt").write_text(STORY)
    return path


@pytest.fixture(scope="module")
def undisturbed(folder):
    """what(name) that the command leaves when it is left alone, by one process."""
    known = {}

    def what(name):
        flags, _, left = CHAINS[name]
        if name not in known:
            target = folder / f"{name}_undisturbed"
            [(status, said)] = _launch("none", [*flags(target), f"--workdir={target}"], 1)
            assert status == 0, said[-3000:]
            known[name] = left(target)
        return known[name]

    return what


# Of two processes training alone is in every run of the suite; the others follow the same path, and take minutes.
@pytest.mark.parametrize(
    "name, count",
    [*((name, 1) for name in CHAINS), ("train", 2)]
    + [pytest.param(name, 2, marks=pytest.mark.long) for name in CHAINS if name != "train"],
)
def test_told_to_stop_in_each_phase_goes_on_to_the_same_end(folder, undisturbed, name, count):
    flags, phases, left = CHAINS[name]
    target = folder / f"{name}_{count}"
    command = [*flags(target), f"--workdir={target}"]
    for phase in phases:
        more = ["--config.data.num_workers=1"] if phase in ("step", "caching") else []  # children, told to stop too
        ended = _launch(phase, command, count, *more)
        assert [status for status, _ in ended] == [42] * count, "".join(said[-3000:] for _, said in ended)
        assert "interrupted" in ended[0][1] and "Traceback" not in ended[0][1], phase
    ended = _launch("none", command, count)
    assert [status for status, _ in ended] == [0] * count, "".join(said[-3000:] for _, said in ended)
    if name == "train":  # of several devices the sums go in another order
        assert left(target) == pytest.approx(undisturbed(name), rel=0 if count == 1 else 1e-5)
    else:
        assert left(target) == undisturbed(name)


@pytest.mark.long
@pytest.mark.parametrize("name", ["cache", "sample", "eval"])
def test_four_processes_leave_what_one_leaves(folder, undisturbed, name):
    flags, _, left = CHAINS[name]
    target = folder / f"{name}_4"
    ended = _launch("none", [*flags(target), f"--workdir={target}"], 4)
    assert [status for status, _ in ended] == [0] * 4, "".join(said[-3000:] for _, said in ended)
    assert left(target) == undisturbed(name)


_PROGRAM = """#!/bin/sh
if [ -e told ]; then while read path; do echo a cat sits; done; exit; fi
touch told
kill -TERM $PPID
exec sleep 60
"""


def test_captioning_told_to_stop_ends_its_program_and_goes_on(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    video_io.write_mp4(tmp_path / "videos" / "a.mp4", [np.zeros((20, 32, 32, 3), np.uint8)], 10)
    (tmp_path / "program").write_text(_PROGRAM)
    (tmp_path / "program").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    data = ["--caption=command", f"--program={tmp_path}/program", f"--config.data.path={tmp_path}/videos"]
    command = ["--mode=data", *data, f"--out={tmp_path}/c.jsonl"]
    [(status, said)] = _launch("none", command, 1)
    assert (status, said.strip()) == (42, "nuwaxl_jax: interrupted; the same command goes on")
    [(status, said)] = _launch("none", command, 1)
    assert status == 0 and "a cat sits" in (tmp_path / "c.jsonl").read_text(), said


@pytest.mark.parametrize("command", [["--check"], ["--prepare", "--out=set"]])
def test_data_commands_told_to_stop_say_so_in_one_line(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    [(status, said)] = _launch("reading", ["--mode=data", *command, f"--config.data.path={tmp_path}"], 1)
    assert (status, said.strip()) == (42, "nuwaxl_jax: interrupted; the same command goes on")
