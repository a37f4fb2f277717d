"""Caption files beside videos.

    a/clip.txt        the whole file is one caption for the whole video
    captions.jsonl    in the top folder: {"video": "a/clip.mp4", "start": 1.5, "end": 4, "text": "..."} a line
    a/clip.jsonl      the same without "video"

A line with "frame": 12 in place of seconds holds for that frame of the file alone, with "last": 30 as well for frames
12 to 30. `start` (from 0, included) and `end` (excluded) are seconds; without them a line holds from the beginning, or
to the end. "caption_source" says who wrote it: "human", as without it, or anything else, a machine.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from nuwaxl_jax.data.intake import records


def read_text(path: pathlib.Path) -> str:
    """The text of a UTF-8 file.

    Raises:
      IntakeError: it is none.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise records.IntakeError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from error


def read_lines(path: pathlib.Path) -> list[tuple[str | None, records.Caption]]:
    """The lines of a jsonl file: (its "video" or None, the caption).

    Raises:
      IntakeError: naming the file, the line and the field.
    """
    entries = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(parse_line(json.loads(line)))
        except ValueError as error:
            raise records.IntakeError(f"{path}:{number}: {error}") from error
    return entries


def interval(start: Any, end: Any) -> tuple[float, float]:
    """Start and end in seconds from what a file says; None is the beginning, or the end.

    Raises:
      ValueError: no seconds, or not in order.
    """
    start, end = 0.0 if start is None else start, math.inf if end is None else end
    seconds = all(isinstance(at, (int, float)) and not isinstance(at, bool) for at in (start, end))
    if not seconds or not 0 <= start < end:
        raise ValueError(f'"start" = {start!r} and "end" = {end!r} must be seconds with 0 <= start < end.')
    return float(start), float(end)


def frames(frame: Any, last: Any, timed: bool) -> tuple[int | None, int | None]:
    """First and last frame from what a file says; None is none given.

    Args:
      frame, last: what the file says.
      timed: whether it says seconds too.

    Raises:
      ValueError: no numbers, not in order, or seconds as well.
    """
    if frame is not None and (timed or type(frame) is not int or frame < 0):
        raise ValueError(f'"frame" = {frame!r} must be a number from 0 on, without "start" and "end".')
    if last is not None and (frame is None or type(last) is not int or last < frame):
        raise ValueError(f'"last" = {last!r} must be a number from "frame" = {frame!r} on.')
    return frame, last


def source(value: Any) -> str:
    """'human' or 'machine' from what a file says; None is 'human'.

    Raises:
      ValueError: no text.
    """
    if value is not None and not isinstance(value, str):
        raise ValueError(f'"caption_source" = {value!r} must be "human" or "machine".')
    return "human" if value is None or value.strip().lower() in ("", "human") else "machine"


def parse_line(entry: Any) -> tuple[str | None, records.Caption]:
    """(its "video" or None, the caption) of one line's object; ValueError names the field."""
    if not isinstance(entry, dict):
        raise ValueError('each line must be an object such as {"start": 0, "end": 2.5, "text": "..."}.')
    if not isinstance(entry.get("text"), str):
        raise ValueError(f'the field "text" is missing or no string; there are {sorted(entry)}.')
    video = entry.get("video")
    frame, last = frames(entry.get("frame"), entry.get("last"), "start" in entry or "end" in entry)
    start, end = interval(entry.get("start"), entry.get("end"))
    if video is not None and not isinstance(video, str):
        raise ValueError(f'"video" = {video!r} must be the name of a file.')
    text, who = records.clean(entry["text"]), source(entry.get("caption_source"))
    return video, records.Caption(text, start, end, frame, last, who)
