"""What a run says of itself while it trains: means of an interval, speed, time left; and that it has gone wrong.

Metrics of the steps are joined on the device. The host waits for them once a log line, or before a checkpoint.
"""

import json
from typing import Any, Callable

import jax
import numpy as np

from nuwaxl_jax.training import health
from nuwaxl_jax.training import metrics

_merge = jax.jit(metrics.merge)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Log:
    """What happened since the last line: metrics on the device, time, and which episodes each step saw."""

    def __init__(
        self,
        stage: str,
        num_steps: int,
        writer: metrics.MetricWriter,
        step: int,
        max_skipped: int = 0,
        record: str | None = None,
        *,
        clock: health.Clock,
        rates: Callable[[int, dict[str, float]], dict[str, float]],
    ):
        """Begins at `step`, kept as `began`.

        Args:
          stage, num_steps: named in the lines.
          writer: of the files.
          step: finished so far.
          max_skipped: steps that may be skipped, for a loss or gradient that is not finite, since `forgive`.
          record: a .jsonl that gets a line for each of them, with the episodes it saw.
          clock: of the stage.
          rates: (steps, their seconds by kind) -> numbers of the line; `health.rates`.
        """
        self._stage, self._num_steps, self._writer = stage, num_steps, writer
        self._max_skipped, self._record = max_skipped, record
        self._skipped = self._seen = 0  # since `forgive`; of them in this interval
        self._written: set[int] = set()
        self._values: dict[str, Any] | None = None
        self._episodes: dict[int, Any] = {}
        self._clock, self._rates = clock, rates
        self.began = step
        self._since, self._before = step, clock.read()

    def add(self, step: int, values: dict[str, Any], episodes: Any) -> None:
        """Joins the metrics of one step; no transfer."""
        self._values = values if self._values is None else _merge(self._values, values)
        self._episodes[step] = episodes

    def state(self) -> dict[str, Any]:
        """JSON: what has been joined since the last line, for a checkpoint between two lines; waits for the device."""
        return {} if self._values is None else metrics.to_json(self._values)

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on from `state()`: the next line is of all its steps, those before the restart too."""
        self._values = metrics.of_json(state) if state else None
        means, bad = metrics.to_host(self._values or {})
        self._seen, self._written = int(means.get("skipped_steps", 0)), set(bad)

    def check(self) -> dict[str, float]:
        """Waits for the device; the means so far.

        Raises:
          FloatingPointError: more steps were skipped than may be, naming the first of the interval.
        """
        if self._values is None:
            return {}
        means, bad = metrics.to_host(self._values)
        count = int(means.get("skipped_steps", 0))
        self._skipped, self._seen = self._skipped + count - self._seen, count
        for step in bad:
            self._note(step)
        if self._skipped > self._max_skipped:
            raise FloatingPointError(
                f"{self._stage}: the loss or its gradient is not finite at step {bad[0]}{self._of(bad[0])}; "
                f"{self._skipped} steps since the last checkpoint were skipped, train.{self._stage}.max_skipped is "
                f"{self._max_skipped}. What is saved is good; go on in a new workdir with a lower learning_rate or "
                "grad_clip, or float32"
            )
        return means

    def forgive(self) -> None:
        """Skipped steps count anew from here: the state has been saved."""
        self._skipped = 0

    def _of(self, step: int) -> str:
        episodes = self._episodes.get(step)
        return "" if episodes is None else f" (episodes {np.asarray(episodes).tolist()})"

    def _note(self, step: int) -> None:
        """One line on the screen and one in the file, once for each skipped step."""
        if step in self._written:
            return
        self._written.add(step)
        metrics.warn(f"{self._stage}: step {step} skipped, its loss or gradient is not finite{self._of(step)}")
        if self._record is not None and jax.process_index() == 0:
            episodes = self._episodes.get(step)
            line = {"step": step, "episodes": None if episodes is None else np.asarray(episodes).tolist()}
            with open(self._record, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def write(self, step: int) -> dict[str, float]:
        """One line, and the files; waits for the device."""
        means = self.check()
        seconds = self._clock.read()
        spent = {kind: seconds[kind] - self._before[kind] for kind in seconds}
        speed = self._rates(step - self._since, spent) | {"goodput": self._clock.goodput()}
        rate = speed["steps_per_second"]
        left = (self._num_steps - step) / rate if rate > 0 else 0.0
        self._writer.scalars(step, means | speed)
        shown = "  ".join(f"{name} {means[name]:.4g}" for name in sorted(means) if name not in ("loss", "param_norm"))
        metrics.say(
            f"{self._stage} step {step}/{self._num_steps}  loss {means.get('loss', float('nan')):.5f}  "
            f"{_health(speed)}  ETA {_clock(left)}  {shown}"
        )
        self._values, self._episodes, self._seen = None, {}, 0
        self._since, self._before = step, seconds
        self._clock.write(step)
        return means


def _health(speed: dict[str, float]) -> str:
    """'2.1 steps/s (33.6 examples/s)  MFU 41 %  data 3 %  goodput 93 %'."""
    parts = [f"{speed['steps_per_second']:.3g} steps/s ({speed['examples_per_second']:.3g} examples/s)"]
    if "mfu" in speed:
        parts.append(f"MFU {100 * speed['mfu']:.3g} %")
    elif "model_tflops_per_second" in speed:
        parts.append(f"{speed['model_tflops_per_second']:.3g} model TFLOP/s a device")
    return "  ".join([*parts, f"data {100 * speed['data_wait']:.0f} %", f"goodput {100 * speed['goodput']:.0f} %"])
