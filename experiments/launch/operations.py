"""What can be done with a slice: create, wait, set up, check, start, ask, stop, delete; a few gcloud commands each."""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from typing import Any

from experiments.launch import gcloud
from experiments.launch import record
from experiments.launch import slices
from experiments.launch import source
from experiments.launch import storage

# States of TPU VMs and of queued resources, from the reference of the TPU API (v2).
READY = ("READY", "ACTIVE")
ON_THE_WAY = (
    *("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING", "HIDING", "UNHIDING"),
    *("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"),
)
ABSENT = "ABSENT"  # ours: neither a VM nor a request of that name; all other states are those of a slice that is lost
PREFLIGHT_SECONDS = 55
_HOME = "nuwaxl"
# Anywhere in a line: what several workers write at once may run together.
_REPORT = re.compile(r"@nuwaxl worker=(\S+) stage=(\S+) ((?:(?!@nuwaxl ).)*)")
_ALONE = ("setup", "mount", "python", "import", "start")  # stages in which no worker waits for another


class Trouble(RuntimeError):
    """A step failed on a slice that exists. One line; `code` is the exit status."""

    def __init__(self, line: str, code: int = 1):
        super().__init__(line)
        self.code = code


@dataclasses.dataclass
class Pod:
    """A slice, how to reach it, and what to run on it.

    Attributes:
      slice: what is rented.
      runner: runs or shows commands.
      record: what is known of it here.
      place: of the run's workdir.
      code: what is sent; None where nothing is.
      args: of nuwaxl_jax.main, without --workdir.
      poll: seconds from look to look.
      patience: seconds that a slice may take to be ready.
      refused: the cloud would not create it; whatever has its name is not ours.
    """

    slice: slices.Slice
    runner: gcloud.Runner
    record: record.Record
    place: storage.Place | None = None
    code: source.Code | None = None
    args: tuple[str, ...] = ()
    poll: float = 30
    patience: float = 1800
    refused: bool = False

    # -- the slice ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises CloudError where this login, project, zone and type do not go together; creates nothing."""
        try:
            self.runner.must(gcloud.check(self.slice), timeout=120)
        except gcloud.CloudError as error:
            if error.kind != "absent":
                raise
            zone, kind = self.slice.zone, self.slice.accelerator_type
            listing = f"gcloud compute tpus accelerator-types list --zone={zone}"
            raise gcloud.CloudError("zone", f"--zone: {zone} has no {kind}; {listing} shows what it has") from error

    def create(self) -> None:
        """Creates it, or queues for it; returns when the cloud has taken the request (or, unqueued, has fulfilled it).

        Raises:
          CloudError: refused.
        """
        self.record.event("create", type=self.slice.type, zone=self.slice.zone, queued=self.slice.queued)
        self.record.save(created=True)
        limit = 300 if self.slice.queued else self.patience
        self.runner.must(gcloud.create(self.slice, self.patience), timeout=limit)

    def state(self) -> tuple[str, str]:
        """(state, what the cloud says of it).

        Raises:
          CloudError: it cannot be asked now.
        """
        if self.slice.queued:
            queue, said = self._state_of(gcloud.describe_queued(self.slice), '{"state": {"state": "ACTIVE"}}')
            if queue not in READY:
                return queue, said
        return self._state_of(gcloud.describe_node(self.slice), '{"state": "READY", "health": "HEALTHY"}')

    def _state_of(self, command: list[str], dry: str) -> tuple[str, str]:
        try:
            answer = gcloud.parse(self.runner.must(command, timeout=120, dry=dry))
        except gcloud.CloudError as error:
            if error.kind == "absent":
                return ABSENT, str(error)
            raise
        state = answer.get("state", "")
        if isinstance(state, dict):  # a queued resource's, with what went wrong inside
            inner = (state.get("failedData") or {}).get("error") or {}
            return state.get("state", ""), inner.get("message", "")
        health = answer.get("health", "")
        return state, " ".join(
            x for x in (health if health != "HEALTHY" else "", answer.get("healthDescription", "")) if x
        )

    def wait_until_ready(self) -> None:
        """Names each state once.

        Raises:
          Trouble: a state from which nothing becomes ready, or not ready in time.
          CloudError: the cloud cannot be asked.
        """
        start, last = time.monotonic(), ""
        while True:
            state, said = self.state()
            if state in READY:
                waited = time.monotonic() - start
                self.record.event("ready", seconds=round(waited))
                gcloud.say(f"{self.slice.name} is {state} after {waited:.0f} s")
                return
            if state != last:
                gcloud.say(f"{self.slice.name} is {state}{': ' + said if said else ''}")
                last = state
            if state not in ON_THE_WAY:
                raise Trouble(f"{self.slice.name} is {state} and will not become ready{': ' + said if said else ''}")
            if time.monotonic() - start > self.patience:
                raise Trouble(
                    f"{self.slice.name} was still {state} after {self.patience:.0f} s; --patience waits longer"
                )
            time.sleep(self.poll)

    def delete(self, attempts: int = 3) -> None:
        """Deletes it; that it is not there is no error.

        Raises:
          CloudError: the cloud would not, with the command to try again.
        """
        self.record.event("delete")
        for attempt in range(attempts):
            try:
                self.runner.must(gcloud.delete(self.slice), timeout=900)
                break
            except gcloud.CloudError as error:
                if error.kind == "absent":
                    break
                if attempt == attempts - 1 or error.kind in ("login", "project"):
                    raise gcloud.CloudError(error.kind, f"{error}; {self.how_to_delete()}") from error
                time.sleep(self.poll)
        self.record.save(created=False)

    def how_to_delete(self) -> str:
        """A line."""
        return f"to delete {self.slice.name} and stop paying: {gcloud.shown(gcloud.delete(self.slice))}"

    # -- its workers -------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Sends the code to every worker and installs it; mounts the workdir.

        Raises:
          Trouble: naming the workers where that failed.
        """
        with source.packed(self.runner, self.code) as archive:
            self.runner.must(gcloud.scp(self.slice, [archive]), timeout=900)
        folder, name = f"{_HOME}/code-{self.code.label}", self.code.file_name
        unpack = [
            shlex.join(["mkdir", "-p", folder]),
            shlex.join(["tar", "-xzf", name, "-C", folder]),
            shlex.join(["rm", "-f", name]),
            shlex.join(["ln", "-sfn", f"code-{self.code.label}", f"{_HOME}/code"]),
        ]
        script = shlex.join(self._worker("setup", self.code.label))
        self._on_all(" && ".join([*unpack, script]), "setup", timeout=1200)
        if self.place.source:
            self._on_all(shlex.join(self._worker("mount", self.place.source, self.place.target)), "mount", timeout=600)
        self.record.event("setup", commit=self.code.label)
        self.record.save(sent=dataclasses.asdict(self.code))

    def preflight(self) -> None:
        """Checks every worker, all at once.

        Raises:
          Trouble: naming the workers that are not fit.
        """
        pod, token = self.slice, time.strftime("%H%M%S")
        step = ("preflight", pod.generation, pod.hosts, pod.devices, self.place.path, token, PREFLIGHT_SECONDS)
        self._on_all(shlex.join(self._worker(*step)), "devices", timeout=PREFLIGHT_SECONDS + 60)
        self.record.event("preflight")

    def start(self, run: str) -> None:
        """Starts the run on every worker.

        Raises:
          Trouble: naming the workers where it did not start.
        """
        self._on_all(self.start_command(run), "start", timeout=180)
        self.record.event("start", run=run, args=list(self.args))
        self.record.save(run=run)

    def start_command(self, run: str) -> str:
        """The line of shell that starts it on a worker."""
        return shlex.join(self._worker("start", run, self.slice.generation, self.place.path, *self.args))

    def statuses(self, run: str) -> dict[int, str]:
        """{worker: 'running', 'exit=0', 'lost', 'none' or 'silent'}; silent: no answer."""
        answer = self._ssh(
            "all", shlex.join(self._worker("status", run)), timeout=180, dry=self._dry("status", "exit=0")
        )
        found = {int(k): line for k, stage, line in _REPORT.findall(answer.out) if stage == "status" and k.isdigit()}
        if answer.code and not found:
            raise gcloud.explain(answer.err)
        return {worker: found.get(worker, "silent") for worker in range(self.slice.hosts)}

    def log(self, run: str, offset: int, worker: int = 0) -> bytes:
        """What the worker's log has from byte `offset` on."""
        command = shlex.join(self._worker("log", run, offset))
        answer = self._ssh(worker, command, timeout=120)
        return answer.raw if not answer.code else b""

    def tail(self, run: str, worker: int, lines: int = 20) -> list[str]:
        """The log's last lines; none where the worker does not answer."""
        try:
            return self._ssh(worker, shlex.join(self._worker("tail", run, lines)), timeout=120).out.splitlines()
        except gcloud.CloudError as error:
            gcloud.say(f"worker {worker} does not show its log: {error}")
            return []

    def stop(self, run: str, seconds: int = 120) -> None:
        """Asks the run to save and end, everywhere; after `seconds` it is made to."""
        try:
            self._ssh("all", shlex.join(self._worker("stop", run, seconds)), timeout=seconds + 120)
        except gcloud.CloudError as error:
            gcloud.say(f"not every worker has stopped: {error}")
        self.record.event("stop", run=run)

    def _worker(self, *step: Any) -> list[str]:
        return ["bash", f"{_HOME}/code/experiments/launch/worker.sh", *(str(word) for word in step)]

    def _dry(self, stage: str, line: str) -> str:
        return "".join(f"@nuwaxl worker={k} stage={stage} {line}\n" for k in range(self.slice.hosts))

    def _ssh(self, worker: int | str, command: str, timeout: float, dry: str = "") -> gcloud.Result:
        return self.runner.run(gcloud.ssh(self.slice, worker, command), timeout=timeout, dry=dry)

    def _on_all(self, command: str, last: str, timeout: float) -> None:
        """Runs a step on every worker; each must report that its stage `last` went well."""
        try:
            answer = self._ssh("all", command, timeout, dry=self._dry(last, "ok"))
        except gcloud.CloudError as error:
            if error.partial is None:
                raise
            answer = error.partial
        reports = [(worker, stage, line) for worker, stage, line in _REPORT.findall(answer.out)]
        fit = {worker for worker, stage, line in reports if stage == last and line.startswith("ok")}
        bad = {worker for worker, stage, line in reports if line.startswith("failed")}
        silent = [k for k in range(self.slice.hosts) if str(k) not in fit | bad]
        if not bad and not silent:
            return
        if not reports:
            raise Trouble(f"no worker answered: {gcloud.explain(answer.err)}")
        raise Trouble(_name_the_culprits(reports, silent, answer.err))


def _name_the_culprits(reports: list[tuple[str, str, str]], silent: list[int], err: str) -> str:
    """One line: silent workers, and those that got least far; the others failed waiting for these."""
    passed = {worker: 0 for worker, _, _ in reports}
    for worker, _, line in reports:
        passed[worker] += line.startswith("ok")
    bad = sorted((worker, stage, line) for worker, stage, line in reports if line.startswith("failed"))
    least = min((passed[worker] for worker, _, _ in bad), default=0)
    culprits = [entry for entry in bad if passed[entry[0]] == least]
    if silent and bad and culprits[0][1] not in _ALONE:
        culprits = []
    lines = [f"worker {', '.join(map(str, silent))} gave no answer ({gcloud.explain(err)})"] if silent else []
    lines += [f"worker {worker}: {stage} {line}" for worker, stage, line in culprits[:8]]
    lines += [f"{len(culprits) - 8} more like these"] if len(culprits) > 8 else []
    waiting = sorted({worker for worker, _, _ in bad} - {worker for worker, _, _ in culprits})
    lines += [f"worker {', '.join(waiting)} failed waiting for the above"] if waiting else []
    return "; ".join(lines)
