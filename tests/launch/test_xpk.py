"""The workload on GKE: what is given to xpk, and what the container does with it."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from experiments.launch import pod

ROOT = pathlib.Path(__file__).resolve().parents[2]
GKE = ["--cluster=pods", "--storage=bucket", "--workdir=/data/run"]
ARGS = ("--mode=train", "--config.name=it's $HOME")


def test_a_dry_run_shows_the_workload(cloud, capfd):
    assert cloud.run("xpk", "--dry_run", "--spot", *GKE, args=ARGS) == 0
    shown = capfd.readouterr()
    command = shlex.split(shown.out.splitlines()[-1])
    folder = shlex.split(shown.out.splitlines()[-2])[-1]  # where tar unpacks the commit
    assert command[:3] == ["xpk", "workload", "create"]
    wanted = ["--cluster=pods", "--workload=nuwa", "--tpu-type=v5litepod-16", "--num-slices=1", "--spot"]
    assert set(wanted + ["--max-restarts=20", "--storage=bucket", f"--script-dir={folder}"]) <= set(command)
    run = shlex.split(command[-1].removeprefix("--command="))
    assert run == ["bash", "experiments/launch/worker.sh", "container", "v5e", "/data/run", *ARGS]
    assert "xpk workload delete --cluster=pods" in shown.err


def test_the_image_gets_the_commit_and_nothing_that_lies_around(cloud, capfd):
    (cloud.repository / ".gitignore").write_text("runs/\n")
    cloud.git("add", ".gitignore")
    cloud.git("commit", "-qm", "ignore")
    (cloud.repository / "runs").mkdir()
    (cloud.repository / "runs" / "big").write_text("checkpoint")
    listing = 'for a in "$@"; do case "$a" in --script-dir=*) ls -A "${a#--script-dir=}";; esac; done'
    (cloud.folder / "bin" / "xpk").write_text(f"#!/bin/bash\n{listing}\n")
    (cloud.folder / "bin" / "xpk").chmod(0o755)
    assert cloud.run("xpk", *GKE, args=ARGS) == 0
    assert set(capfd.readouterr().out.split()) == {".gitignore", "experiments", "jax.py", "nuwaxl_jax"}


def test_the_container_runs_it_and_keeps_its_status(cloud, tmp_path):
    """The command as a container would run it, the package being there."""
    cloud.plan([{"exit": 42}])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cloud.repository)
        assert cloud.run("xpk", "--dry_run", *GKE[:2], f"--workdir={tmp_path}/data", args=ARGS) == 0
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (cloud.repository / "libtpu.py").write_text("")
    (stubs / "python3").write_text(f'#!/bin/sh\nPYTHONPATH="$PWD" exec {sys.executable} -S "$@"\n')
    (stubs / "python3").chmod(0o755)
    words = ["bash", "experiments/launch/worker.sh", "container", "v5e", f"{tmp_path}/data", *ARGS]
    given = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "TPU_WORKER_ID": "1", "NUWAXL_WORKER": "1"}
    done = subprocess.run(["bash", "-c", shlex.join(words)], cwd=cloud.repository, env=given, capture_output=True)
    assert done.returncode == 42, done
    assert cloud.argv(1) == [*ARGS, f"--workdir={tmp_path}/data"]
    assert "async_collective" in json.loads((cloud.folder / "environment-1.json").read_text())["LIBTPU_INIT_ARGS"]


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--cluster=", "--cluster"),
        ("--workdir=gs://bucket/run", "xpk storage attach"),
        ("--storage=", "--storage"),
        ("--type=v5e-17", "--type"),
    ],
)
def test_refusals(cloud, capfd, flag, said):
    assert cloud.run("xpk", "--dry_run", *GKE, flag) == 2
    err = capfd.readouterr().err.strip().splitlines()
    assert len(err) == 1 and said in err[0]


def test_without_xpk_one_line(cloud, capfd, monkeypatch):
    for program in ("git", "gzip", "mkdir", "tar"):
        (cloud.folder / "bin" / program).symlink_to(shutil.which(program))
    monkeypatch.setenv("PATH", str(cloud.folder / "bin"))
    assert cloud.run("xpk", *GKE) == 2
    assert capfd.readouterr().err.strip() == "pod: xpk is not on PATH; pip install xpk"


def test_the_newest_generation_is_rented_through_xpk(cloud, capfd):
    assert cloud.run("xpk", "--dry_run", *GKE, type="tpu7x-8") == 0
    assert "--tpu-type=tpu7x-8" in capfd.readouterr().out


def test_pod_is_a_program():
    done = subprocess.run([sys.executable, str(ROOT / "experiments/launch/pod.py"), "--help"], capture_output=True)
    assert done.returncode == 0 and b"up --name=nuwa" in done.stdout
    assert pod.__doc__
