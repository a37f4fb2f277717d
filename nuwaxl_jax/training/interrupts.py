"""Being told to stop: SIGTERM (a machine is taken back) and SIGINT end a job at the next step, saved and resumable.

Exit status 42 tells a watcher to start the same command again.
"""

import contextlib
import signal
import sys
from typing import Any, Callable, Iterator

import jax
from jax.experimental import multihost_utils

from nuwaxl_jax.training import metrics

RESUME_ME = 42


class Interrupt:
    """Whether this job was told to stop; on many hosts they agree on the step."""

    def __init__(self, follows: str = "stopping after this step; a checkpoint follows"):
        self._follows = follows
        self._told = False
        self._count = 0

    def tell(self, signum: int, frame: Any) -> None:
        """A signal handler. The second signal ends the process at once."""
        del frame
        if self._told:
            raise SystemExit(128 + signum)
        self._told = True
        print(f"{self._follows} (a second signal stops at once)", file=sys.stderr, flush=True)

    def asked(self) -> bool:
        """Whether to stop now. Every process must ask equally often: the count is what they agree on."""
        self._count += 1
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(self._count))
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
