"""A cloud in a folder: the fake gcloud on PATH, workers whose Python runs a stub of the package, code to send."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from experiments.launch import pod

# Stands for the whole package on a worker: says what it was given, then does what the test planned for this start.
_MAIN = """
import json, os, pathlib, signal, sys, time

class UsageError(ValueError): pass
class FLAGS: mode = "train"; config = None

def main(remaining): pass

def run(argv):
    if any("typo" in a for a in argv):
        print("nuwaxl_jax: config.typo does not exist", file=sys.stderr); sys.exit(2)
    main(argv[:1])

def work(argv):
    cloud, worker = pathlib.Path(os.environ["FAKE_CLOUD"]), os.environ["NUWAXL_WORKER"]
    count = cloud / f"starts-{worker}"
    number = int(count.read_text()) if count.exists() else 0
    count.write_text(str(number + 1))
    plan = json.loads((cloud / "plan.json").read_text())
    step = plan[min(number, len(plan) - 1)]
    step = step.get(worker, step)
    workdir = next(a for a in argv if a.startswith("--workdir=")).removeprefix("--workdir=")
    (cloud / f"argv-{worker}-{number}.json").write_text(json.dumps(argv))
    (cloud / f"environment-{worker}.json").write_text(json.dumps(dict(os.environ)))
    def told(signum, frame):  # the second signal would end the real one at once, without a checkpoint
        with open(cloud / f"signals-{worker}", "a") as file: file.write("x")
        time.sleep(0.5)
        sys.exit(42)
    signal.signal(signal.SIGTERM, told)
    (cloud / f"ready-{worker}").write_text("")
    for line in step.get("lines", []):
        print(line)
    time.sleep(step.get("sleep", 0))
    if "signal" in step:
        os.kill(os.getpid(), step["signal"])
    sys.exit(step.get("exit", 0))

if __name__ == "__main__":
    work(sys.argv[1:])
"""
_JAX = """
import os, sys
class _D: device_kind = "TPU v5 lite"
def device_count(): return int(os.environ.get("FAKE_DEVICES", 16))
def local_device_count(): return 4
def process_count(): return int(os.environ.get("FAKE_HOSTS", 4))
def devices(): return [_D()]
def default_backend(): return "tpu"
"""


def _script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Cloud:
    """The fake cloud of a test.

    Attributes:
      folder: of the fake gcloud.
      repository: what is sent.
      workdir: a folder that every worker sees.
      state: pod.py's records.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "cloud"
        self.repository = folder / "repository"
        self.workdir = folder / "shared disk"
        self.state = folder / "state"
        self.workdir.mkdir(parents=True)
        fake = pathlib.Path(__file__).with_name("fake_gcloud.py")
        _script(self.folder / "bin" / "gcloud", f'#!/bin/sh\nexec {sys.executable} -S -E {fake} "$@"\n')
        self._make_workers()
        self._make_repository()
        self.plan([{"lines": ["step 1"]}])

    def _make_workers(self):
        """python3 -m pip and uv do nothing but make an environment whose python is this one."""
        venv_python = f'#!/bin/sh\nPYTHONPATH="$PWD" exec {sys.executable} -S "$@"\n'
        uv = f"""#!/bin/bash
        if [[ "$*" == *"uv venv"* ]]; then
          mkdir -p "$HOME/nuwaxl/venv/bin"
          printf %s {shlex.quote(venv_python)} >"$HOME/nuwaxl/venv/bin/python"
          chmod +x "$HOME/nuwaxl/venv/bin/python"
        fi
        if [[ "$*" == *"uv pip"* && -n "$FAKE_PIP_FAILS" ]]; then echo "ERROR: no such distribution"; exit 1; fi
        """
        _script(self.folder / "worker_bin" / "python3", uv)
        _script(self.folder / "worker_bin" / "cp", '#!/bin/sh\nsleep 0.2\nexec /bin/cp "$@"\n')  # a slow disk

    def _make_repository(self):
        package = self.repository / "nuwaxl_jax"
        (package / "training").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "training" / "__init__.py").write_text("")
        (package / "training" / "loop.py").write_text("")
        (package / "hosts.py").write_text("def job_of(hosts): return hosts\ndef join(job, timeout): pass\n")
        (package / "config.py").write_text("def validate_training(config): pass\nvalidate = validate_training\n")
        (package / "main.py").write_text(_MAIN)
        (self.repository / "jax.py").write_text(_JAX)
        launch = self.repository / "experiments" / "launch"
        (launch / "libtpu").mkdir(parents=True)
        real = ROOT / "experiments" / "launch"
        for file in (real / "worker.sh", real / "preflight.py", *(real / "libtpu").glob("*.args")):
            (launch / file.relative_to(real)).write_bytes(file.read_bytes())
        self.git("init", "-q")
        self.git("add", ".")
        self.git("commit", "-q", "-m", "all")

    def git(self, *words):
        names = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", str(self.repository), *names, *words], check=True, capture_output=True)
        return done.stdout.decode().rstrip()

    def settings(self, **values):
        (self.folder / "settings.json").write_text(json.dumps(values))

    def plan(self, starts):
        """What the run does at its first, second, .. start; the last for all later ones."""
        (self.folder / "plan.json").write_text(json.dumps(starts))

    def calls(self):
        """[tpu-vm create, ..]: what was called, in order; which worker and step for ssh."""
        path = self.folder / "calls.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [_named(row) for row in rows]

    def arguments(self, call):
        """Of all calls of that name."""
        path = self.folder / "calls.jsonl"
        return [row for row in map(json.loads, path.read_text().splitlines()) if _named(row) == call]

    def argv(self, worker=0, start=0):
        """What the run got."""
        return json.loads((self.folder / f"argv-{worker}-{start}.json").read_text())

    def events(self):
        """[what]: of the record."""
        path = self.state / "nuwa" / "events.jsonl"
        return [json.loads(line)["what"] for line in path.read_text().splitlines()]

    def flags(self, step, *more, type="v5e-16", hosts=4):
        where = ["--name=nuwa", f"--type={type}", "--zone=us-west4-a", "--project=my-project"]
        own = [f"--state={self.state}", f"--code={self.repository}", f"--workdir={self.workdir}", "--poll=0.05"]
        return [step, *where, *own, *more]

    def run(self, step, *more, args=("--mode=train",), **options):
        """pod.py's exit status."""
        return pod.main([*self.flags(step, *more, **options), *(["--", *args] if args else [])])


def _named(row):
    words = [a for a in row if not a.startswith("-")][2:4]
    name = " ".join(words)
    if name != "tpu-vm ssh":
        return name
    worker = next(a.removeprefix("--worker=") for a in row if a.startswith("--worker="))
    command = next(a for a in row if a.startswith("--command="))
    step = command.split("worker.sh ", 1)[1].split(" ")[0]
    return f"ssh {worker} {step}"


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = Cloud(tmp_path)
    monkeypatch.setenv("FAKE_CLOUD", str(made.folder))
    monkeypatch.setenv("PATH", f"{made.folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    made.settings(hosts=4)
    yield made
    for file in made.folder.glob("workers/*/nuwaxl/runs/*/pid"):  # no run outlives its test
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(int(file.read_text()), signal.SIGKILL)
