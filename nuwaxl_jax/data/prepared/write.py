"""Makes shards: decodes, encodes and writes the frames of a plan's units, by several threads and several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent import futures
import os
import threading
import time
from typing import Any

from array_record.python import array_record_module
import numpy as np

from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import survey as survey_lib
from nuwaxl_jax.data.prepared import captions as captions_lib
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import plan as plan_lib
from nuwaxl_jax.data.prepared import staging as staging_lib

_CHUNK_FRAMES, _CHUNK_BYTES = 64, 16 << 20  # decoded at a time
_PAUSE = 0.2  # seconds between looks at shards that others are making


class _Stopped(Exception):
    """Another thread failed."""


class _Damaged(Exception):
    """A piece cannot be decoded."""

    def __init__(self, piece: plan_lib.Piece, message: str):
        super().__init__(message)
        self.piece, self.message = piece, message


class Records:
    """An ArrayRecord file being written; complete and checked after `close`."""

    def __init__(self, path: str | os.PathLike):
        self._path, self._count = os.fspath(path), 0
        with staging_lib.writing(path):
            self._writer = array_record_module.ArrayRecordWriter(self._path, format_lib.WRITER_OPTIONS)

    def write(self, record: bytes) -> None:
        with staging_lib.writing(self._path):
            self._writer.write(record)
        self._count += 1

    def close(self) -> int:
        """Ends the file and reads its index back; returns its bytes.

        Raises:
          PreparationError: it is not as long as what was written.
        """
        with staging_lib.writing(self._path):
            self._writer.close()
            reader = array_record_module.ArrayRecordReader(self._path, format_lib.READER_OPTIONS)
            found = reader.num_records() if reader.ok() else -1
            reader.close()
            if found != self._count:
                raise RuntimeError(f"{found} records of {self._count} are there")
            return os.stat(self._path).st_size

    def discard(self) -> None:
        """Removes the half-written file; what went wrong is being raised already."""
        for step in (self._writer.close, lambda: os.remove(self._path)):
            try:
                step()
            except (OSError, RuntimeError):
                pass


class Progress:
    """Frames done and left, as a line for `show`, a few times a second."""

    def __init__(self, total: int, done: int, show: Callable[[str], None]):
        self._total, self._done, self._show = total, done, show
        self._lock, self._start, self._last, self.made = threading.Lock(), time.monotonic(), 0.0, 0

    def add(self, frames: int, made: bool = True) -> None:
        """Counts frames; not `made` here, but found complete."""
        with self._lock:
            self._done += frames
            self.made += frames if made else 0
            now = time.monotonic()
            if now - self._last < 0.25:
                return
            self._last = now
            rate = self.rate()
            left = (self._total - self._done) / rate if rate else 0.0
            ahead = f", {rate:.0f} frames/s, {_duration(left)} left" if rate else ""
            self._show(f"preparing: {max(0, self._done):,} of {self._total:,} frames{ahead}")

    def rate(self) -> float:
        """Frames a second made here."""
        return self.made / max(1e-9, time.monotonic() - self._start)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Crew:
    """Makes units until none of its own is left; see `run`."""

    def __init__(
        self,
        plan: plan_lib.Plan,
        staging: staging_lib.Staging,
        units: Sequence[plan_lib.Unit],
        is_over: Callable[[], bool],
        progress: Callable[[str], None],
    ):
        """Takes up the work.

        Args:
          plan: of the set.
          staging: settled.
          units: those to make.
          is_over: whether another has finished the whole set.
          progress: takes a line that replaces the one before.
        """
        self._plan, self._staging, self._units, self._is_over = plan, staging, units, is_over
        self._stop = threading.Event()
        format_lib.features(plan.settings)  # imports TFDS, which the rate should not count
        self._complete = {unit.name for unit in units if staging.note(unit).exists()}
        done = sum(unit.frames for unit in units if unit.name in self._complete)
        self.progress = Progress(sum(unit.frames for unit in units), done, progress)

    def run(self, threads: int) -> None:
        """Returns when every unit is complete, made here or by another.

        Raises:
          PreparationError: the disk is full, or cannot be written; a video is gone.
        """
        with futures.ThreadPoolExecutor(threads) as pool:
            hands = [pool.submit(self._work) for _ in range(threads)]
            try:
                for hand in futures.as_completed(hands):
                    if not isinstance(hand.exception(), _Stopped):
                        hand.result()
            finally:
                self._stop.set()

    def _work(self) -> None:
        hand = _Hand(self._plan, self._staging, self._stop, self.progress)
        try:
            while len(self._complete) < len(self._units) and not self._is_over():
                if not any([self._try(hand, unit) for unit in self._units if unit.name not in self._complete]):
                    if self._stop.wait(_PAUSE):
                        return
        except FileNotFoundError:
            if not self._is_over():  # else another has finished and removed the folder
                raise
        finally:
            hand.close()

    def _try(self, hand: _Hand, unit: plan_lib.Unit) -> bool:
        """Makes a unit unless it is complete or another's; whether there is one less to make."""
        if self._stop.is_set():
            raise _Stopped
        if unit.name in self._complete:
            return False
        with self._staging.claim(unit) as ours:
            if not ours:
                return False
            if not self._staging.note(unit).exists():
                hand.make(unit)
            elif unit.name not in self._complete:
                self.progress.add(unit.frames, made=False)
            self._complete.add(unit.name)  # under the claim, so once
        return True


