"""Latents of a video on disk as they are made, and the book of which segments are: a killed run goes on.

    FOLDER/key.json       what the latents follow from
    FOLDER/latents.npy    float32 [V, U, h, w, c], the frames of `FrameLatents`, mapped into memory
    FOLDER/ledger.jsonl   a line a device call: {"level", "attempt", "made": [[video, segment, CRC-32 of its new
                          frames], ..]}; {"redo": [level, segment], "attempt"}: these and all below are to be made
                          again; {"finished": true}: the video has been written

A line is written after the frames it tells of. What a segment becomes follows from its key and its given frames alone,
so making one again that was lost or damaged gives the same bits, and those below it stay valid. Latents are mapped, not
held, so memory does not grow with the video.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
import json
import os
import pathlib
from typing import Any
import zlib

import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax.hierarchy import frames as frames_lib
from nuwaxl_jax.hierarchy import plan as plan_lib

KEY, LATENTS, LEDGER = "key.json", "latents.npy", "ledger.jsonl"


class LedgerError(ValueError):
    """Latents that cannot be used as asked: one line."""


class StoredLatents(frames_lib.FrameLatents):
    """`FrameLatents` in a folder. One process at a time writes it.

    Attributes:
      folder: where they are.
      found: segments that an earlier run had made, of each level.
      damaged: segments whose frames are not what was written; they are made again.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        key: dict[str, Any],
        num_videos: int,
        plans: Sequence[plan_lib.LevelPlan],
        latent_shape: Sequence[int],
    ):
        """Opens the folder, or makes it.

        Args:
          folder: of these latents alone.
          key: JSON values that the latents follow from; a folder of another key is emptied first.
          num_videos, plans, latent_shape: as of `FrameLatents`.

        Raises:
          LedgerError: the folder cannot be written.
        """
        self.folder, self._plans = pathlib.Path(folder), tuple(plans)
        key = json.loads(json.dumps(key))
        super().__init__(num_videos, plans, latent_shape)
        shape = self.array.shape
        self._made: dict[tuple[int, int, int], tuple[int, int]] = {}  # (level, video, segment) -> (attempt, crc)
        self._unfinished: list[int] | None = None  # the redo whose video has not been written
        self._attempt: dict[tuple[int, int], int] = {}  # (level, segment) -> attempt, where it is not 0
        try:
            if not self._is(key, shape):
                self._empty(key, shape)
            self.array = np.load(self.folder / LATENTS, mmap_mode="r+", allow_pickle=False)
            self._replay()
        except OSError as error:
            raise LedgerError(
                f"{folder}: cannot be written ({error.strerror or error}); give another --workdir"
            ) from error
        self.damaged = self._verify()
        self.found = [sum(level == plan.level for level, _, _ in self._made) for plan in self._plans]
        _mark(self, self._plans, self._made)

    def to_make(self, plan: plan_lib.LevelPlan) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """The segments of a level that are not made, by attempt."""
        return _left(self.num_videos, plan, self._made, self._attempt)

    def note(self, plan: plan_lib.LevelPlan, video: np.ndarray, segment: np.ndarray, attempt: int) -> None:
        """Writes down that these segments are made; their frames have been written."""
        made = []
        for v, s in zip(video.tolist(), segment.tolist()):
            crc = self._crc(plan, v, s)
            self._made[plan.level, v, s] = attempt, crc
            made.append([v, s, crc])
        self.array.flush()
        self._append({"level": plan.level, "attempt": attempt, "made": made})

    def redo(self, level: int, segment: int) -> int:
        """Has a segment, and all that follows from it, made again with other noise; returns how many are to be made.

        Until the video is finished, asking once more goes on with the same attempt.

        Raises:
          LedgerError: no such segment, or it has not been made.
        """
        if not 0 <= level < len(self._plans) or not 0 <= segment < self._plans[level].num_segments:
            counts = ", ".join(f"{plan.level}.0 to {plan.level}.{plan.num_segments - 1}" for plan in self._plans)
            raise LedgerError(f"--redo: there is no segment {level}.{segment}; there are {counts}")
        if self._unfinished == [level, segment]:
            return sum(len(videos) for plan in self._plans for _, videos, _ in self.to_make(plan))
        if (level, 0, segment) not in self._made:
            raise LedgerError(f"--redo: segment {level}.{segment} has not been made; run without --redo first")
        line = {"redo": [level, segment], "attempt": 1 + max(self._attempt.values(), default=0)}
        self._append(line)
        return self._forget(line)

    def state(self) -> dict[str, Any]:
        """Which segments are made, as JSON: what `ToldLatents` is told on the other hosts."""
        return dict(made=sorted(map(list, self._made)), attempts=[[*item, n] for item, n in self._attempt.items()])

    def finish(self) -> None:
        """Writes down that the video of these latents has been written."""
        if self._unfinished:
            self._append({"finished": True})
            self._unfinished = None

    def _forget(self, line: dict[str, Any]) -> int:
        self._unfinished = line["redo"]
        gone = _below(self._plans, *line["redo"])
        for level, segment in gone:
            self._attempt[level, segment] = line["attempt"]
            for video in range(self.num_videos):
                self._made.pop((level, video, segment), None)
        return len(gone)

    def _is(self, key: dict[str, Any], shape: tuple[int, ...]) -> bool:
        try:
            if json.loads((self.folder / KEY).read_text(encoding="utf-8")) != key:
                return False
            there = np.load(self.folder / LATENTS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return False
        return there.shape == shape and there.dtype == np.float32

    def _empty(self, key: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (KEY, LEDGER, LATENTS):  # the key first: without it the rest is nothing
            (self.folder / name).unlink(missing_ok=True)
        np.lib.format.open_memmap(self.folder / LATENTS, mode="w+", dtype=np.float32, shape=shape).flush()
        files.write_json(self.folder / KEY, key)

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with open(self.folder / LEDGER, "ab") as file:
                file.write((json.dumps(line) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(f"{self.folder}: cannot be written ({error.strerror}); what is made is kept") from error

    def _replay(self) -> None:
        path = self.folder / LEDGER
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # what follows the last line's end was cut off by a kill
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for text in whole.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # damaged: its segments are made again
            if "redo" in line:
                self._forget(line)
            elif "finished" in line:
                self._unfinished = None
            for video, segment, crc in line.get("made", ()):
                self._made[line["level"], video, segment] = line["attempt"], crc

    def _verify(self) -> int:
        """Drops the segments whose frames are not as written; how many."""
        by_level = {plan.level: plan for plan in self._plans}
        wrong = [
            (level, video, segment)
            for (level, video, segment), (_, crc) in self._made.items()
            if self._crc(by_level[level], video, segment) != crc
        ]
        for item in wrong:
            del self._made[item]
        return len(wrong)

    def _crc(self, plan: plan_lib.LevelPlan, video: int, segment: int) -> int:
        new = plan.frame_index[segment][~plan.given[segment]]
        return zlib.crc32(np.ascontiguousarray(self.array[video, self._positions(new)]).tobytes())


class ToldLatents(frames_lib.FrameLatents):
    """What `StoredLatents` of the first host holds, on another one; in memory, and nothing is written."""

    def __init__(
        self,
        state: dict[str, Any],
        array: np.ndarray,
        num_videos: int,
        plans: Sequence[plan_lib.LevelPlan],
        latent_shape: Sequence[int],
    ):
        super().__init__(num_videos, plans, latent_shape)
        self.array = np.array(array)
        self._made = {tuple(item) for item in state["made"]}
        self._attempt = {(level, segment): attempt for level, segment, attempt in state["attempts"]}
        _mark(self, plans, self._made)

    def to_make(self, plan: plan_lib.LevelPlan) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """As the first host's."""
        return _left(self.num_videos, plan, self._made, self._attempt)


def _mark(frames: frames_lib.FrameLatents, plans: Sequence[plan_lib.LevelPlan], made: Iterable[Any]) -> None:
    """Notes in `frames.done` the frames of the segments made."""
    by_level = {plan.level: plan for plan in plans}
    for level, video, segment in made:
        plan = by_level[level]
        frames.mark(video, plan.frame_index[segment][~plan.given[segment]])


def _left(
    num_videos: int, plan: plan_lib.LevelPlan, made: Container[Any], attempts: dict[tuple[int, int], int]
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    left: dict[int, list[tuple[int, int]]] = {}
    for video in range(num_videos):
        for segment in range(plan.num_segments):
            if (plan.level, video, segment) not in made:
                left.setdefault(attempts.get((plan.level, segment), 0), []).append((video, segment))
    return [(n, *(np.asarray(column, np.int32) for column in zip(*items))) for n, items in sorted(left.items())]


def _below(plans: Sequence[plan_lib.LevelPlan], level: int, segment: int) -> list[tuple[int, int]]:
    """(level, segment) of a segment and of all whose given frames follow from it."""
    changed: set[int] = set()
    out = []
    for plan in plans[level:]:
        for s in range(plan.num_segments):
            given = plan.given[s]
            first = (plan.level, s) == (level, segment)
            if first or not changed.isdisjoint(plan.frame_index[s][given].tolist()):
                out.append((plan.level, s))
                changed.update(plan.frame_index[s][~given].tolist())
    return out
