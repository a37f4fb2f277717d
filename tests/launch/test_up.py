"""One command from nothing to a finished run, with what a cloud does to it in between; the worker's script is real."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.launch import pod

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]

CREATE = ["accelerator-types describe", "tpu-vm create", "tpu-vm describe"]
SETUP = ["tpu-vm scp", "ssh all setup"]
RUN = ["ssh all preflight", "ssh all start"]
LOOK = ["tpu-vm describe", "ssh all status", "ssh 0 log"]


def _without_repeats(calls):
    """One look is as good as five: the number of polls depends on how fast the machine is."""
    out = []
    for call in calls:
        out.append(call)
        while out[-3:] == LOOK and out[-6:-3] == LOOK:
            del out[-3:]
    return out


def test_up_runs_to_the_end_and_deletes_when_told(cloud, capfd):
    cloud.plan([{"lines": ["hello", "step 1 loss 0.5"]}])
    assert cloud.run("up", "--delete_when_done") == 0
    calls = _without_repeats(cloud.calls())
    assert calls == [*CREATE, *SETUP, *RUN, *LOOK, "ssh 0 log", "tpu-vm delete"]
    shown = capfd.readouterr()
    assert shown.out.count("step 1 loss 0.5\n") == 1  # worker 0's, once
    assert "may exist" not in shown.err
    for worker in range(4):
        assert cloud.argv(worker) == ["--mode=train", "--hosts=tpu", f"--workdir={cloud.workdir}"]
        log = next((cloud.workdir / "launch").glob(f"run-*-worker-{worker}.log"))
        assert "step 1 loss 0.5" in log.read_text()
    assert cloud.events() == ["create", "ready", "setup", "preflight", "start", "done", "delete"]


def test_the_slice_stays_and_says_how_to_delete_it(cloud, capfd):
    assert cloud.run("up") == 0
    assert "tpu-vm delete" not in cloud.calls()
    assert "gcloud compute tpus tpu-vm delete nuwa --zone=us-west4-a --project=my-project" in capfd.readouterr().err


def test_a_preemption_in_the_middle_is_mended(cloud, capfd):
    cloud.settings(hosts=4, preempt_at=[4])
    cloud.plan([{"lines": ["step 1"], "sleep": 60}, {"lines": ["restored step 1", "step 2"]}])
    assert cloud.run("up") == 0
    calls = _without_repeats(cloud.calls())
    lost = ["tpu-vm describe", "tpu-vm delete", "tpu-vm create", "tpu-vm describe"]
    assert calls == [*CREATE, *SETUP, *RUN, *LOOK, *lost, *SETUP, *RUN, *LOOK, "ssh 0 log"]
    shown = capfd.readouterr()
    assert "nuwa is PREEMPTED; creating it again, 1 of 20" in shown.err
    assert shown.out.index("step 1") < shown.out.index("restored step 1") < shown.out.index("step 2")
    assert cloud.argv(3, 0) == cloud.argv(3, 1)  # the same command
    events = [json.loads(line) for line in (cloud.state / "nuwa" / "events.jsonl").read_text().splitlines()]
    assert [e["what"] for e in events].count("create") == 2
    assert all("time" in e for e in events) and "PREEMPTED" in next(e["why"] for e in events if e["what"] == "lost")


def test_a_queued_spot_slice_that_is_suspended_is_asked_for_again(cloud):
    cloud.settings(hosts=4, preempt_at=[5], polls_until_ready=2)
    cloud.plan([{"sleep": 60}, {}])
    assert cloud.run("up", "--queued", "--spot") == 0
    calls = cloud.calls()
    assert calls.count("queued-resources create") == 2 and calls.count("queued-resources delete") == 1
    assert "tpu-vm create" not in calls and "tpu-vm delete" not in calls
    delete = cloud.arguments("queued-resources delete")[0]
    assert "--force" in delete
    create = cloud.arguments("queued-resources create")[1]
    assert {"--spot", "--node-id=nuwa", "--valid-until-duration=86400s"} <= set(create)


@pytest.mark.parametrize("hosts", ["v5e-8", "v5e-16"])
def test_status_42_starts_again_on_the_same_slice(cloud, hosts):
    cloud.settings(hosts=1 if hosts == "v5e-8" else 4)
    cloud.plan([{"exit": 42}, {"exit": 42}, {"exit": 0}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_HOSTS", "1" if hosts == "v5e-8" else "4")
        patch.setenv("FAKE_DEVICES", "8" if hosts == "v5e-8" else "16")
        assert cloud.run("up", type=hosts) == 0
    assert cloud.calls().count("ssh all start") == 3 and cloud.calls().count("tpu-vm create") == 1


def test_a_mistake_in_the_input_stops_and_shows_its_line(cloud, capfd):
    bad = {"lines": ["one", "nuwaxl_jax: data.path does not exist; give a folder", "noise"], "exit": 2}
    cloud.plan([{"0": {"sleep": 60}, "1": bad, "2": {"sleep": 60}, "3": {"sleep": 60}}])
    assert cloud.run("up") == 2
    shown = capfd.readouterr()
    assert "worker 1" in shown.err and shown.out.rstrip().endswith("data.path does not exist; give a folder")
    assert cloud.calls().count("ssh all start") == 1
    assert "ssh all stop" in cloud.calls()  # the others do not go on alone
    assert "tpu-vm delete nuwa" in shown.err


def test_a_failure_stops_with_1_and_shows_the_last_lines(cloud, capfd):
    cloud.plan([{"lines": ["Traceback", "FloatingPointError: loss at step 7"], "exit": 1}])
    assert cloud.run("up", "--settle=0.1") == 1
    assert "FloatingPointError: loss at step 7" in capfd.readouterr().out
    assert cloud.calls().count("ssh all start") == 1


def test_a_failure_on_a_slice_that_turns_out_lost_is_no_failure(cloud):
    cloud.settings(hosts=4, preempt_at=[5])
    cloud.plan([{"exit": 1}, {}])
    assert cloud.run("up", "--settle=30") == 0
    assert cloud.calls().count("tpu-vm create") == 2


def test_crashes_start_again_a_few_times_only(cloud, capfd):
    cloud.plan([{"signal": int(signal.SIGKILL)}])
    assert cloud.run("up", "--settle=0") == 1
    assert cloud.calls().count("ssh all start") == 4
    assert "crashed 4 times (137)" in capfd.readouterr().err


def test_the_slice_is_not_created_again_for_ever(cloud, capfd):
    cloud.settings(hosts=4, preempt_at=[2, 2, 2, 2, 2, 2])
    cloud.plan([{"sleep": 60}])
    assert cloud.run("up", "--recreations=2") == 1
    assert cloud.calls().count("tpu-vm create") == 3
    shown = capfd.readouterr().err
    assert "created again 2 times" in shown and "tpu-vm delete nuwa" in shown


def test_nothing_free_after_a_preemption_is_waited_for(cloud, capfd):
    full = 'There is no more capacity in the zone "us-west4-a"; you can try in another zone [EID: 0x1]'
    cloud.settings(hosts=4, preempt_at=[3], errors={"tpu-vm create": ["", full, full]})
    cloud.plan([{"sleep": 60}, {}])
    assert cloud.run("up") == 0
    assert cloud.calls().count("tpu-vm create") == 4
    assert capfd.readouterr().err.count("nothing of this type is free now") == 1  # said once, not every poll


def test_watch_picks_up_a_run_with_the_name_alone(cloud, capfd):
    cloud.plan([{"lines": ["step 1"], "sleep": 1}])
    assert cloud.run("create", args=()) == 0 and cloud.run("setup", args=()) == 0 and cloud.run("run") == 0
    (cloud.repository / "later.py").write_text("a change after the start")  # the first code is what counts
    own = ["--name=nuwa", f"--state={cloud.state}", "--poll=0.05"]
    assert pod.main(["watch", *own]) == 0
    assert "step 1" in capfd.readouterr().out
    assert pod.main(["logs", *own, "--worker=3"]) == 0 and "step 1" in capfd.readouterr().out
    assert pod.main(["status", *own]) == 0
    assert "worker 3: run-" in (said := capfd.readouterr().out) and "exit=0" in said and "start" in said
    assert pod.main(["delete", *own]) == 0 and cloud.calls()[-1] == "tpu-vm delete"


def _at_work(cloud):
    """A slice whose four workers run, and the flags that name it."""
    cloud.plan([{"sleep": 60}])
    assert cloud.run("create", args=()) == 0 and cloud.run("setup", args=()) == 0 and cloud.run("run") == 0
    deadline = time.monotonic() + 20
    while not all((cloud.folder / f"ready-{k}").exists() for k in range(4)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return ["--name=nuwa", f"--state={cloud.state}", "--poll=0.05"]


def _files(cloud, name, wait=10):
    """Of the run's folder on each worker, when all are there."""
    deadline = time.monotonic() + wait
    while len(found := list(cloud.folder.glob(f"workers/*/nuwaxl/runs/*/{name}"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    return [path.read_text().strip() for path in found]


def test_stop_lets_the_run_save(cloud):
    own = _at_work(cloud)
    assert pod.main(["stop", *own]) == 0
    assert _files(cloud, "exit") == ["42"] * 4


def test_a_vm_that_goes_down_signals_the_run_once(cloud):
    """A shutdown sends SIGTERM to every process: a supervisor that passed it on would send the run its second."""
    _at_work(cloud)
    for pid in _files(cloud, "pid"):
        os.kill(int(pid), signal.SIGTERM)  # the supervisor's own
    time.sleep(0.5)
    assert not list(cloud.folder.glob("signals-*"))
    for pid in _files(cloud, "pid"):
        os.killpg(int(pid), signal.SIGTERM)
    assert _files(cloud, "exit") == ["42"] * 4
    assert [(cloud.folder / f"signals-{k}").read_text() for k in range(4)] == ["x"] * 4


def test_a_run_that_vanished_is_lost_and_one_at_work_is_not_started_twice(cloud, capfd):
    own = _at_work(cloud)
    assert pod.main(["run", *own]) == 1
    assert "is still at work; stop it first" in capfd.readouterr().err
    for pid in _files(cloud, "pid"):
        os.killpg(int(pid), signal.SIGKILL)
    assert pod.main(["status", *own]) == 0
    assert capfd.readouterr().out.count(" lost\n") == 4
    cloud.plan([{"lines": ["back"]}])
    assert pod.main(["watch", *own, "--settle=0"]) == 0
    assert "back" in capfd.readouterr().out and cloud.calls().count("tpu-vm create") == 1


def test_the_run_gets_flags_of_its_generation_and_a_cache_that_outlives_the_slice(cloud):
    assert cloud.run("up") == 0
    environment = json.loads((cloud.folder / "environment-2.json").read_text())
    lines = (ROOT / "experiments/launch/libtpu/v5e.args").read_text().splitlines()
    flags = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert environment["LIBTPU_INIT_ARGS"].split() == flags
    assert environment["JAX_COMPILATION_CACHE_DIR"] == f"{cloud.workdir}/compilation_cache"


def test_interrupted_it_says_how_to_delete(cloud):
    cloud.plan([{"lines": ["step 1"], "sleep": 60}])
    command = [sys.executable, str(ROOT / "experiments/launch/pod.py"), *cloud.flags("up"), "--", "--mode=train"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while "ssh 0 log" not in cloud.calls() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=400)[1]
    assert process.returncode == 130
    assert "gcloud compute tpus tpu-vm delete nuwa --zone=us-west4-a" in said
    assert "pod.py watch --name=nuwa" in said
    pids = [int(path.read_text()) for path in cloud.folder.glob("workers/*/nuwaxl/runs/*/pid")]
    assert len(pids) == 4 and all(os.path.exists(f"/proc/{pid}") for pid in pids)  # the run goes on without us
