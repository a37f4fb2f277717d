"""The cloud's commands: what they are, how they are run or shown, and what their errors mean to a person.

Every command is a list of arguments that no local shell reads. `tpu-vm ssh --command=TEXT` hands TEXT to the worker's
login shell, so what goes there is quoted exactly once, by `shlex.join`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from typing import Any

from experiments.launch import slices

_CAPACITY = (
    r"no more capacity|insufficient.{0,20}capacity|not enough.{0,20}(capacity|resources)|RESOURCE_POOL_EXHAUSTED"
)
# What gcloud prints -> (kind, the line for a person). {0} is gcloud's own last line.
_ERRORS = (
    (
        r"active account|gcloud auth login|[Rr]eauthentication|invalid_grant",
        "login",
        "not logged in; gcloud auth login",
    ),
    (r"SSH Key is not present", "ssh", "the ssh key is not in your agent; ssh-add ~/.ssh/google_compute_engine"),
    (
        r"SERVICE_DISABLED|API has not been used|it is disabled",
        "project",
        "--project: the TPU API is off; gcloud services enable tpu.googleapis.com --project=PROJECT ({0})",
    ),
    (
        r"[Qq]uota",
        "quota",
        "--type, --zone, --spot: no quota for this here; another zone, --spot (its quota is separate), or ask at"
        " https://console.cloud.google.com/iam-admin/quotas ({0})",
    ),
    (_CAPACITY, "capacity", "--zone: nothing of this type is free now; --queued waits in the queue ({0})"),
    (
        r"ALREADY_EXISTS|already exists",
        "exists",
        "--name: exists already; run or watch it, delete it, or choose another",
    ),
    (
        r"locations/[-a-z0-9]+'? (was |is )?not found|locations/.*may not exist|[Ii]nvalid.{0,20}(zone|location)",
        "zone",
        "--zone: not a zone with TPUs for you; gcloud compute tpus locations list has them ({0})",
    ),
    (r"NOT_FOUND|was not found", "absent", "it does not exist ({0})"),
    (r"PERMISSION_DENIED|does not have permission", "project", "--project: no right; roles/tpu.admin is needed ({0})"),
)


class CloudError(RuntimeError):
    """gcloud refused, or did not answer.

    Attributes:
      kind: missing (the program), login, ssh, project, quota, capacity, exists, zone, absent, timeout or other.
      partial: of a timeout, what had been said by then.
    """

    def __init__(self, kind: str, line: str):
        super().__init__(line)
        self.kind = kind
        self.partial: Result | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """Of a command: its exit status, its standard output and its standard error."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        """Standard output as text."""
        return self.raw.decode(errors="replace")


def explain(text: str) -> CloudError:
    """What gcloud's standard error means."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or "error:" in line.lower()]
    said = (errors or lines or ["gcloud said nothing"])[-1][:300]
    starts = [number for number, line in enumerate(lines) if line.startswith("ERROR")]
    joined = " ".join(lines[starts[0] :] if starts else lines)  # warnings come before, and name quota projects
    for form, kind, line in _ERRORS:
        if re.search(form, joined):
            return CloudError(kind, line.format(said))
    return CloudError("other", said)


def shown(command: list[str]) -> str:
    """As one would type it."""
    return shlex.join(command)


