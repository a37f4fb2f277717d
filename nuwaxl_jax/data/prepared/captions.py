"""Which caption each frame of a video has, for all frames at once, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nuwaxl_jax.data.intake import clock
from nuwaxl_jax.data.intake import survey as survey_lib


def which(video: survey_lib.Video, numbers: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(caption of each frame, whether it covers the frame); a frame that none covers has the nearest in time.

    The rule of `survey.texts`, which gives the same texts a clip at a time; this is for an hour of frames.

    Args:
      video: whose captions.
      numbers: int [n], frames of the file.
      times: [n], the seconds they are shown at.

    Returns:
      int64 [n], numbers of the entry's captions, -1 where it has none; bool [n].
    """
    out, distance = np.full(len(times), -1, np.int64), np.full(len(times), np.inf)
    known = video.index.times
    late = times + clock.tolerance(known)  # at a border, past it
    for number, caption in enumerate(video.entry.captions):
        if caption.frame is None:
            covered = (caption.start <= late) & (late < caption.end)
            begin, end = caption.start, caption.end
        else:
            first, last = caption.frame, caption.frame if caption.last is None else caption.last
            covered = (first <= numbers) & (numbers <= last)
            begin, end = known[np.minimum([first, last], len(known) - 1)]
        away = np.where(covered, -1.0, np.maximum(np.maximum(begin - times, times - end), 0.0))
        taken = covered | (away < distance)
        out[taken], distance[taken] = number, away[taken]
    return out, distance < 0


def runs(chosen: np.ndarray, covered: np.ndarray) -> list[list[int]]:
    """[first frame, caption, covered] of each stretch of frames with the same two."""
    changes = np.flatnonzero((np.diff(chosen) != 0) | (np.diff(covered.astype(np.int8)) != 0)) + 1
    starts = [0, *changes.tolist()] if len(chosen) else []
    return [[start, int(chosen[start]), int(covered[start])] for start in starts]


def table(video: survey_lib.Video, parts: Sequence[tuple[int, list[list[int]]]]) -> dict[str, Any]:
    """The caption table of an episode as JSON holds it (see `format.CaptionTable`).

    Args:
      video: of the episode.
      parts: (first frame, runs counted from it) of all its parts, in order.
    """
    joined: list[list[int]] = []
    for first, part in parts:
        for start, caption, covered in part:
            if not joined or joined[-1][1:] != [caption, covered]:
                joined.append([first + start, caption, covered])
    used = sorted({caption for _, caption, _ in joined if caption >= 0})
    place = {caption: row for row, caption in enumerate(used)} | {-1: -1}
    captions = [video.entry.captions[number] for number in used]
    return dict(
        name=video.entry.name,
        texts=[caption.text for caption in captions],
        sources=[caption.source for caption in captions],
        clips=[caption.clip for caption in captions],
        runs=[[start, place[caption], covered] for start, caption, covered in joined],
    )
