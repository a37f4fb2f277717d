"""Which checkpoints stay: the newest, every so many steps, every so many hours, the best; and the metric of 'best'."""

import dataclasses
import json
import math
import os
from typing import Any, Iterable, Mapping

from nuwaxl_jax import files
from nuwaxl_jax.training import step_folders

_FILE = "evaluations.json"


@dataclasses.dataclass(frozen=True)
class Keep:
    """What is kept beside the newest; each rule keeps its own, and a step that any rule keeps stays."""

    newest: int = 2
    every: int = 0  # steps: multiples of it stay for ever; 0 = none
    hours: float = 0.0  # one checkpoint in so many hours stays for ever; 0 = none
    best: int = 0  # so many of the best by `metric`
    metric: str = "loss"  # the lowest is best; '-name': the highest

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Keep":
        """From config.train.<stage>."""
        return cls(
            newest=settings["keep"],
            every=settings["keep_every"],
            hours=settings["keep_hours"],
            best=settings["keep_best"],
            metric=settings["best_metric"],
        )


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint as retention sees it: its step, when it was saved (seconds since 1970), what was measured."""

    step: int
    time: float
    metrics: Mapping[str, float]


def score(saved: Saved, metric: str) -> float | None:
    """Lower is better; None where the metric was not measured or is not finite."""
    value = saved.metrics.get(metric.removeprefix("-"))
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return -value if metric.startswith("-") else value


def best(checkpoints: Iterable[Saved], keep: Keep) -> list[int]:
    """The `keep.best` best steps, best first; of equal ones the later."""
    scored = [(score(c, keep.metric), -c.step) for c in checkpoints if score(c, keep.metric) is not None]
    return [-step for _, step in sorted(scored)[: keep.best]]


def kept(checkpoints: Iterable[Saved], keep: Keep) -> set[int]:
    """The steps that stay; the newest always does."""
    ordered = sorted(checkpoints, key=lambda c: c.step)
    stay = {c.step for c in ordered[-max(1, keep.newest) :]} | set(best(ordered, keep))
    if keep.every > 0:
        stay |= {c.step for c in ordered if c.step % keep.every == 0}
    if keep.hours > 0:
        last = -math.inf
        for c in ordered:
            if c.time >= last + 3600 * keep.hours:
                stay.add(c.step)
                last = c.time
    return stay


class Measured:
    """What was measured on the checkpoints of a stage: as they were saved (their meta), and after that.

    The latter lies in <checkpoints>/evaluations.json, {step: {name: value}}; a lost file costs no checkpoint.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self._path = os.path.join(directory, _FILE)
        self._later: dict[str, dict[str, float]] = {}
        try:
            with open(self._path, encoding="utf-8") as file:
                self._later = {step: dict(values) for step, values in json.load(file).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds what was measured on `step`, and forgets steps that are gone."""
        values = {name: float(value) for name, value in values.items()}
        if values:
            there = {str(s) for s in step_folders.steps(self._directory)}
            later = {s: v for s, v in self._later.items() if s in there}
            self._later = {**later, str(step): {**self._later.get(str(step), {}), **values}}
            files.write_json(self._path, self._later)

    def saved(self, step: int) -> Saved:
        """A step; one whose meta cannot be read was saved when its folder was, and only has later metrics."""
        path = step_folders.path_of(self._directory, step)
        try:
            meta = step_folders.read_meta(path)
        except (OSError, ValueError):
            meta = {}
        metrics = {**(meta.get("metrics") or {}), **self._later.get(str(step), {})}
        return Saved(step, meta.get("time") or os.stat(path).st_mtime, metrics)


class SinceLastSave:
    """The training log's means between two checkpoints, each log interval weighted by its steps.

    Intervals and checkpoints need not coincide: sums run from the start, and a checkpoint takes what was added since
    the one before it.
    """

    def __init__(self, step: int):
        self._line = step  # of the last log line
        self._sums: dict[str, tuple[float, int]] = {}  # name -> (sum over steps, steps), up to the last log line
        self._saved: dict[str, tuple[float, int]] = {}  # the same, up to the last checkpoint

    def state(self) -> dict[str, Any]:
        """JSON, for a checkpoint."""
        return {"line": self._line, "sums": self._sums, "saved": self._saved}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state()`."""
        self._line = state["line"]
        self._sums = {name: tuple(value) for name, value in state["sums"].items()}
        self._saved = {name: tuple(value) for name, value in state["saved"].items()}

    def _with(self, step: int, means: Mapping[str, float]) -> dict[str, tuple[float, int]]:
        count, sums = step - self._line, dict(self._sums)
        for name, mean in means.items() if count > 0 else ():
            total, steps = sums.get(name, (0.0, 0))
            sums[name] = (total + mean * count, steps + count)
        return sums

    def line(self, step: int, means: Mapping[str, float]) -> None:
        """Adds a log line: `means` over the steps since the line before."""
        self._sums, self._line = self._with(step, means), step

    def saved(self, step: int, means: Mapping[str, float]) -> dict[str, float]:
        """{name: mean since the last checkpoint}; `means` over the steps since the last log line."""
        sums, out = self._with(step, means), {}
        for name, (total, steps) in sums.items():
            before, so_far = self._saved.get(name, (0.0, 0))
            if steps > so_far:
                out[name] = (total - before) / (steps - so_far)
        self._saved = sums
        return out