class _Hand:
    """One thread's part: makes units one after another, and keeps the video of the last one open."""

    def __init__(self, plan: plan_lib.Plan, staging: staging_lib.Staging, stop: threading.Event, progress: Progress):
        from tensorflow_datasets.core import example_serializer
        import tensorflow_datasets as tfds

        self._plan, self._staging, self._stop, self._progress = plan, staging, stop, progress
        self._features = tfds.features.FeaturesDict(format_lib.features(plan.settings))
        self._serializer = example_serializer.ExampleSerializer(self._features.get_serialized_info())
        self._video, self._reader, self._added = -1, None, 0

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._video, self._reader = -1, None

    def make(self, unit: plan_lib.Unit) -> None:
        """Writes a shard, without the videos that turn out to be damaged."""
        while True:
            self._added = 0
            try:
                made = self._write(unit)
                self._staging.complete(unit, made)
                self._progress.add(unit.frames - made["frames"], made=False)
                return
            except _Damaged as found:
                self._progress.add(-self._added)
                self.close()
                self._staging.mark_damaged(found.piece, found.message)

    def _write(self, unit: plan_lib.Unit) -> dict[str, Any]:
        pieces = [piece for piece in unit.pieces if not self._staging.is_damaged(piece)]
        if not pieces:
            return dict(frames=0, bytes=0, pieces=[])
        out, written = Records(self._staging.temporary(unit)), 0
        try:
            made = []
            for piece in pieces:
                runs = self._piece(piece, out)
                made.append(dict(video=piece.video, start=piece.start, stop=piece.stop, runs=runs))
                written += piece.stop - piece.start
            return dict(frames=written, bytes=out.close(), pieces=made)
        except BaseException:
            out.discard()
            raise

    def _piece(self, piece: plan_lib.Piece, out: Records) -> list[list[int]]:
        """Writes a piece's records; returns the runs of its captions."""
        plan, video = self._plan, self._plan.videos[piece.video]
        numbers, times = plan.numbers(piece)
        chosen, covered = captions_lib.which(video, numbers, times)
        step = max(1, min(_CHUNK_FRAMES, _CHUNK_BYTES // (3 * plan.settings.frame_size**2)))
        for begin in range(0, len(numbers), step):
            if self._stop.is_set():
                raise _Stopped
            frames = self._decode(piece, numbers[begin : begin + step])
            for row, frame in enumerate(frames, start=begin):
                caption = video.entry.captions[chosen[row]] if covered[row] else None
                example = dict(
                    image=format_lib.encode_image(frame, plan.settings),
                    caption=caption.text if caption else "",
                    caption_source=caption.source if caption else "none",
                    clip_id=caption.clip if caption else "",
                    episode=video.entry.name,
                    frame=piece.start + row,
                    seconds=times[row],
                    fps=plan.rate(piece.video),
                )
                proto = self._serializer.get_tf_example(self._features.encode_example(example))
                out.write(proto.SerializeToString(deterministic=True))  # a map has no order of its own
            self._progress.add(len(frames))
            self._added += len(frames)
        return captions_lib.runs(chosen, covered)

    def _decode(self, piece: plan_lib.Piece, numbers: np.ndarray) -> np.ndarray:
        """Frames of the file: uint8 [n, frame_size, frame_size, 3].

        Raises:
          _Damaged: they cannot be decoded.
          PreparationError: the disk fails.
        """
        video = self._plan.videos[piece.video]
        try:
            if self._video != piece.video:
                self.close()
                self._reader = survey_lib.open_reader(video.entry, self._plan.limits, video.index)
                self._video = piece.video
            return self._reader.read(numbers, self._plan.settings.frame_size)
        except video_io.VideoError as error:
            raise _Damaged(piece, " ".join(str(error).split())) from error
        except FileNotFoundError as error:
            raise format_lib.PreparationError(f"{video.path}: is gone; put it back, or start another --out") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise format_lib.PreparationError(
                f"{video.path}: cannot be read ({reason}); run again when it can"
            ) from error
