"""What reaches a worker and what it says: quoting, preflight, mounting. The worker's script is run as it is."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from experiments.launch import operations
from experiments.launch import preflight
from experiments.launch import slices
from experiments.launch import storage
from experiments.launch import watching

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = ROOT / "experiments" / "launch" / "worker.sh"

AWKWARD = [
    "--mode=train",
    "--config=configs/with space.py:paper128",
    '--config.name=it\'s "quoted" $HOME `id` \\ back',
    "--config.data.path=/mnt/a  b/*.mp4",
    "--config.train.denoiser.trainable=temporal|injection;&",
    "--config.empty=",
    "--config.text=café\ttab!#~",
    "--config.hierarchy.x=(1.0, 2.0)",
]


def _pod(args=(), workdir="/mnt/disk/run"):
    wanted = slices.Slice("nuwa", "v5e-16", "us-west4-a", "my-project")
    return operations.Pod(wanted, None, None, place=storage.resolve(workdir), args=tuple(args))


def test_awkward_arguments_survive_the_way_to_the_worker(cloud):
    assert cloud.run("up", args=AWKWARD) == 0
    for worker in range(4):
        assert cloud.argv(worker) == [*AWKWARD, "--hosts=tpu", f"--workdir={cloud.workdir}"]


def test_the_start_command_through_a_real_shell(tmp_path):
    """As ssh does it: one string, read by the login shell."""
    show = tmp_path / "nuwaxl" / "code" / "experiments" / "launch" / "worker.sh"
    show.parent.mkdir(parents=True)
    show.write_text('for word in "$@"; do printf "%s\\0" "$word"; done\n')
    command = _pod(AWKWARD, "/mnt/my disk/run").start_command("run-1")
    for shell in ("bash", "sh"):
        out = subprocess.run([shell, "-c", command], cwd=tmp_path, capture_output=True, check=True).stdout.decode()
        assert out.split("\0")[:-1] == ["start", "run-1", "v5e", "/mnt/my disk/run", *AWKWARD]


def test_what_a_dry_run_shows_can_be_pasted(cloud, capfd):
    """The lines of --dry_run, read by a shell, are the calls that are made without it."""
    cloud.settings(hosts=4, polls_until_ready=0)
    assert cloud.run("up", "--dry_run", "--delete_when_done", args=AWKWARD) == 0
    lines = capfd.readouterr().out.splitlines()
    shown = [shlex.split(line)[1:] for line in lines[: lines.index("# after a pre-emption, before setup and start:")]]
    assert cloud.calls() == [] and not cloud.state.exists() and not (cloud.folder / "workers").exists()
    assert cloud.run("up", "--delete_when_done", args=AWKWARD) == 0
    made = [json.loads(line) for line in (cloud.folder / "calls.jsonl").read_text().splitlines()]

    def steps(rows):  # names of runs, of files and the preflight's token hold the time
        rows = [[a.split("worker.sh ")[-1].split(" ")[0] if "worker.sh" in a else a for a in row] for row in rows]
        return [[a for a in row if ".tar.gz" not in a] for row in rows if row[0] == "compute"]

    made, shown = steps(made), steps(shown)
    assert [row for i, row in enumerate(made) if row not in made[:i]] == [
        row for i, row in enumerate(shown) if row not in shown[:i]
    ]


@pytest.mark.parametrize("step", ["create", "setup", "run", "watch", "status", "logs", "stop", "delete", "up"])
def test_a_dry_run_of_a_step_calls_nothing(cloud, capfd, step):
    assert cloud.run(step, "--dry_run") == 0
    assert "gcloud compute tpus" in capfd.readouterr().out
    assert cloud.calls() == [] and not cloud.state.exists()


def test_an_unfit_worker_is_named_and_the_run_not_started(cloud, capfd):
    """Two workers, the package broken on the second: it is named, not the one that waited for it."""
    cloud.settings(hosts=2)
    broken = cloud.repository / "nuwaxl_jax" / "training" / "loop.py"
    broken.write_text("import os\nif os.environ['NUWAXL_WORKER'] == '1': raise ImportError('no orbax')\n")
    cloud.git("commit", "-qam", "broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_HOSTS", "2")
        patch.setenv("FAKE_DEVICES", "8")
        assert cloud.run("up", type="v4-16") == 1
    err = capfd.readouterr().err
    assert "worker 1: import failed: nuwaxl_jax.training.loop: ImportError: no orbax" in err
    assert "worker 0" not in err and "tpu-vm delete nuwa" in err
    assert "ssh all start" not in cloud.calls()


def test_a_worker_that_does_not_answer_is_named(cloud, capfd):
    cloud.settings(hosts=4, silent=[2])
    assert cloud.run("up") == 1
    assert "worker 2 gave no answer" in capfd.readouterr().err


def test_a_slice_with_a_dead_chip_is_refused(cloud, capfd, monkeypatch):
    monkeypatch.setenv("FAKE_DEVICES", "12")
    assert cloud.run("up") == 1
    assert "sees 12 devices (TPU v5 lite)" in (err := capfd.readouterr().err) and "has 16 devices on 4 hosts" in err


def test_a_failing_install_shows_its_last_line(cloud, capfd, monkeypatch):
    monkeypatch.setenv("FAKE_PIP_FAILS", "1")
    assert cloud.run("up") == 1
    assert "worker 0: setup failed: python3: ERROR: no such distribution" in capfd.readouterr().err


def test_others_that_waited_are_not_blamed():
    reports = [(str(k), stage, "ok 1 s") for k in (0, 1, 3) for stage in ("python", "import", "workdir")]
    reports += [("2", "python", "ok 3.12"), ("2", "limit", "failed: not ready within 55 s")]
    reports += [(str(k), "devices", "failed: not every worker joined") for k in (0, 1, 3)]
    line = operations._name_the_culprits(reports, [], "")
    assert line.startswith("worker 2: limit failed") and line.endswith("worker 0, 1, 3 failed waiting for the above")


def test_reports_that_ran_together_are_told_apart():
    text = "@nuwaxl worker=0 stage=import ok a@nuwaxl worker=1 stage=import failed: b\n\nnoise "
    text += "@nuwaxl worker=2 stage=x ok\n"
    assert operations._REPORT.findall(text) == [("0", "import", "ok a"), ("1", "import", "failed: b"), ("2", "x", "ok")]


def _preflight(tmp_path, worker="0", seconds="3", token="t", **environment):
    flags = ["--hosts=1", "--devices=2", f"--workdir={tmp_path}", f"--token={token}", f"--seconds={seconds}"]
    command = [sys.executable, str(ROOT / "experiments/launch/preflight.py"), *flags, "--platform=cpu", "--imports=jax"]
    given = {**os.environ, "NUWAXL_WORKER": worker, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True)


def test_preflight_with_the_real_jax(tmp_path):
    done = _preflight(tmp_path, JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0 and "stage=devices ok 2 devices (cpu), 2 here, 1 processes" in done.stdout
    done = _preflight(tmp_path, JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 3 and "stage=devices failed: sees 1 devices" in done.stdout


def test_a_workdir_that_is_not_shared_is_found(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    assert "workdir ok" in _preflight(tmp_path / "own").stdout
    done = _preflight(tmp_path / "other", worker="1")
    assert done.returncode == 3 and "stage=workdir failed" in done.stdout and "worker 0 sees" in done.stdout
    assert "workdir ok" in _preflight(tmp_path / "own", worker="1").stdout
    assert "stage=workdir failed" in _preflight(tmp_path / "own", worker="1", token="of another start").stdout


def test_every_stage_exists():
    assert all(callable(getattr(preflight, f"_{stage}")) for stage in preflight.STAGES)


@pytest.mark.parametrize(
    "source, wanted",
    [
        ("gs://my-bucket", "gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0"),
        ("nfs://10.0.0.2/share", "sudo mount -t nfs -o hard 10.0.0.2:/share"),
    ],
)
def test_mounting(tmp_path, source, wanted):
    """On a VM without gcsfuse or NFS: the package is installed, then the place mounted, once."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    log = tmp_path / "log"
    for name in ("sudo", "gcsfuse", "curl", "lsb_release"):
        rest = 'shift; [ "$1" = mkdir ] && exec "$@"' if name == "sudo" else ""
        (stubs / name).write_text(f'#!/bin/bash\necho "{name} $*" >>{log}\n{rest}\nexit 0\n')
        (stubs / name).chmod(0o755)
    (stubs / "mountpoint").write_text(f"#!/bin/bash\ngrep -qE 'gcsfuse --implicit|mount -t' {log} 2>/dev/null\n")
    (stubs / "mountpoint").chmod(0o755)
    target = tmp_path / "target"
    target.mkdir()
    given = {"HOME": str(tmp_path), "PATH": f"{stubs}:/usr/bin:/bin", "NUWAXL_WORKER": "0"}
    for _ in range(2):
        command = ["bash", str(WORKER), "mount", source, str(target)]
        done = subprocess.run(command, env=given, capture_output=True, text=True)
        assert done.stdout == "@nuwaxl worker=0 stage=mount ok\n", (done, log.read_text())
    calls = log.read_text().splitlines()
    assert sum(wanted in call and str(target) in call for call in calls) == 1, calls


@pytest.mark.parametrize(
    "statuses, action, worker, ended",
    [
        (["running", "running"], "wait", 0, False),
        (["exit=0", "running"], "wait", 0, False),
        (["exit=0", "silent"], "wait", 0, False),
        (["exit=0", "exit=0"], "done", 0, True),
        (["running", "exit=2"], "mistake", 1, False),
        (["exit=42", "exit=134"], "resume", 0, True),
        (["exit=134", "exit=42"], "resume", 1, True),
        (["exit=134", "exit=1"], "failed", 1, True),
        (["exit=1", "exit=42"], "resume", 1, True),
        (["exit=137", "exit=0"], "crashed", 0, True),
        (["lost", "exit=0"], "crashed", 0, True),
        (["none", "running"], "crashed", 0, False),
    ],
)
def test_what_statuses_amount_to(statuses, action, worker, ended):
    verdict = watching.decide(dict(enumerate(statuses)))
    assert (verdict.action, verdict.worker, verdict.ended) == (action, worker, ended)


def test_the_exit_statuses_are_the_trainers():
    from nuwaxl_jax.training import interrupts

    assert watching.RESUME_ME == interrupts.RESUME_ME
