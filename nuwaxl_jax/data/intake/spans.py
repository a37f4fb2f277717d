"""Part of a file as a video: frames `first` to `last`, both included, as frames 0 to last - first from time 0 on.

The file is walked once for all its spans: a span's index keeps the whole file's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses

import numpy as np

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import records


@dataclasses.dataclass(frozen=True, eq=False)
class SpanIndex(video_io.VideoIndex):
    """A span's `info` and `times`.

    Attributes:
      whole: the file's index.
      first: number in the file of frame 0.
    """

    whole: video_io.VideoIndex
    first: int


def cut(path: str, whole: video_io.VideoIndex, span: tuple[int, int]) -> SpanIndex:
    """The index of a span.

    Raises:
      VideoError: the file is shorter.
    """
    first, last = span
    if last >= whole.info.num_frames:
        raise video_io.VideoError(
            f"{path}: has {whole.info.num_frames} frames; frames {first} to {last} are not there."
        )
    times = whole.times[first : last + 1]
    end = whole.times[last + 1] if last + 1 < len(whole.times) else whole.info.seconds
    info = dataclasses.replace(whole.info, num_frames=last - first + 1, seconds=float(end - times[0]))
    return SpanIndex(info, times - times[0], None, None, whole.stamp, whole, first)


def apply(entry: records.Entry, index: video_io.VideoIndex) -> records.Entry:
    """The entry with the captions of its file cut to it and moved; as it is where it is a whole file."""
    if not isinstance(index, SpanIndex):
        return entry
    moved = tuple(_moved(entry.whole_captions, index))
    return dataclasses.replace(entry, captions=(*moved, *entry.captions), whole_captions=())


def _moved(captions: Iterable[records.Caption], index: SpanIndex) -> Iterator[records.Caption]:
    begins, end = float(index.whole.times[index.first]), index.info.num_frames - 1
    for caption in captions:
        if caption.frame is None:
            start, stop = caption.start - begins, caption.end - begins
            if start < index.info.seconds and stop > 0:
                yield dataclasses.replace(caption, start=max(start, 0.0), end=stop)
        else:
            first, last = caption.frame - index.first, (caption.last or caption.frame) - index.first
            if first <= end and last >= 0:
                last = None if caption.last is None else min(last, end)
                yield dataclasses.replace(caption, frame=max(first, 0), last=last)


class SpanReader(contextlib.AbstractContextManager):
    """The frames of a span, with its `index` and `info`: the interface of `video_io.VideoReader`."""

    def __init__(self, reader: video_io.VideoReader | frames_io.Frames, index: SpanIndex):
        """reader: of the whole file."""
        self._reader = reader
        self.path, self.index, self.info = reader.path, index, index.info

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()

    def read(self, index: np.ndarray, size: int | None = None) -> np.ndarray:
        """Frames `index` (int [n]) of the span; as `VideoReader.read`."""
        index = np.asarray(index)
        if index.size and not 0 <= index.min() <= index.max() < self.info.num_frames:
            raise IndexError(f"{self.path}: frames {index.min()}..{index.max()} of a span of {self.info.num_frames}.")
        return self._reader.read(index + self.index.first, size)

    def chunks(self, num: int = 64, size: int | None = None) -> Iterator[np.ndarray]:
        """All frames in order, uint8 [<= num, H, W, 3] at a time."""
        for start in range(0, self.info.num_frames, num):
            yield self.read(np.arange(start, min(start + num, self.info.num_frames)), size)
