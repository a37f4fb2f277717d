"""Where the time of a stage goes, over all its runs: goodput, waiting for data, model FLOPs utilisation.

Every second since a stage was first started is of one kind:

    start   restoring and compiling, before the first step
    step    steps, as long as their work is kept
    data    the device had nothing to do and the next batch was not read (an upper bound: the whole reading counts)
    save    the loop stood still for a checkpoint
    eval    evaluations and samples
    lost    steps made again, because the run ended after its last checkpoint
    away    between the end of a run and the start of the next

goodput = step / all of them. <workdir>/<stage>/health.json holds the seconds, so that a resumed run goes on counting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from typing import Any, Iterator

import jax

from nuwaxl_jax import files
from nuwaxl_jax import profiling

KINDS = ("start", "step", "data", "save", "eval", "lost", "away")


@dataclasses.dataclass(frozen=True)
class Watch:
    """What to watch beside the training.

    Attributes:
      peak_flops: of a device, operations a second; None: not known, and no MFU is given.
      profile: steps to trace.
      began: when this run was started, seconds since 1970; None is now.
    """

    peak_flops: float | None = None
    profile: profiling.Window | None = None
    began: float | None = None


class Clock:
    """The seconds of one stage by kind; `step` unless told otherwise."""

    def __init__(self, path: str | None, began: float | None = None):
        """path: of health.json, None on a process that writes none. began: of this run, seconds since 1970."""
        self._path = path
        before = _read(path)
        began = time.time() if began is None else began
        self.seconds = {kind: float(before.get("seconds", {}).get(kind, 0.0)) for kind in KINDS}
        self._first = before.get("began", began)
        self._runs = int(before.get("runs", 0)) + 1
        self._steps = int(before.get("steps", 0))  # timed as `step`, once each
        self._reached = int(before.get("step", 0))
        if before:
            self.seconds["away"] += max(0.0, began - before["time"])
        self._kind, self._last = "start", time.monotonic() - max(0.0, time.time() - began)

    def begin(self, step: int) -> None:
        """The first step follows; `step` are finished. Those that an earlier run made beyond are lost."""
        again = max(0, self._reached - step)
        if again and self._steps:
            lost = self.seconds["step"] * min(1.0, again / self._steps)
            self.seconds["step"] -= lost
            self.seconds["lost"] += lost
            self._steps = max(0, self._steps - again)
        self._reached = step
        self._turn("step")

    def _turn(self, kind: str) -> None:
        now = time.monotonic()
        self.seconds[self._kind] += now - self._last
        self._kind, self._last = kind, now

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Time inside is of `kind`."""
        before = self._kind
        self._turn(kind)
        try:
            yield
        finally:
            self._turn(before)

    def reading(self, read: Any, idle: Any) -> None:
        """Calls read(); its time counts as `data` where idle() says afterwards that the device has nothing to do."""
        start = time.monotonic()
        read()
        seconds = time.monotonic() - start
        if idle():
            self._turn(self._kind)
            moved = min(seconds, self.seconds[self._kind])
            self.seconds[self._kind] -= moved
            self.seconds["data"] += moved

    def read(self) -> dict[str, float]:
        """Seconds by kind until now."""
        self._turn(self._kind)
        return dict(self.seconds)

    def goodput(self) -> float:
        """The part of all time since the stage was first started that made steps which were kept."""
        seconds = self.read()
        return seconds["step"] / max(sum(seconds.values()), 1e-9)

    def write(self, step: int) -> None:
        """Keeps it in health.json; `step` are finished."""
        self._steps += max(0, step - self._reached)
        self._reached = max(self._reached, step)
        if self._path is None:
            return
        seconds = {kind: round(value, 3) for kind, value in self.read().items()}
        record = dict(began=self._first, time=time.time(), runs=self._runs, step=step, steps=self._steps)
        files.write_json(self._path, record | dict(goodput=round(self.goodput(), 4), seconds=seconds))


def _read(path: str | None) -> dict[str, Any]:
    """What an earlier run has written; nothing where there is none, or nothing that can be used."""
    if path is None or not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        float(found["time"]), float(found["began"]), {k: float(v) for k, v in found["seconds"].items()}
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_idle(values: Any) -> bool:
    """Whether the devices have made `values` (of the last step; None before the first)."""
    leaves = jax.tree.leaves(values)
    return not leaves or bool(leaves[0].is_ready())


def rates(
    steps: int, seconds: dict[str, float], *, examples: int, flops: float | None, peak: float | None, devices: int
) -> dict[str, float]:
    """What an interval says of speed.

    Args:
      steps: made in it.
      seconds: by kind, in it.
      examples: a step.
      flops: of the model, a step on all devices (`cost.model_flops`).
      peak: of a device, operations a second.

    Returns:
      steps_per_second, seconds_per_step and examples_per_second while training (waiting for data included);
      data_wait, the part of that; save_seconds and eval_seconds where there were any; model_tflops_per_second of one
      device; mfu where the peak is known.
    """
    training = max(seconds["step"] + seconds["data"], 1e-9)
    out = dict(
        steps_per_second=steps / training,
        seconds_per_step=training / max(steps, 1),
        examples_per_second=steps * examples / training,
        data_wait=seconds["data"] / training,
    )
    for kind in ("save", "eval"):
        if seconds[kind] > 1e-3:
            out[f"{kind}_seconds"] = seconds[kind]
    if flops:
        speed = flops * steps / training / devices
        out["model_tflops_per_second"] = speed / 1e12
        if peak:
            out["mfu"] = speed / peak
    return out
