"""Clips of one episode that follow each other are one longer video, so that long windows can be drawn across them.

Two clips are joined where the second begins at most one frame after the end of the first (next.first <= last + 1), in
one split, with arrays of as many frames as their names say and of one height and width. A frame that several have is
taken from the first; each clip's caption holds for the clip's own frames. What would be joined but is not is told, with
the reason, and stays a video by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import itertools

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import records

_REASON = "of joining with its neighbours, used alone"


@dataclasses.dataclass(frozen=True)
class Stretch:
    """An entry that is an array of frames `first` to `last`, both included, of its episode."""

    entry: records.Entry
    first: int
    last: int


def join(
    stretches: Sequence[Stretch], name: Callable[[records.Entry, int], str]
) -> tuple[list[records.Entry], list[records.LeftOut]]:
    """The videos, and the clips that stay alone though a neighbour touches them.

    Args:
      stretches: clips, each with at most one caption, of the whole clip.
      name: of a joined video, from its first clip and its last frame.
    """
    entries, left_out = [], []
    ordered = sorted(stretches, key=lambda each: (each.entry.episode, each.first, each.last))
    for _, episode in itertools.groupby(ordered, key=lambda each: each.entry.episode):
        sound = []
        for run in _runs(list(episode)):
            alone, shape = set(), None
            for each in run if len(run) > 1 else ():
                problem, shape = _problem(each, shape)
                if problem is not None:
                    alone.add(each)
                    entries.append(each.entry)
                    left_out += [records.LeftOut(each.entry.name, "joined", _REASON, problem)] if problem else []
            sound += [each for each in run if each not in alone]
        for run in _runs(sound):
            for one in _of_one_split(run, left_out):
                entries.append(one[0].entry if len(one) == 1 else _joined(one, name))
    return entries, left_out


def _runs(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    """Those that touch or overlap, together."""
    runs: list[list[Stretch]] = []
    end = -1
    for each in stretches:
        if runs and each.first <= end + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
        end = max(end, each.last) if len(runs[-1]) > 1 else each.last
    return runs


def _of_one_split(run: Sequence[Stretch], left_out: list[records.LeftOut]) -> list[list[Stretch]]:
    """A run, parted by split; that splits part it is added to `left_out`."""
    splits = {each.entry.split for each in run}
    if len(splits) == 1:
        return [list(run)]
    names = ", ".join(sorted(str(split) for split in splits))
    left_out.append(records.LeftOut(run[0].entry.name, "joined", "of joining over splits", f"{names}"))
    return [one for split in sorted(splits, key=str) for one in _runs([e for e in run if e.entry.split == split])]


def _problem(each: Stretch, shape: tuple[int, int] | None) -> tuple[str | None, tuple[int, int] | None]:
    """(why it cannot be joined: None it can, '' it cannot be read and will be told then; height and width of all)."""
    try:
        count, *size, _ = frames_io.load_array(each.entry.path).shape
    except (video_io.VideoError, OSError):
        return "", shape
    expected = each.last - each.first + 1
    if count != expected:
        return f"{count} frames, {expected} by its name", shape
    if shape is not None and tuple(size) != shape:
        return f"frames of {tuple(size)} after {shape}, height and width", shape
    return None, tuple(size)


def _joined(run: Sequence[Stretch], name: Callable[[records.Entry, int], str]) -> records.Entry:
    """One video of several clips."""
    origin, last = run[0].first, max(each.last for each in run)
    parts = tuple(frames_io.Part(e.entry.path, e.first - origin, e.last - e.first + 1) for e in run)
    captions = tuple(
        dataclasses.replace(caption, frame=each.first - origin, last=each.last - origin)
        for each in run
        for caption in each.entry.captions
    )
    first = run[0].entry
    return dataclasses.replace(first, name=name(first, last), captions=captions, parts=parts)
