"""Being told to stop: SIGTERM (a machine is taken back) and SIGINT end a job at the next step, saved and resumable.

Exit status 42 tells a watcher to start the same command again. Of several processes one may be told alone, and all must
leave together. jax's preemption service has them agree on a count that is ahead of all, the most that any has asked
for, plus one: where they work in step they count steps (`catch`), where each works by itself quarter seconds (`apart`).
"""

import contextlib
import os
import signal
import sys
import time
from typing import Any, Callable, Iterator

import jax
from jax.experimental import multihost_utils
import numpy as np

from nuwaxl_jax import leaving
from nuwaxl_jax.training import metrics

RESUME_ME = leaving.RESUME_ME
_TICK = 0.25  # seconds


class Interrupt:
    """Whether this job was told to stop; on many hosts they agree on the step.

    Attributes:
      count: the last that was asked for.
    """

    def __init__(self, follows: str = "stopping after this step; a checkpoint follows"):
        self._follows = follows
        self._told = False
        self._agreed = False
        self.count = 0

    def tell(self, signum: int, frame: Any) -> None:
        """A signal handler. The second signal ends the process at once."""
        del frame
        if self._told:
            raise SystemExit(128 + signum)
        self._told = True
        line = f"{self._follows} (a second signal stops at once)"
        try:
            print(line, file=sys.stderr, flush=True)
        except RuntimeError:  # the signal came while something was printed
            os.write(2, f"{line}\n".encode())

    def asked(self) -> bool:
        """Whether to stop, now and ever after. Every process must ask equally often: they agree on the count."""
        self.count += 1
        if jax.process_count() > 1:  # the service says so at one count alone, which may be a stage's last step
            self._agreed = self._agreed or bool(multihost_utils.reached_preemption_sync_point(self.count))
            return self._agreed
        return self._told

    def asked_apart(self, count: int) -> bool:
        """`asked` of processes that are not in step: each asks for all up to `count`, which grows with time on all."""
        if jax.process_count() > 1:
            first, self.count = self.count + 1, max(self.count, count)
            asked = [multihost_utils.reached_preemption_sync_point(n) for n in range(first, self.count + 1)]
            self._told = self._told or self._agreed or any(asked)
        return self._told

    def leave_if_asked(self, where: str) -> None:
        """Exits with status 42 where nothing is left to save."""
        if self.asked():
            metrics.say(f"{where}: interrupted before its first step; the same command resumes")
            raise SystemExit(RESUME_ME)

    def leave(self, line: str, say: Callable[[str], None] = metrics.say) -> None:
        """Says `line` and exits with status 42, if told to stop: for work that keeps itself as it is done."""
        if self.asked():
            say(line)
            raise SystemExit(RESUME_ME)


@contextlib.contextmanager
def catch(follows: str = "") -> Iterator[Interrupt]:
    """Catches SIGTERM and SIGINT inside; on many hosts SIGTERM belongs to jax's preemption service.

    follows: said when the signal comes; '' is what a training run does.
    """
    interrupt = Interrupt(follows) if follows else Interrupt()
    signals = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, interrupt.tell) for number in signals}
    except ValueError:  # not the main thread: whoever runs us handles signals
        before = {}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Told(BaseException):
    """Leaves work that is done `apart`."""


@contextlib.contextmanager
def apart(
    line: str, follows: str = "", say: Callable[[str], None] = metrics.say, interrupt: Interrupt | None = None
) -> Iterator[Callable[[], None]]:
    """For work that keeps itself, and that each process does its share of: yields stop(), to be called often.

    Where any process was told to stop, all say `line` and exit with status 42, at their next stop(); who has no work
    left waits for the others at the end.

    Args:
      line, say: said when leaving.
      follows: said when the signal comes.
      interrupt: that catches the signals already; None catches them here.
    """
    several, told = jax.process_count() > 1, False
    with catch(follows) if interrupt is None else contextlib.nullcontext(interrupt) as caught:
        if several:
            multihost_utils.sync_global_devices(line)
        since, before = time.monotonic(), caught.count

        def stop() -> None:
            if caught.asked_apart(before + int((time.monotonic() - since) / _TICK)):
                raise _Told

        try:
            yield stop
        except _Told:
            told = True
        if several:  # some may have finished before they could be told
            told = bool(np.any(multihost_utils.process_allgather(np.bool_(told))))
        if told:
            say(line)
            raise SystemExit(RESUME_ME)
