"""A cloud for tests: put on PATH as `gcloud`, it records its calls and keeps slices in a folder.

    $FAKE_CLOUD/calls.jsonl     the arguments of every call
    $FAKE_CLOUD/settings.json   what a test wants to happen, see SETTINGS
    $FAKE_CLOUD/slice.json      {"state", "queued", "polls", "hosts"} of the one slice, if there is one
    $FAKE_CLOUD/workers/K       the home of worker K; commands of `ssh` run there, through bash, as on a worker

A slice that is preempted or deleted takes its workers' homes and processes along.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
SETTINGS = {
    "hosts": 2,
    "polls_until_ready": 1,  # describes that say CREATING or PROVISIONING
    "preempt_at": [],  # per slice created: a poll after which it is PREEMPTED; null = never
    "errors": {},  # {"tpu-vm create": [line, line, ..]}: printed and failed, one call each
    "silent": [],  # workers that do not answer
}
ERROR = "ERROR: (gcloud.compute.tpus.{0}) "


def settings():
    path = CLOUD / "settings.json"
    return {**SETTINGS, **(json.loads(path.read_text()) if path.exists() else {})}


def load():
    path = CLOUD / "slice.json"
    return json.loads(path.read_text()) if path.exists() else None


def save(value):
    path = CLOUD / "slice.json"
    if value is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps(value))


def fail(what, line):
    print("WARNING: your active project differs from the quota project", file=sys.stderr)
    print(ERROR.format(what.replace(" ", ".")) + line, file=sys.stderr)
    sys.exit(1)


def wipe():
    """The VMs are gone: no process, no disk."""
    for file in CLOUD.glob("workers/*/nuwaxl/runs/*/pid"):
        try:
            os.killpg(int(file.read_text()), signal.SIGKILL)  # setsid made it the leader of its group
        except (ProcessLookupError, ValueError):
            pass
    shutil.rmtree(CLOUD / "workers", ignore_errors=True)


def create(what, queued):
    if load():
        fail(what, "ALREADY_EXISTS: Resource 'projects/my-project/locations/us-west4-a/nodes/nuwa' already exists")
    count = CLOUD / "created"
    number = int(count.read_text()) if count.exists() else 0
    count.write_text(str(number + 1))
    for worker in range(settings()["hosts"]):
        (CLOUD / "workers" / str(worker)).mkdir(parents=True)
    save({"number": number, "queued": queued, "polls": 0})
    if not queued:  # it returns when the VMs are there
        save({**load(), "polls": settings()["polls_until_ready"]})


def describe(what, queued):
    now, wanted = load(), settings()
    if now is None:
        fail(what, "NOT_FOUND: Resource 'projects/my-project/locations/us-west4-a/nodes/nuwa' was not found")
    now["polls"] += queued or not now["queued"]  # of a queued slice only the looks at the request count
    save(now)
    preempt = (wanted["preempt_at"] + [None] * 9)[now["number"]]
    ready = now["polls"] > wanted["polls_until_ready"]
    if preempt is not None and now["polls"] > preempt:
        wipe()
        state = "SUSPENDED" if queued else "PREEMPTED"
    else:
        state = ("ACTIVE" if queued else "READY") if ready else ("PROVISIONING" if queued else "CREATING")
    print(json.dumps({"state": {"state": state}} if queued else {"state": state, "health": "HEALTHY"}))


def delete(what):
    if load() is None:
        fail(what, "NOT_FOUND: Resource 'projects/my-project/locations/us-west4-a/nodes/nuwa' was not found")
    wipe()
    save(None)


def workers(flag):
    every = [k for k in range(settings()["hosts"]) if k not in settings()["silent"]]
    return every if flag == "all" else [int(flag)]


def ssh(arguments):
    command = next(a.removeprefix("--command=") for a in arguments if a.startswith("--command="))
    worker = next(a.removeprefix("--worker=") for a in arguments if a.startswith("--worker="))
    if not (CLOUD / "workers").exists():
        fail("tpu-vm ssh", 'Currently, this TPU is in state "PREEMPTED" and cannot be reached')
    running = []
    for k in workers(worker):
        home = CLOUD / "workers" / str(k)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX", "XLA"))},
            "HOME": str(home),
            "NUWAXL_WORKER": str(k),
            "PATH": f"{CLOUD / 'worker_bin'}:{os.environ['PATH']}",
        }
        words = ["bash", "-c", " ".join(command.split(" "))]  # as the real one hands it to ssh
        running.append((k, subprocess.Popen(words, cwd=home, env=environment, stdin=subprocess.DEVNULL)))
    codes = []
    for k, process in running:
        codes.append(process.wait())
        if codes[-1] and len(running) > 1:
            print(
                f"##### Command execution on worker {k} failed with exit status {codes[-1]}. Continuing.",
                file=sys.stderr,
            )
    sys.exit(next((code for code in codes if code), 0))


def scp(arguments):
    files = [a for a in arguments if not a.startswith("-") and not re.fullmatch(r"[a-z][-a-z0-9]*:.*", a)]
    for k in workers("all"):
        for file in files:
            shutil.copy(file, CLOUD / "workers" / str(k))


def main():
    arguments = sys.argv[1:]
    with open(CLOUD / "calls.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(arguments) + "\n")
    words = [a for a in arguments if not a.startswith("-")][2:]  # after compute tpus
    what = " ".join(words[:2])
    used = CLOUD / ("errors-" + what.replace(" ", "-"))
    number = int(used.read_text()) if used.exists() else 0
    used.write_text(str(number + 1))
    errors = settings()["errors"].get(what, [])
    if number < len(errors) and errors[number]:
        fail(what, errors[number])
    queued = words[0] == "queued-resources"
    if what == "accelerator-types describe":
        print("v5litepod-16")
    elif words[1] == "create":
        create(what, queued)
    elif words[1] == "describe":
        describe(what, queued)
    elif words[1] == "delete":
        delete(what)
    elif what == "tpu-vm ssh":
        ssh(arguments)
    elif what == "tpu-vm scp":
        scp(words[2:])
    else:
        fail(what, "Invalid choice")


if __name__ == "__main__":
    main()
