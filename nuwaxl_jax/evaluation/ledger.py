"""Results of single items, kept as they come: an evaluation that was cut short goes on where it stopped.

Several processes do each their share and read one another's results in the folder where they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import io
import json
import os
import pathlib
import time
from typing import Any, Callable

import jax
import numpy as np

from nuwaxl_jax import files

_PAUSE = 0.2  # seconds from look to look at what other processes have done


def is_mine(number: int) -> bool:
    """Whether this process does item `number`. They are dealt out in rounds, from another process on each time."""
    count = jax.process_count()
    return (number + number // count) % count == jax.process_index()


class Ledger:
    """Results of single stories, `<folder>/<hash of the protocol>/<way>_<story>.json`; of other things likewise."""

    def __init__(self, folder: str | os.PathLike, protocol: dict[str, Any]):
        text = json.dumps(protocol, sort_keys=True)
        self.folder = pathlib.Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.folder / "protocol.json", protocol, shared=True)

    def _path(self, way: str, story: int) -> pathlib.Path:
        return self.folder / f"{way}_{story:04d}.json"

    def _arrays_path(self, way: str, story: int) -> pathlib.Path:
        return self.folder / f"{way}_{story:04d}.npz"

    def read(self, way: str, story: int) -> dict[str, Any] | None:
        """The saved result, None where there is none."""
        path = self._path(way, story)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def arrays(self, way: str, story: int) -> dict[str, np.ndarray]:
        """The arrays saved with a result."""
        with np.load(self._arrays_path(way, story), allow_pickle=False) as stored:
            return dict(stored)

    def write(
        self, way: str, story: int, result: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Saves a result, whole or not at all, and arrays that belong to it before."""
        if arrays is not None:
            data = io.BytesIO()
            np.savez(data, **arrays)
            files.write_bytes(self._arrays_path(way, story), data.getvalue(), shared=True)
        files.write_json(self._path(way, story), result, shared=True)  # evaluations may share what they know of videos

    def collect(self, way: str, count: int, stop: Callable[[], None]) -> list[dict[str, Any]]:
        """Results 0 .. count - 1, when all are there; `stop` is called while others make them, and may raise."""
        while not all(self._path(way, story).exists() for story in range(count)):
            stop()
            time.sleep(_PAUSE)
        return [self.read(way, story) for story in range(count)]
