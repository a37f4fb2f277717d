"""Manifests: csv, tsv, jsonl, json and parquet tables with a row a video or a row a caption, and pairs of lists.

Columns go by the names that people use, whatever their case; others are not read:

    which video   path, video, video_path, file_name, filename, file
    caption       text, caption, prompt, description
    name          id, clip_id, video_id, videoid                   (else the path)
    seconds       start, start_time, and end, end_time: several rows may then caption one video
    frame         frame, frame_index: as well, the caption of that frame alone; with last, of frames up to that one
    span          first_frame, start_frame, and last_frame, end_frame, included: the row is of this part of the file
    also          fps (of frame folders), split (train, val, valid, validation, dev, test), episode (videos of one are
                  in one split), caption_source ("human", else a machine), clip (the caption's, by its owner's name)

Paths are relative to the manifest's folder. Videos of one file, by names of their own or spans of it, are in one split
where no `episode` is given. Spans are named NAME#000120-000455; `frame`, `last` and seconds in their rows count from
the beginning of the file. A row that cannot be used is left out by name and reason; a table without a column that says
which video is refused.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
import csv
import dataclasses
import json
import math
import os
import pathlib
import re
from typing import Any

from nuwaxl_jax.data import characters
from nuwaxl_jax.data.intake import captions as captions_lib
from nuwaxl_jax.data.intake import records

Rows = Iterable[tuple[int, dict[str, Any] | str]]  # (line or row number, its fields or why there are none)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
COLUMNS = {
    "path": ("path", "video", "video_path", "file_name", "filename", "file"),
    "text": ("text", "caption", "prompt", "description"),
    "name": ("id", "clip_id", "video_id", "videoid"),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
    "frame": ("frame", "frame_index"),
    "last": ("last",),
    "first_frame": ("first_frame", "start_frame"),
    "last_frame": ("last_frame", "end_frame"),
    "fps": ("fps",),
    "split": ("split",),
    "episode": ("episode",),
    "source": ("caption_source",),
    "clip": ("clip",),
}
SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that 'surrogateescape' let through
_BATCH_ROWS = 4096
_FIELD_CHARACTERS = 16_000_000


class Unusable(ValueError):
    """Why a row is left out: (reason, detail)."""


def read(path: pathlib.Path) -> records.Listing:
    """The videos of one manifest.

    Raises:
      IntakeError: no table, or no column that names videos.
    """
    entries, left_out = _gather(path, rows(path))
    return records.Listing(path, "manifest", entries, left_out)


def rows(path: pathlib.Path) -> Rows:
    """(line or row number, its fields or why there are none) of each row.

    Raises:
      IntakeError: no table, when this is found.
    """
    kinds = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
    return kinds[path.suffix.lower()](path)


def read_lists(folder: pathlib.Path) -> records.Listing:
    """The videos of `videos.txt`, a path a line, captioned by the lines of `prompts.txt`.

    Raises:
      IntakeError: not as many lines.
    """
    videos = captions_lib.read_text(folder / "videos.txt").rstrip("\n").split("\n")
    prompts = captions_lib.read_text(folder / "prompts.txt").removesuffix("\n").split("\n")
    while len(prompts) > len(videos) and not prompts[-1]:  # those of the last videos may be empty
        prompts.pop()
    if len(videos) != len(prompts):
        problem = f"videos.txt has {len(videos)} lines, prompts.txt {len(prompts)}"
        raise records.IntakeError(f"{folder}: {problem}; give one prompt a video, line by line")
    pairs = (dict(path=video.strip(), text=prompt) for video, prompt in zip(videos, prompts))
    entries, left_out = _gather(folder / "videos.txt", enumerate(pairs, start=1))
    return records.Listing(folder, "lists", entries, left_out)


def _csv(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    csv.field_size_limit(_FIELD_CHARACTERS)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        names = reader.fieldnames or []
        try:
            for row in reader:
                short = row.pop(None, None) is not None or None in row.values()
                problem = f"has not the header's {len(names)} fields"
                yield reader.line_num, problem if short else row
        except csv.Error as error:
            raise records.IntakeError(f"{path}:{reader.line_num}: is no CSV ({error}); mend the line") from error
        if reader.line_num <= 1:
            raise records.IntakeError(f"{path}: has no row; give a header and a row a video")


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, f"is no JSON ({error})"
            else:
                yield number, row if isinstance(row, dict) else "is no JSON object"


def _json(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        table = json.loads(captions_lib.read_text(path))
    except ValueError as error:
        raise records.IntakeError(f"{path}: is no JSON ({error}); mend the file") from error
    if not isinstance(table, list):
        raise records.IntakeError(f"{path}: holds no list; give a list of objects, one a video")
    for number, row in enumerate(table, start=1):
        yield number, row if isinstance(row, dict) else "is no JSON object"


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow  # slow to import, and only this layout needs it
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            lowered = {alias for aliases in COLUMNS.values() for alias in aliases}
            names = file.schema_arrow.names
            if not {name.lower() for name in names} & set(COLUMNS["path"]):
                lowered.add("image")  # see `pictures`; beside videos it may hold images themselves
            columns = [name for name in names if name.lower() in lowered]
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise records.IntakeError(f"{path}: cannot be read as parquet ({error}); write it again") from error


def fields_of(row: dict[str, Any]) -> dict[str, Any]:
    """The row's values under our names; of several aliases the first of COLUMNS that has a value."""
    lowered = {str(name).strip().lower(): value for name, value in row.items()}
    out = {}
    for name, aliases in COLUMNS.items():
        values = (lowered[alias] for alias in aliases if alias in lowered)
        out[name] = next((value for value in values if value not in (None, "")), None)
    return out