class Runner:
    """Runs commands, or shows them.

    Args:
      dry_run: print each command, run none, and answer with what `dry` says it would have said.
    """

    def __init__(self, dry_run: bool = False):
        self.dry_run = dry_run

    def run(self, command: list[str], *, timeout: float, dry: str = "") -> Result:
        """The command's result; nothing is raised for its exit status.

        Raises:
          CloudError: the program is missing, or did not end within `timeout` seconds.
        """
        if self.dry_run:
            print(shown(command), flush=True)
            return Result(0, dry.encode(), "")
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
        except FileNotFoundError as error:
            homes = {
                "gcloud": "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install",
                "xpk": "pip install xpk",
            }
            mend = homes.get(command[0], "install it")
            raise CloudError("missing", f"{command[0]} is not on PATH; {mend}") from error
        except subprocess.TimeoutExpired as error:
            problem = CloudError("timeout", f"no answer within {timeout:.0f} s: {shown(command[:6])} ...")
            problem.partial = Result(124, error.stdout or b"", (error.stderr or b"").decode(errors="replace"))
            raise problem from error
        return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def must(self, command: list[str], *, timeout: float, dry: str = "") -> str:
        """Its standard output; raises what `explain` makes of a failure."""
        result = self.run(command, timeout=timeout, dry=dry)
        if result.code:
            raise explain(result.err or result.out)
        return result.out


def _where(pod: slices.Slice) -> list[str]:
    return [f"--zone={pod.zone}", f"--project={pod.project}", "--quiet"]


def _tpus(*words: str) -> list[str]:
    return ["gcloud", "compute", "tpus", *words]


def check(pod: slices.Slice) -> list[str]:
    """Asks whether the zone has the type, which needs a login, a project and a zone, and creates nothing."""
    return _tpus("accelerator-types", "describe", pod.accelerator_type, *_where(pod), "--format=value(type)")


def create(pod: slices.Slice, patience: float) -> list[str]:
    """Creates the TPU VMs, or queues for them; the queue forgets the request after `patience` seconds."""
    common = [
        f"--accelerator-type={pod.accelerator_type}",
        *(["--spot"] if pod.spot else []),
        *(["--reserved"] if pod.reserved else []),
        *(["--internal-ips"] if pod.internal_ips else []),
    ]
    for flag, value in (
        ("network", pod.network),
        ("subnetwork", pod.subnetwork),
        ("service-account", pod.service_account),
    ):
        common += [f"--{flag}={value}"] if value else []
    if not pod.queued:
        return _tpus("tpu-vm", "create", pod.name, *_where(pod), f"--version={pod.image}", *common)
    queue = [
        f"--node-id={pod.name}",
        f"--runtime-version={pod.image}",
        f"--valid-until-duration={max(1, round(patience))}s",
    ]
    return _tpus("queued-resources", "create", pod.name, *_where(pod), *queue, *common)


def describe_node(pod: slices.Slice) -> list[str]:
    """State and health of the TPU VMs."""
    return _tpus("tpu-vm", "describe", pod.name, *_where(pod), "--format=json(state,health,healthDescription)")


def describe_queued(pod: slices.Slice) -> list[str]:
    """State of the request."""
    return _tpus("queued-resources", "describe", pod.name, *_where(pod), "--format=json(state)")


def delete(pod: slices.Slice) -> list[str]:
    """Deletes everything that `create` made; --force takes a queued resource's VMs along."""
    if pod.queued:
        return _tpus("queued-resources", "delete", pod.name, *_where(pod), "--force")
    return _tpus("tpu-vm", "delete", pod.name, *_where(pod))


def _inside(pod: slices.Slice) -> list[str]:
    return ["--internal-ip"] if pod.internal_ips else []


def ssh(pod: slices.Slice, worker: int | str, command: str) -> list[str]:
    """Runs a line of shell on one worker or on 'all'."""
    target = [pod.name, *_where(pod), *_inside(pod), f"--worker={worker}"]
    return _tpus("tpu-vm", "ssh", *target, f"--command={command}")


def scp(pod: slices.Slice, files: list[str], folder: str = "") -> list[str]:
    """Copies files into a folder of every worker's home."""
    return _tpus("tpu-vm", "scp", *files, f"{pod.name}:{folder}", *_where(pod), *_inside(pod), "--worker=all")


def parse(text: str) -> dict[str, Any]:
    """gcloud's JSON; {} where it printed nothing."""
    try:
        return json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}


def say(line: str) -> None:
    """To the person, at once; standard output carries dry runs and the run's own lines."""
    print(f"pod: {line}", file=sys.stderr, flush=True)
