"""`--mode=compile` as users run it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = f"--config={ROOT}/configs/toons.py:tiny"


def _command(*arguments):
    env = dict(os.environ, PYTHONWARNINGS="ignore")
    command = [sys.executable, "-m", "nuwaxl_jax.main", "--mode=compile", CONFIG, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=900)


def test_the_report_of_this_machine(tmp_path):
    path = tmp_path / "cost.json"
    done = _command("--parts=sample/level_1,decode", "--cpu_devices=2", f"--out={path}")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(path.read_text())
    assert record["devices"] == 2 and [row["program"] for row in record["programs"]] == ["sample/level_1", "decode"]
    assert [row["part"] for row in record["parameters"]] == ["T-KLVAE", "MTD U-Net", "text encoder"]
    assert "sample/level_1: fits" in done.stdout and "collectives none" in done.stdout
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["--topology=v9:2x2"], "v5e"),
        (["--parts=training"], "--parts"),
        (["--config.mesh.fsdp=3"], "mesh.fsdp"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_two(arguments, named):
    done = _command(*arguments)
    assert done.returncode == 2 and named in done.stderr
    assert len(done.stderr.strip().split("\n")) == 1 and done.stdout == ""
