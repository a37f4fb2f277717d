"""What a run says of itself while it trains: means of an interval, speed, time left; and that it has gone wrong.

Metrics of the steps are joined on the device. The host waits for them once a log line, or before a checkpoint.
"""

import contextlib
import time
from typing import Any, Iterator

import jax
import numpy as np

from nuwaxl_jax.training import metrics

_merge = jax.jit(metrics.merge)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Log:
    """What happened since the last line: metrics on the device, time, and which episodes each step saw."""

    def __init__(self, stage: str, num_steps: int, writer: metrics.MetricWriter, step: int):
        self._stage, self._num_steps, self._writer = stage, num_steps, writer
        self._values: dict[str, Any] | None = None
        self._episodes: dict[int, Any] = {}
        self._since, self._start = step, time.monotonic()
        self._paused = 0.0

    def add(self, step: int, values: dict[str, Any], episodes: Any) -> None:
        """Joins the metrics of one step; no transfer."""
        self._values = values if self._values is None else _merge(self._values, values)
        self._episodes[step] = episodes

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside is not training time."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def check(self) -> dict[str, float]:
        """Waits for the device; the means so far.

        Raises:
          FloatingPointError: a loss or gradient was not finite, naming the step and its episodes.
        """
        if self._values is None:
            return {}
        means, bad = metrics.to_host(self._values)
        if bad is not None:
            episodes = self._episodes.get(bad)
            seen = "" if episodes is None else f" (episodes {np.asarray(episodes).tolist()})"
            raise FloatingPointError(
                f"{self._stage}: the loss or its gradient is not finite at step {bad}{seen}; nothing was saved since. "
                f"Resume with a lower train.{self._stage}.learning_rate or grad_clip in a new workdir, or float32."
            )
        return means

    def write(self, step: int) -> dict[str, float]:
        """One line, and the files; waits for the device."""
        means = self.check()
        seconds = max(time.monotonic() - self._start - self._paused, 1e-9)
        rate = (step - self._since) / seconds
        left = (self._num_steps - step) / rate if rate > 0 else 0.0
        means["steps_per_second"] = rate
        self._writer.scalars(step, means)
        shown = "  ".join(
            f"{name} {means[name]:.4g}"
            for name in sorted(means)
            if name not in ("loss", "steps_per_second", "param_norm")
        )
        metrics.say(
            f"{self._stage} step {step}/{self._num_steps}  loss {means.get('loss', float('nan')):.5f}  "
            f"{rate:.3g} steps/s  ETA {_clock(left)}  {shown}"
        )
        self._values, self._episodes = None, {}
        self._since, self._start, self._paused = step, time.monotonic(), 0.0
        return means
