"""Trains on a Cloud TPU slice with one command, and keeps training through pre-emptions.

  python experiments/launch/pod.py up --name=nuwa --type=v5e-16 --zone=us-west4-a --project=PROJECT --spot --queued \
      --workdir=gs://BUCKET/paper128 -- --mode=train --config=configs/nuwaxl.py:paper128 --config.mesh.fsdp=16 \
      --config.data.path=/mnt/nuwaxl/BUCKET/videos --config.train.init_from=/mnt/nuwaxl/BUCKET/start.safetensors \
      --config.text.vocabulary=/mnt/nuwaxl/BUCKET/start.safetensors
  python experiments/launch/pod.py watch|status|logs|stop|delete --name=nuwa
  python experiments/launch/pod.py create|setup|run ...     the steps of `up`, one at a time
  python experiments/launch/pod.py xpk --cluster=CLUSTER --storage=STORAGE --workdir=/data/FOLDER ... -- --mode=...

--dry_run shows every command and runs none. What comes after -- is for nuwaxl_jax.main. README.md beside this file is
the guide.

Exit status: 0 done; 2 a mistake in the input, or the cloud refuses (one line says the mend); 1 the run failed or a
limit was reached; 130 interrupted: the slice goes on, and the last lines say how to delete it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import signal
import sys
from typing import Any

ROOT = str(pathlib.Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from experiments.launch import check_config
from experiments.launch import gcloud
from experiments.launch import operations
from experiments.launch import record
from experiments.launch import slices
from experiments.launch import source
from experiments.launch import storage
from experiments.launch import watching
from experiments.launch import xpk

_SLICE_FIELDS = tuple(field.name for field in dataclasses.fields(slices.Slice))
_REMEMBERED = (*_SLICE_FIELDS, "workdir", "code")
_ASKS_ANEW = ("up", "create", "xpk")  # all flags count; the other commands know them from the record
_STEPS = {
    "up": "create, setup, run and watch",
    "create": "create the slice and wait until it is ready",
    "setup": "send the code, install it, mount the workdir",
    "run": "check every worker and start the run, detached",
    "watch": "show what the run says; start it, or the slice, again as needed",
    "status": "of the slice, its workers and what befell it",
    "logs": "the last lines of a worker's log",
    "stop": "ask the run to save and end; the slice stays",
    "delete": "delete the slice",
    "xpk": "the run on GKE, as one xpk workload",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One line, as for every other mistake."""
        raise slices.UsageError(f"{message}; --help lists the flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pod.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True, metavar="|".join(_STEPS))
    for step, what in _STEPS.items():
        own = steps.add_parser(step, help=what, description=what)
        own.add_argument("--dry_run", action="store_true", help="show every command, run none")
        own.add_argument("--state", default=record.DEFAULT, help="folder of what is remembered of slices")
        own.add_argument("--name", default="", help="of the slice")
        own.add_argument("--type", default=None, help=f"of the slice: {slices.known()}")
        own.add_argument("--zone", default=None, help="such as us-west4-a")
        own.add_argument("--project", default=None, help="id of the Google Cloud project")
        for flag in ("queued", "spot", "reserved", "internal_ips"):
            own.add_argument(f"--{flag}", action="store_true", default=None)
        for flag in ("runtime", "network", "subnetwork", "service_account"):
            own.add_argument(f"--{flag}", default=None)
        own.add_argument(
            "--workdir", default=None, help="gs://bucket/folder, nfs://address/share/folder or /mnt/folder"
        )
        own.add_argument("--code", default=None, help="git repository to send; default: this one")
        own.add_argument(
            "--allow_dirty", action="store_true", help="send changes to tracked files that are not committed, too"
        )
        own.add_argument("--poll", type=float, default=30, help="seconds from look to look")
        own.add_argument("--patience", type=float, default=None, help="seconds for a slice to be ready")
        if step in ("up", "watch"):
            own.add_argument("--recreations", type=int, default=20, help="slices created again, at most")
            own.add_argument("--relaunches", type=int, default=20, help="starts again on the same slice, at most")
            own.add_argument("--settle", type=float, default=60, help="seconds for all workers to end after the first")
            own.add_argument("--delete_when_done", action="store_true", help="delete the slice when the run is done")
        if step in ("logs",):
            own.add_argument("--worker", type=int, default=0)
            own.add_argument("--lines", type=int, default=100)
        if step == "xpk":
            own.add_argument("--cluster", default="", help="of xpk cluster create")
            own.add_argument("--storage", default="", help="of xpk storage attach; it holds the workdir")
            own.add_argument("--image", default="", help="with the package installed; default: Python's")
            own.add_argument("--restarts", type=int, default=20)
            own.add_argument("--num_slices", type=int, default=1)
    return parser


def _options(argv: list[str]) -> tuple[argparse.Namespace, tuple[str, ...], record.Record]:
    """(flags with what is remembered of the slice, the run's arguments, the slice's record)."""
    cut = argv.index("--") if "--" in argv else len(argv)
    options = _parser().parse_args(argv[:cut])
    args = tuple(argv[cut + 1 :])
    slices.check("name", options.name)  # it names a folder of the record before there is a slice
    known = record.of(options.state, options.name, quiet=options.dry_run)
    remembered = {} if options.step in _ASKS_ANEW else known.load()
    for field in _REMEMBERED:
        if getattr(options, field) is None:
            setattr(options, field, remembered.get(field))
    options.code = options.code or ROOT
    return options, args or tuple(remembered.get("args", ())), known


def _slice(options: argparse.Namespace) -> slices.Slice:
    given: dict[str, Any] = {field: getattr(options, field) for field in _SLICE_FIELDS}
    return slices.Slice(**{k: v for k, v in given.items() if v is not None or k in ("type", "zone", "project")})


def _pod(options: argparse.Namespace, args: tuple[str, ...], known: record.Record) -> operations.Pod:
    """The slice with everything that the step needs, checked."""
    wanted = _slice(options)
    wanted.must_be_rented_as_vms()
    if wanted.hosts > 1 and "--mode=eval" in args:
        raise slices.UsageError(
            f"--type: {wanted.type} has {wanted.hosts} hosts, --mode=eval runs on one; v5e-8 has one"
        )
    if wanted.hosts > 1 and args and not any(arg.startswith("--hosts") for arg in args):
        args = (*args, "--hosts=tpu")  # the VMs' metadata server tells each process of the others
    patience = options.patience or (86400 if wanted.queued else 1800)
    pod = operations.Pod(wanted, gcloud.Runner(options.dry_run), known, args=args, poll=options.poll, patience=patience)
    if options.step in ("up", "setup", "run", "watch"):
        pod.place = storage.resolve(options.workdir or "")
    if options.step in ("up", "run"):
        check_config.check(options.code, args)
    if options.step == "watch" and known.load().get("sent"):
        pod.code = source.Code(**known.load()["sent"])  # a slice that is created again gets the code of the first
    elif options.step in ("up", "setup", "watch"):
        pod.code = _code(options, args)
    if options.step not in _ASKS_ANEW:
        known.save(**_remembered(options), **({"args": list(args)} if args else {}))
    return pod


def _remembered(options: argparse.Namespace) -> dict[str, Any]:
    return {field: getattr(options, field) for field in _REMEMBERED if getattr(options, field) is not None}


def _code(options: argparse.Namespace, args: tuple[str, ...]) -> source.Code:
    """What to send; without a run it is not known whether it reads the shipped weights."""
    weights = "--mode=train" not in args
    return source.resolve(options.code, allow_dirty=options.allow_dirty, with_weights=weights, dry_run=options.dry_run)


def _create(pod: operations.Pod, options: argparse.Namespace) -> None:
    """Creates the slice and waits for it; the record is the new slice's unless the cloud refuses at the door."""
    pod.check()
    before = pod.record.load()
    pod.record.replace(**_remembered(options), **({"args": list(pod.args)} if pod.args else {}))
    try:
        pod.create()
    except gcloud.CloudError as error:
        if error.kind in ("login", "project", "zone", "quota", "exists"):
            pod.record.replace(**before)
            pod.refused = True
        raise
    pod.wait_until_ready()


def _run(pod: operations.Pod) -> str:
    pod.preflight()
    run = watching.new_name()
    pod.start(run)
    gcloud.say(f"{run} is at work on {pod.slice.hosts} workers of {pod.slice.name}")
    return run


def _current_run(pod: operations.Pod) -> str:
    run = pod.record.load().get("run") or ("run-dry" if pod.runner.dry_run else "")
    if not run:
        raise slices.UsageError(f"--name: nothing was started on {pod.slice.name} from here; run starts it")
    return run


def _watch(pod: operations.Pod, run: str, options: argparse.Namespace) -> int:
    limits = {field: getattr(options, field) for field in ("recreations", "relaunches", "settle", "delete_when_done")}
    code = watching.Watcher(pod, run, **limits).watch()
    if pod.runner.dry_run:
        print("# after a pre-emption, before setup and start:")
        pod.delete()
        pod.create()
    return code


def _status(pod: operations.Pod) -> int:
    state, said = pod.state()
    print(f"{pod.slice.name}: {state}{': ' + said if said else ''}")
    run = pod.record.load().get("run")
    if state in operations.READY and run:
        for worker, status in pod.statuses(run).items():
            print(f"worker {worker}: {run} {status}")
    for event in pod.record.events()[-20:]:
        rest = " ".join(f"{k}={v}" for k, v in event.items() if k not in ("time", "what"))
        print(f"{event['time']} {event['what']} {rest}".rstrip())
    return 0


def _xpk(options: argparse.Namespace, args: tuple[str, ...]) -> int:
    wanted = _slice(options)
    xpk.check(options.cluster, options.workdir or "", options.storage)
    check_config.check(options.code, args)
    runner = gcloud.Runner(options.dry_run)
    own = {field: getattr(options, field) for field in ("cluster", "storage", "workdir", "image")}
    counts = dict(restarts=options.restarts, num_slices=options.num_slices)
    files = contextlib.nullcontext("") if options.image else source.unpacked(runner, _code(options, args))
    with files as folder:
        print(runner.must(xpk.workload(wanted, args, root=folder, **own, **counts), timeout=3600), end="")
    gcloud.say(f"to end it: {gcloud.shown(xpk.delete(wanted, options.cluster))}")
    return 0


def _act(options: argparse.Namespace, pod: operations.Pod) -> int:
    """The step's; its exit status."""
    step = options.step
    if step in ("up", "create"):
        _create(pod, options)
    if step in ("up", "setup"):
        pod.setup()
    if step in ("up", "run"):
        run = _run(pod)
        return _watch(pod, run, options) if step == "up" else 0
    if step == "watch":
        return _watch(pod, _current_run(pod), options)
    if step == "logs":
        print("\n".join(pod.tail(_current_run(pod), options.worker, options.lines)))
    if step == "stop":
        pod.stop(_current_run(pod))
    if step == "delete":
        pod.delete()
        gcloud.say(f"{pod.slice.name}: deleted")
    return _status(pod) if step == "status" else 0


def main(argv: list[str] | None = None) -> int:
    """Runs a step; its exit status."""
    pod = None
    try:
        options, args, known = _options(sys.argv[1:] if argv is None else argv)
        if options.step == "xpk":
            return _xpk(options, args)
        pod = _pod(options, args, known)
        code = _act(options, pod)
    except slices.UsageError as error:
        gcloud.say(str(error))
        code = 2
    except gcloud.CloudError as error:
        gcloud.say(str(error))
        code = 1 if error.kind in ("other", "timeout", "absent") else 2
    except operations.Trouble as error:
        gcloud.say(str(error))
        code = error.code
    except KeyboardInterrupt:
        gcloud.say("interrupted")
        code = 130
    if pod is not None and not pod.runner.dry_run and not pod.refused and pod.record.load().get("created"):
        again = f"; to go on watching: python experiments/launch/pod.py watch --name={pod.slice.name}"
        watch = again if pod.record.load().get("run") else ""
        if code or options.step in ("up", "create"):
            gcloud.say(f"{pod.slice.name} may exist and cost money; {pod.how_to_delete()}{watch}")
    return code


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
