"""Watches a run: shows what it says, and mends what can be mended until it is done.

    every worker ended with 0             done
    any with 2                            a mistake in the input: show its line, stop
    any with 42                           interrupted and saved: start it again, it resumes by itself
    any with another status below 126     it failed: show its last lines, stop
    killed by a signal, or gone           start it again, a few times
    the slice is taken back or failed     delete it, create it again, set up, start: it resumes from its workdir

A worker that ends takes the others with it sooner or later; what to do is decided when all have ended, or `settle`
seconds after the first, and when the slice is still there then: a slice that is taken back shows in its workers first.
"""

from __future__ import annotations

import dataclasses
import sys
import time

from experiments.launch import gcloud
from experiments.launch import operations

RESUME_ME = 42  # nuwaxl_jax.training.interrupts
MISTAKE = 2
SIGNALLED = 126
MAX_CRASHES = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the workers' statuses amount to.

    Attributes:
      action: wait, done, mistake, resume, crashed or failed.
      worker: the one that decided it.
      code: its exit status, -1 where it has none.
      ended: whether no worker is at work any more.
    """

    action: str
    worker: int = 0
    code: int = 0
    ended: bool = True


def decide(statuses: dict[int, str]) -> Verdict:
    """Of {worker: 'running', 'exit=0', 'lost', 'none' or 'silent'}."""
    codes = {k: int(s.removeprefix("exit=")) for k, s in statuses.items() if s.startswith("exit=")}
    codes.update({k: -1 for k, s in statuses.items() if s in ("lost", "none")})
    ended = len(codes) == len(statuses)
    kinds = (
        ("mistake", lambda code: code == MISTAKE),
        ("resume", lambda code: code == RESUME_ME),
        ("failed", lambda code: 0 < code < SIGNALLED),
        ("crashed", lambda code: code != 0),
    )
    for action, is_kind in kinds:
        for worker, code in sorted(codes.items()):
            if is_kind(code):
                return Verdict(action, worker, code, ended)
    return Verdict("done" if ended else "wait", ended=ended)


def new_name() -> str:
    """Of a run: when it was started."""
    return time.strftime("run-%Y%m%d-%H%M%S") + f"-{time.time_ns() // 1_000_000 % 1000:03d}"


@dataclasses.dataclass
class Watcher:
    """Watches one run of a slice.

    Attributes:
      pod: the slice and what runs on it.
      run: the name it was started under.
      recreations, relaunches: how many are allowed in all.
      settle: seconds to wait for the other workers, and for the slice's state, after one has ended.
      quiet_after: seconds without a new line after which that is said.
      delete_when_done: the slice.
    """

    pod: operations.Pod
    run: str
    recreations: int = 20
    relaunches: int = 20
    settle: float = 60
    quiet_after: float = 1800
    delete_when_done: bool = False
    _recreated: int = 0
    _relaunched: int = 0
    _crashes: int = 0
    _offset: int = 0
    _line_at: float = dataclasses.field(default_factory=time.monotonic)
    _first_end: float | None = None
    _said: str = ""

    def watch(self) -> int:
        """Returns 0 when the run is done, 2 for a mistake in its input, 1 when it failed.

        Raises:
          Trouble: nothing more can be done: limits reached, or the slice does not come back.
        """
        while True:
            try:
                state, said = self.pod.state()
            except gcloud.CloudError as error:
                self._say(f"cannot ask for {self.pod.slice.name}, trying again: {error}")
                time.sleep(self.pod.poll)
                continue
            if state in operations.ON_THE_WAY:
                self._say(f"{self.pod.slice.name} is {state}, waiting{': ' + said if said else ''}")
                time.sleep(self.pod.poll)
            elif state not in operations.READY:
                self._recreate(f"is {state}{': ' + said if said else ''}")
            else:
                code = self._look()
                if code is not None:
                    return code

    def _look(self) -> int | None:
        """One look at a slice that is there; the exit status, or None to go on."""
        try:
            statuses = self.pod.statuses(self.run)
            self._show_new_lines()
        except gcloud.CloudError as error:
            # It may be this machine's network: a run that goes on unseen is left alone.
            self._say(f"the workers do not answer, trying again: {error}")
            time.sleep(self.pod.poll)
            return None
        silent = [str(worker) for worker, status in statuses.items() if status == "silent"]
        if silent:
            self._say(f"worker {', '.join(silent)} does not answer; looking again")
        verdict = decide(statuses)
        if verdict.action == "done":
            return self._done()
        if verdict.action == "wait" or (verdict.action != "mistake" and not self._settled(verdict)):
            time.sleep(self.pod.poll)
            return None
        return self._act(verdict)

    def _settled(self, verdict: Verdict) -> bool:
        """Whether the others had their time to end too, and the cloud to say that the slice is lost."""
        if self._first_end is None:
            self._first_end = time.monotonic()
            self._say(f"worker {verdict.worker} ended with status {verdict.code}; looking at the others and the slice")
            return False
        if verdict.action == "resume" and verdict.ended:
            return True
        return time.monotonic() - self._first_end >= self.settle

    def _act(self, verdict: Verdict) -> int | None:
        self._first_end = None
        name, worker = self.pod.slice.name, verdict.worker
        self.pod.record.event("ended", run=self.run, action=verdict.action, worker=worker, code=verdict.code)
        if not verdict.ended:
            self.pod.stop(self.run)
        if verdict.action in ("mistake", "failed"):
            lines = self.pod.tail(self.run, worker)
            said = [line for line in lines if line.startswith("nuwaxl_jax:")][-1:] or lines
            why = "a mistake in the input" if verdict.action == "mistake" else f"failed with status {verdict.code}"
            gcloud.say(f"worker {worker} on {name}: {why}")
            print("\n".join(said), flush=True)
            return MISTAKE if verdict.action == "mistake" else 1
        if verdict.action == "crashed":
            self._crashes += 1
            if self._crashes > MAX_CRASHES:
                print("\n".join(self.pod.tail(self.run, worker)), flush=True)
                raise operations.Trouble(f"worker {worker} on {name} crashed {self._crashes} times ({verdict.code})")
        self._relaunched += 1
        if self._relaunched > self.relaunches:
            raise operations.Trouble(
                f"{name}: the run was started again {self.relaunches} times; --relaunches allows more"
            )
        gcloud.say(f"{verdict.action} ({verdict.code}); starting again, {self._relaunched} of {self.relaunches}")
        try:
            self._start()
        except (operations.Trouble, gcloud.CloudError) as error:
            gcloud.say(f"it does not start again: {error}")
            if isinstance(error, operations.Trouble):  # some worker will not: others may
                self._recreate("does not start the run again")
        return None

    def _start(self) -> None:
        run = new_name()
        self.pod.start(run)
        self.run, self._offset, self._line_at = run, 0, time.monotonic()

    def _recreate(self, why: str) -> None:
        """Deletes the slice, and creates it again until the run is started on it."""
        name = self.pod.slice.name
        self._first_end = None
        while True:
            self._recreated += 1
            self.pod.record.event("lost", why=why, number=self._recreated)
            if self._recreated > self.recreations:
                raise operations.Trouble(
                    f"{name} {why}; it was created again {self.recreations} times, --recreations allows more"
                )
            gcloud.say(f"{name} {why}; creating it again, {self._recreated} of {self.recreations}")
            self.pod.delete(attempts=20)
            self._create()
            try:
                self.pod.wait_until_ready()
                self.pod.setup()
                self.pod.preflight()
                self._start()
                return
            except operations.Trouble as error:
                why = f"is of no use ({error})"
            except gcloud.CloudError as error:
                if error.kind in ("login", "project", "ssh"):
                    raise
                why = f"does not answer ({error})"

    def _create(self) -> None:
        """Tries until the cloud has one: what was just taken back is seldom free at once."""
        start = time.monotonic()
        while True:
            try:
                return self.pod.create()
            except gcloud.CloudError as error:
                if error.kind in ("login", "project", "zone"):
                    raise
                if time.monotonic() - start > self.pod.patience:
                    raise operations.Trouble(f"no slice within {self.pod.patience:.0f} s: {error}") from error
                self._say(f"not yet: {error}")
                time.sleep(self.pod.poll)

    def _done(self) -> int:
        self._show_new_lines()
        self.pod.record.event("done", run=self.run)
        gcloud.say(f"{self.pod.slice.name}: done")
        if self.delete_when_done:
            self.pod.delete()
            gcloud.say(f"{self.pod.slice.name}: deleted")
        return 0

    def _show_new_lines(self) -> None:
        new = self.pod.log(self.run, self._offset)
        if new:
            self._offset += len(new)
            self._line_at = time.monotonic()
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()
        elif time.monotonic() - self._line_at > self.quiet_after:
            gcloud.say(f"worker 0 has said nothing for {(time.monotonic() - self._line_at) / 60:.0f} minutes")
            self._line_at = time.monotonic()

    def _say(self, line: str) -> None:
        """Once in a row."""
        if line != self._said:
            gcloud.say(line)
        self._said = line
