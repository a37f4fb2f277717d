"""A job of four processes of a device each: it trains, is told to stop on one, saves on all, and two go on with it."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop

WORKER = pathlib.Path(__file__).with_name("several_processes_worker.py")


def _job(workdir, count, num_steps, kill_at=0):
    """[(status, output)] of the processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(WORKER.parents[2]))
    command = [sys.executable, str(WORKER)]
    rest = [str(count), str(port), str(workdir), str(num_steps), str(kill_at)]
    jobs = [
        subprocess.Popen(
            [*command, str(i), *rest], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for i in range(count)
    ]
    try:
        return [(job.wait(900), out) for job, out in ((job, job.communicate(timeout=900)[0]) for job in jobs)]
    finally:
        for job in jobs:
            job.kill()


@pytest.mark.slow
def test_four_processes_stop_together_and_two_resume(linear, tmp_path):
    whole = loop.run_stage(
        linear.Task(),
        linear.frozen,
        linear.Numbers(),
        linear.settings(num_steps=40),
        str(tmp_path / "one" / "linear"),
        mesh=partitioning.make_mesh(fsdp=2),
        seed=11,
        config={},
        interrupt=interrupts.Interrupt(),
    )
    stopped = _job(tmp_path / "four", 4, 40, kill_at=3)
    assert [status for status, _ in stopped] == [42] * 4, stopped
    step = checkpoint.latest_step(tmp_path / "four", "linear")
    assert 3 < step < 40
    assert f"interrupted at step {step}; saved" in stopped[0][1]
    done = _job(tmp_path / "four", 2, 40)
    assert [status for status, _ in done] == [0, 0], done
    assert "finished 40" in done[0][1] and "finished 40" in done[1][1]
    assert f"restored step {step}" in done[0][1]
    assert "linear step" not in done[1][1]  # the first process alone speaks
    ema = checkpoint.restore_ema(tmp_path / "four", "linear")
    np.testing.assert_allclose(ema["dense"]["kernel"], whole.ema_params["dense"]["kernel"], rtol=1e-5, atol=1e-6)