def _number(value: Any, field: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Unusable(f"{field} is no number", repr(value)) from None
    if not math.isfinite(number) or number < 0:
        raise Unusable(f"{field} is no number from 0 on", repr(value))
    return number


def _whole_number(value: Any, field: str) -> int | None:
    number = _number(value, field)
    if number is not None and number != int(number):
        raise Unusable(f"{field} is no whole number", repr(value))
    return None if number is None else int(number)


def split_of(value: Any) -> str | None:
    """Our name of a split; raises Unusable where it is none."""
    if value is None:
        return None
    if str(value).strip().lower() not in SPLITS:
        raise Unusable("split is unknown", repr(value))
    return SPLITS[str(value).strip().lower()]


def _caption(fields: dict[str, Any]) -> tuple[records.Caption, bool]:
    """(the caption, whether it is of a part of the video alone)."""
    try:
        start, end = captions_lib.interval(_number(fields["start"], "start"), _number(fields["end"], "end"))
        who = captions_lib.source(fields["source"])
    except Unusable:
        raise
    except ValueError as error:
        wrong = "caption_source is no text" if "caption_source" in str(error) else "start is not before end"
        raise Unusable(wrong, str(error)) from error
    text = records.clean(fields["text"]) if isinstance(fields["text"], str) else ""
    frame = _number(fields["frame"], "frame")
    if frame is not None and (frame != int(frame) or fields["start"] is not None or fields["end"] is not None):
        raise Unusable("frame is no number by itself", repr(fields["frame"]))
    frame, last = None if frame is None else int(frame), _whole_number(fields["last"], "last")
    if last is not None and (frame is None or last < frame):
        raise Unusable("last is before frame, or without it", f"frame {fields['frame']!r}, last {fields['last']!r}")
    clip = "" if fields["clip"] is None else str(fields["clip"])
    caption = records.Caption(text, start, end, frame, last, who, clip)
    return caption, frame is not None or (start, end) != (0.0, math.inf)


def _entry(place: pathlib.Path, row: dict[str, Any] | str) -> tuple[records.Entry, bool, str]:
    """(the video with at most one caption, whether that is of a part of it alone, its path as written)."""
    if isinstance(row, str):
        raise Unusable("row cannot be read", row)
    fields = fields_of(row)
    for name in ("path", "text", "name", "episode", "clip"):
        wrong = NOT_UTF8 if name == "text" else characters.HALVES  # half a character of a caption does no harm
        if isinstance(fields[name], str) and wrong.search(fields[name]):
            raise Unusable(f"{name} is not UTF-8 text", "")
    if not isinstance(fields["path"], str) or not fields["path"].strip():
        raise Unusable("names no video", f"path is {fields['path']!r}")
    written = fields["path"].strip()
    path = place / written
    if not path.exists():
        raise Unusable("no such file", str(path))
    split = split_of(fields["split"])
    caption, partial = _caption(fields)
    captions = (caption,) if caption.text else ()
    name = written if fields["name"] is None else str(fields["name"]).strip()
    episode = "" if fields["episode"] is None else str(fields["episode"]).strip()
    entry = records.Entry(name, path, captions, _number(fields["fps"], "fps") or None, split, episode)
    first, last = (_whole_number(fields[each], each) for each in ("first_frame", "last_frame"))
    if first is None and last is None:
        return entry, partial, written
    if first is None or last is None or last < first:
        raise Unusable("first_frame and last_frame are no span", f"{first} to {last}")
    if caption.frame is not None and not (caption.frame <= last and first <= (caption.last or caption.frame)):
        raise Unusable("frame is outside the row's span", f"{fields['frame']} in {first} to {last}")
    span = dict(name=f"{name}#{first:06}-{last:06}", span=(first, last))
    return dataclasses.replace(entry, captions=(), whole_captions=captions, **span), partial, written


def _gather(path: pathlib.Path, table: Rows) -> tuple[tuple[records.Entry, ...], tuple[records.LeftOut, ...]]:
    """Videos by name, with the captions of all their rows; and the rows left out."""
    found: dict[str, records.Entry] = {}
    paths: dict[str, str] = {}
    left_out, seen = [], False
    for number, row in table:
        if not seen and isinstance(row, dict):
            _check_columns(path, row)
            seen = True
        place = f"{path.name}:{number}"
        try:
            entry, partial, written = _entry(path.parent, row)
        except Unusable as error:
            reason, detail = error.args
            left_out.append(records.LeftOut(place, "listed", reason, detail))
            continue
        before = found.get(entry.name)
        if before is None:
            found[entry.name], paths[entry.name] = entry, written
        elif partial and before.path == entry.path:
            both = {kind: getattr(before, kind) + getattr(entry, kind) for kind in ("captions", "whole_captions")}
            found[entry.name] = dataclasses.replace(before, **both)
        else:
            left_out.append(records.LeftOut(place, "listed", "name occurs twice", entry.name))
    found |= _of_one_file(found, paths)
    return tuple(found[name] for name in sorted(found)), tuple(left_out)


def _of_one_file(found: Mapping[str, records.Entry], paths: Mapping[str, str]) -> dict[str, records.Entry]:
    """The spans, and the videos of files that are named more than once, with their file as their episode.

    Args:
      found: videos by name; the episode that a row gives stays.
      paths: of each, as its row has it. What the spans of a file agree on is its name, else the path without './'.
    """
    by_file = collections.defaultdict(list)
    for entry in found.values():
        by_file[os.path.normpath(entry.path)].append(entry)
    out = {}
    for entries in by_file.values():
        spans = {paths[entry.name] for entry in entries if entry.span is not None}
        if len(entries) == 1 and not spans:
            continue
        tidy = {os.path.normpath(paths[entry.name]) for entry in entries}
        episode = min(spans) if len(spans) == 1 else min(tidy, key=lambda path: (len(path), path))
        # What is called as its file is has that split already.
        alone = (entry for entry in entries if not entry.episode and (entry.span or entry.name != episode))
        out |= {entry.name: dataclasses.replace(entry, episode=episode) for entry in alone}
    return out


def _check_columns(path: pathlib.Path, row: dict[str, Any]) -> None:
    names = [str(name) for name in row]
    if not {name.strip().lower() for name in names} & set(COLUMNS["path"]):
        raise records.IntakeError(
            f"{path}: no column names the video; there are {', '.join(names)}; call one of them {COLUMNS['path'][0]!r}"
        )
