"""The command on two hosts: the training of one, and one line where a host does not come."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(*arguments):
    env = dict(os.environ, PYTHONWARNINGS="ignore", XLA_FLAGS="--xla_backend_optimization_level=0", JAX_PLATFORMS="cpu")
    command = [sys.executable, "-m", "nuwaxl_jax.main", f"--config={ROOT}/configs/toons.py:tiny", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _hosts(count, index):
    return f"--hosts=localhost:{_port()}", f"--processes={count}", f"--process={index}"


def _port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def _losses(workdir):
    lines = (workdir / "image_vae" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    flags = ("--mode=train", "--config.train.stages=('image_vae',)", "--config.train.image_vae.checkpoint_every=6")
    alone = _start(*flags, f"--workdir={tmp_path / 'one'}", "--cpu_devices=2")
    _, said = alone.communicate(timeout=500)
    assert alone.returncode == 0, said[-2000:]
    address = _hosts(2, 0)[0]
    both = [
        _start(
            *flags,
            f"--workdir={tmp_path / 'two'}",
            "--cpu_devices=1",
            address,
            "--processes=2",
            f"--process={i}",
            "--config.data.num_threads=2",
        )
        for i in (0, 1)
    ]
    said = [job.communicate(timeout=500) for job in both]
    assert [job.returncode for job in both] == [0, 0], said
    assert len(_losses(tmp_path / "one")) == 3
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-5)


def test_a_mode_for_one_process_says_so():
    job = _start("--mode=data", "--check", "--config.data.path=x", *_hosts(2, 1))
    _, said = job.communicate(timeout=100)
    assert job.returncode == 2 and "--mode=data is one process's work" in said


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_has_made(tmp_path):
    story = tmp_path / "s.txt"
    story.write_text("a small red square jumps in the desert\na big blue star stands in the forest\n")
    flags = ("--mode=sample", f"--story={story}", "--frames=31", "--weights=shipped", "--cpu_devices=1")
    alone = _start(*flags, f"--workdir={tmp_path / 'one'}")
    _, said = alone.communicate(timeout=500)
    assert alone.returncode == 0, said[-2000:]
    [kept] = (tmp_path / "one" / "s.latents").iterdir()
    shutil.copytree(kept, tmp_path / "two" / "s.latents" / kept.name)
    ledger = tmp_path / "two" / "s.latents" / kept.name / "ledger.jsonl"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])  # as if killed after level 0
    address = _hosts(2, 0)[0]
    both = [_start(*flags, f"--workdir={tmp_path / 'two'}", address, "--processes=2", f"--process={i}") for i in (0, 1)]
    said = [job.communicate(timeout=500)[1] for job in both]
    assert [job.returncode for job in both] == [0, 0], said
    assert "by level: 1 of 1, 0 of 2" in said[0] and "level 1" not in said[1]
    assert (tmp_path / "two" / "s.mp4").read_bytes() == (tmp_path / "one" / "s.mp4").read_bytes()
