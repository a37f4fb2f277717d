"""The command on two hosts where it is one process's work; what two hosts do is in test_preemption.py."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(*arguments):
    env = dict(os.environ, PYTHONWARNINGS="ignore", JAX_PLATFORMS="cpu")
    command = [sys.executable, "-m", "nuwaxl_jax.main", f"--config={ROOT}/configs/toons.py:tiny", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _hosts(count, index):
    return f"--hosts=localhost:{_port()}", f"--processes={count}", f"--process={index}"


def _port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def test_a_mode_for_one_process_says_so():
    job = _start("--mode=data", "--check", "--config.data.path=x", *_hosts(2, 1))
    _, said = job.communicate(timeout=400)
    assert job.returncode == 2 and "--mode=data is one process's work" in said
