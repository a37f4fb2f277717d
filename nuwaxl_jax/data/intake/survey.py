"""Opens what a listing names: which videos can be read, are long enough and have a caption, and why the others not."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import dataclasses
import hashlib
import math
import os
import threading

import numpy as np

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import arldm
from nuwaxl_jax.data.intake import clock
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import remembered
from nuwaxl_jax.data.intake import spans

SPLITS = ("train", "valid", "test")

_THREADS = 4
_NAMED = 3  # of those left out for one reason, in the report

Reader = video_io.VideoReader | frames_io.Frames | spans.SpanReader


@dataclasses.dataclass(frozen=True)
class Video:
    """A video that can be read; its entry's captions count from its own first frame."""

    entry: records.Entry
    index: video_io.VideoIndex

    @property
    def path(self) -> str:
        return str(self.entry.path)


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is kept and what is not.

    Attributes:
      videos: kept, in the order given.
      left_out: all others.
      funnel: counts by step: found, readable, of at least n frames, captioned, kept.
    """

    videos: tuple[Video, ...]
    left_out: tuple[records.LeftOut, ...]
    funnel: dict[str, int]

    def line(self) -> str:
        """'5 found -> 4 readable -> ..'."""
        return " -> ".join(f"{count} {step}" for step, count in self.funnel.items())


def open_reader(
    entry: records.Entry, limits: video_io.Limits = video_io.Limits(), index: video_io.VideoIndex | None = None
) -> Reader:
    """A reader of a video; raises as `VideoReader` does.

    Args:
      entry: which.
      limits: of what is accepted as a video.
      index: of it, known from before; of a span, that of its file will do.
    """
    if entry.span is None:
        return _open_whole(entry, limits, index)
    reader = _open_whole(entry, limits, index.whole if isinstance(index, spans.SpanIndex) else index)
    if not isinstance(index, spans.SpanIndex):
        try:
            index = spans.cut(reader.path, reader.index, entry.span)
        except video_io.VideoError:
            reader.close()
            raise
    return spans.SpanReader(reader, index)


def _open_whole(entry: records.Entry, limits: video_io.Limits, index: video_io.VideoIndex | None) -> Reader:
    if entry.parts:
        return frames_io.FrameSequence(entry.parts, limits, index, entry.fps)
    if entry.key:
        return arldm.Story(entry.path, entry.key, limits, index, entry.fps)
    if os.path.isdir(entry.path):
        return frames_io.FrameFolder(entry.path, limits, index, entry.fps)
    if str(entry.path).lower().endswith(".npy"):
        return frames_io.FrameArray(entry.path, limits, index, entry.fps)
    return video_io.VideoReader(entry.path, limits, index)


def _walk(entry: records.Entry, limits: video_io.Limits) -> video_io.VideoIndex:
    """The index of a whole video; of a video file the one that is remembered, if it has not changed."""
    plain = not (entry.parts or entry.key) and str(entry.path).lower().endswith(video_io.VIDEO_SUFFIXES)
    known = remembered.load(entry.path) if plain and os.path.isfile(entry.path) else None
    if known is not None:
        info = known.info
        size = dict(pixels=info.width * info.height, seconds=info.seconds, frames=info.num_frames)
        video_io.check_limits(str(entry.path), limits, **size)
        return known
    with _open_whole(entry, limits, None) as reader:
        index = reader.index
    if plain and os.path.isfile(entry.path):
        remembered.save(entry.path, index)
    return index


def length(index: video_io.VideoIndex, fps: float = 0.0) -> int:
    """Frames of a video as it is, or when shown at `fps` frames a second."""
    if not fps:
        return index.info.num_frames
    return max(1, math.floor((index.info.seconds + clock.tolerance(index.times)) * fps))


def split_of(name: str, eval_fraction: float) -> str:
    """The split of a video by its name: 'train', 'valid' or 'test'."""
    place = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2.0**64
    return "test" if place < eval_fraction else "valid" if place < 2 * eval_fraction else "train"


def of_split(entries: Sequence[records.Entry], split: str, eval_fraction: float) -> tuple[records.Entry, ...] | None:
    """The entries of a split; None where nobody has divided them and some split would have none: too few to divide.

    Where an owner has named splits, they stay; an entry without is where others of its episode are, by preference where
    nothing is trained on, else it goes by the hash, and a line says how many are in this split so.
    """
    owners: dict[str, str] = {}
    for entry in entries:
        if entry.split:
            whole = entry.episode or entry.name
            owners[whole] = max(entry.split, owners.get(whole, entry.split), key=SPLITS.index)
    splits = []
    for entry in entries:
        whole = entry.episode or entry.name
        splits.append(entry.split or owners.get(whole) or split_of(whole, eval_fraction))
    if not owners and len(set(splits)) < len(SPLITS):
        return None
    chosen = tuple(entry for entry, its in zip(entries, splits) if its == split)
    unnamed = sum(not entry.split for entry in chosen)
    if owners and unnamed:
        print(f"{split}: {unnamed} of {len(chosen)} videos are here by episode or name; the owner gives them no split")
    return chosen


def survey(
    entries: Sequence[records.Entry],
    *,
    min_frames: int = 1,
    fps: float = 0.0,
    require_captions: bool = True,
    limits: video_io.Limits = video_io.Limits(),
    progress: Callable[[int], None] = lambda done: None,
) -> Survey:
    """Indexes every entry; files are read once and not decoded.

    Args:
      entries: to look at.
      min_frames: shorter videos are left out; counted at
      fps: frames a second, or 0: at the file's own.
      require_captions: videos without any caption are left out.
      limits: of what is accepted as a video.
      progress: called with the number of entries done.
    """
    videos, left_out = [], []
    passed = collections.Counter()
    files = _Files(entries, limits)
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        for done, (entry, index) in enumerate(zip(entries, pool.map(files.index, entries)), start=1):
            progress(done)
            verdict = index
            if not isinstance(index, records.LeftOut):
                entry, late = _within(spans.apply(entry, index), index.info.num_frames)
                left_out += late
                verdict = _verdict(entry, length(index, fps), min_frames)
            if verdict is not None and not (verdict.step == "captioned" and not require_captions):
                left_out.append(verdict)
            else:
                videos.append(Video(entry, index))
            reached = "captioned" if verdict is None else verdict.step
            passed["readable"] += reached != "readable"
            passed["long enough"] += reached == "captioned"
            passed["captioned"] += verdict is None
    funnel = {
        "found": len(entries),
        "readable": passed["readable"],
        f"of at least {min_frames} frames": passed["long enough"],
        "captioned": passed["captioned"],
        "kept": len(videos),
    }
    return Survey(tuple(videos), tuple(left_out), funnel)


def _verdict(entry: records.Entry, count: int, min_frames: int) -> records.LeftOut | None:
    if count < min_frames:
        return records.LeftOut(entry.name, "long enough", f"shorter than {min_frames} frames", f"{count} frames")
    if not entry.captions:
        return records.LeftOut(entry.name, "captioned", "no caption")
    return None


def _within(entry: records.Entry, count: int) -> tuple[records.Entry, list[records.LeftOut]]:
    """The entry with the captions that begin before the end of its `count` frames, and the others."""
    late = [caption for caption in entry.captions if caption.frame is not None and caption.frame >= count]
    if not late:
        return entry, []
    captions = tuple(caption for caption in entry.captions if caption.frame is None or caption.frame < count)
    out = [
        records.LeftOut(entry.name, "caption", "caption begins after the last frame", f"{c.clip or c.frame} of {count}")
        for c in late
    ]
    return dataclasses.replace(entry, captions=captions), out


class _Files:
    """Indexes entries, from several threads; a file of many spans is walked once."""

    def __init__(self, entries: Sequence[records.Entry], limits: video_io.Limits):
        self._limits = limits
        self._locks = {entry.path: threading.Lock() for entry in entries if entry.span is not None}
        self._known: dict[tuple[os.PathLike, float | None], video_io.VideoIndex | Exception] = {}

    def index(self, entry: records.Entry) -> video_io.VideoIndex | records.LeftOut:
        try:
            if entry.span is not None:
                return spans.cut(str(entry.path), self._whole(entry), entry.span)
            return _walk(entry, self._limits)
        except (video_io.VideoError, OSError) as error:
            return records.LeftOut(entry.name, "readable", "cannot be read", " ".join(str(error).split()))

    def _whole(self, entry: records.Entry) -> video_io.VideoIndex:
        file = entry.path, entry.fps
        with self._locks[entry.path]:
            if file not in self._known:
                try:
                    self._known[file] = _walk(entry, self._limits)
                except (video_io.VideoError, OSError) as error:
                    self._known[file] = error
        known = self._known[file]
        if isinstance(known, Exception):
            raise known
        return known


def texts(video: Video, numbers: np.ndarray, times: np.ndarray, nearest: bool = False) -> list[str]:
    """The caption of each frame; '' where there is none.

    Args:
      video: whose captions.
      numbers: int [n], frames of the file.
      times: [n], the seconds they are shown at.
      nearest: frames that no caption covers take the nearest one's.
    """
    out, distance = [""] * len(times), np.full(len(times), np.inf)
    known = video.index.times
    late = times + clock.tolerance(known)  # at a border, past it
    for caption in video.entry.captions:
        if caption.frame is None:
            covered = (caption.start <= late) & (late < caption.end)
            away = np.maximum(np.maximum(caption.start - times, times - caption.end), 0.0)
        else:
            first, last = caption.frame, caption.frame if caption.last is None else caption.last
            covered = (first <= numbers) & (numbers <= last)
            begins, ends = known[np.minimum([first, last], len(known) - 1)]
            away = np.maximum(np.maximum(begins - times, times - ends), 0.0)
        away = np.where(covered, -1.0, away)
        taken = covered | (away < distance) if nearest else covered
        for row in np.flatnonzero(taken).tolist():
            out[row], distance[row] = caption.text, away[row]
    return out


def by_reason(left_out: Iterable[records.LeftOut]) -> dict[str, list[records.LeftOut]]:
    """Those left out, by reason, the most frequent first."""
    groups: dict[str, list[records.LeftOut]] = {}
    for each in left_out:
        groups.setdefault(each.reason, []).append(each)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def lines(left_out: Iterable[records.LeftOut]) -> list[str]:
    """One line a reason: how many, and the first few by name, as text that any stream takes."""
    out = []
    for reason, group in by_reason(left_out).items():
        named = "; ".join(f"{each.name} ({each.detail})" if each.detail else each.name for each in group[:_NAMED])
        line = f"  {len(group)} left out, {reason}: {named}{'; ..' if len(group) > _NAMED else ''}"
        out.append(records.printable(line))
    return out
