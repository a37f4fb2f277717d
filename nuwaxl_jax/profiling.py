"""Traces of the profiler: of some steps of training or some device calls of sampling, by --profile=FIRST:COUNT.

The folder opens in TensorBoard's profile plugin, in XProf, or (the .json.gz in it) in Perfetto.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Window:
    """Units `first` to `first + count - 1` of this process, counted from 1."""

    first: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Window | None":
        """Of 'FIRST:COUNT'; None of ''.

        Raises:
          ValueError: anything else.
        """
        if not text:
            return None
        match = re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,3})", text)
        if not match:
            raise ValueError(f"--profile is {text!r}; give FIRST:COUNT, steps counted from 1, such as 20:5")
        return cls(int(match.group(1)), int(match.group(2)))


class Tracer:
    """Starts and stops the trace; nothing where there is no window."""

    def __init__(self, window: Window | None, folder: str):
        self._window, self._folder = window, folder
        self._on = False
        self.done = False

    def before(self, number: int) -> None:
        """Before unit `number` is started."""
        if self._window is not None and not self.done and not self._on and number == self._window.first:
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, number: int, made: Any = None) -> str:
        """After unit `number`; `made` is waited for at the end of the window. A line where the trace is written."""
        if not self._on or number < self._window.first + self._window.count - 1:
            return ""
        jax.block_until_ready(made)
        self.close()
        return f"profile of {self._window.count} from {self._window.first} on: {self._folder}"

    def close(self) -> None:
        """Writes what there is."""
        if self._on:
            self._on, self.done = False, True
            jax.profiler.stop_trace()
