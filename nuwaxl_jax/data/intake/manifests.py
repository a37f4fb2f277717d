"""Manifests: csv, tsv, jsonl, json and parquet tables with a row a video or a row a caption, and pairs of lists.

Columns go by the names that people use, whatever their case; others are not read:

    which video   path, video, video_path, file_name, filename, file
    caption       text, caption, prompt, description
    name          id, clip_id, video_id, videoid                   (else the path)
    seconds       start, start_time, and end, end_time: several rows may then caption one video
    frame         frame, frame_index: as well, the caption of that frame alone
    also          fps (of frame folders), split (train, val, valid, validation, dev, test)

Paths are relative to the manifest's folder. A row that cannot be used is left out by name and reason; a table without a
column that says which video is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import csv
import dataclasses
import json
import math
import pathlib
import re
from typing import Any

from nuwaxl_jax.data.intake import captions as captions_lib
from nuwaxl_jax.data.intake import records

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
COLUMNS = {
    "path": ("path", "video", "video_path", "file_name", "filename", "file"),
    "text": ("text", "caption", "prompt", "description"),
    "name": ("id", "clip_id", "video_id", "videoid"),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
    "frame": ("frame", "frame_index"),
    "fps": ("fps",),
    "split": ("split",),
}
_SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that 'surrogateescape' let through
_BATCH_ROWS = 4096
_FIELD_CHARACTERS = 16_000_000


class _Unusable(ValueError):
    """Why a row is left out: (reason, detail)."""


def read(path: pathlib.Path) -> records.Listing:
    """The videos of one manifest.

    Raises:
      IntakeError: no table, or no column that names videos.
    """
    rows = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}[path.suffix.lower()]
    entries, left_out = _gather(path, rows(path))
    return records.Listing(path, "manifest", entries, left_out)


def read_lists(folder: pathlib.Path) -> records.Listing:
    """The videos of `videos.txt`, a path a line, captioned by the lines of `prompts.txt`.

    Raises:
      IntakeError: not as many lines.
    """
    videos, prompts = (
        captions_lib.read_text(folder / name).rstrip("\n").split("\n") for name in ("videos.txt", "prompts.txt")
    )
    if len(videos) != len(prompts):
        problem = f"videos.txt has {len(videos)} lines, prompts.txt {len(prompts)}"
        raise records.IntakeError(f"{folder}: {problem}; give one prompt a video, line by line")
    rows = (dict(path=video.strip(), text=prompt) for video, prompt in zip(videos, prompts))
    entries, left_out = _gather(folder / "videos.txt", enumerate(rows, start=1))
    return records.Listing(folder, "lists", entries, left_out)


Rows = Iterable[tuple[int, dict[str, Any] | str]]  # (line or row number, its fields or why there are none)


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
        rows = json.loads(captions_lib.read_text(path))
    except ValueError as error:
        raise records.IntakeError(f"{path}: is no JSON ({error}); mend the file") from error
    if not isinstance(rows, list):
        raise records.IntakeError(f"{path}: holds no list; give a list of objects, one a video")
    for number, row in enumerate(rows, start=1):
        yield number, row if isinstance(row, dict) else "is no JSON object"


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow  # slow to import, and only this layout needs it
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            lowered = {alias for aliases in COLUMNS.values() for alias in aliases}
            columns = [name for name in file.schema_arrow.names if name.lower() in lowered]
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise records.IntakeError(f"{path}: cannot be read as parquet ({error}); write it again") from error


def _fields(row: dict[str, Any]) -> dict[str, Any]:
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
        raise _Unusable(f"{field} is no number", repr(value)) from None
    if not math.isfinite(number) or number < 0:
        raise _Unusable(f"{field} is no number from 0 on", repr(value))
    return number


def _entry(place: pathlib.Path, row: dict[str, Any] | str) -> tuple[records.Entry, bool]:
    """(the video with at most one caption, whether that is of a part of it alone)."""
    if isinstance(row, str):
        raise _Unusable("row cannot be read", row)
    fields = _fields(row)
    for name in ("path", "text", "name"):
        if isinstance(fields[name], str) and _NOT_UTF8.search(fields[name]):
            raise _Unusable(f"{name} is not UTF-8 text", "")
    if not isinstance(fields["path"], str) or not fields["path"].strip():
        raise _Unusable("names no video", f"path is {fields['path']!r}")
    path = place / fields["path"].strip()
    if not path.exists():
        raise _Unusable("no such file", str(path))
    split = None if fields["split"] is None else _SPLITS.get(str(fields["split"]).strip().lower(), "")
    if split == "":
        raise _Unusable("split is unknown", repr(fields["split"]))
    try:
        start, end = captions_lib.interval(_number(fields["start"], "start"), _number(fields["end"], "end"))
    except _Unusable:
        raise
    except ValueError as error:
        raise _Unusable("start is not before end", str(error)) from error
    text = records.clean(fields["text"]) if isinstance(fields["text"], str) else ""
    fps = _number(fields["fps"], "fps") or None
    frame = _number(fields["frame"], "frame")
    if frame is not None and (frame != int(frame) or fields["start"] is not None or fields["end"] is not None):
        raise _Unusable("frame is no number by itself", repr(fields["frame"]))
    frame = None if frame is None else int(frame)
    captions = (records.Caption(text, start, end, frame),) if text else ()
    name = fields["path"].strip() if fields["name"] is None else str(fields["name"]).strip()
    return records.Entry(name, path, captions, fps, split), frame is not None or (start, end) != (0.0, math.inf)


def _gather(path: pathlib.Path, rows: Rows) -> tuple[tuple[records.Entry, ...], tuple[records.LeftOut, ...]]:
    """Videos by name, with the captions of all their rows; and the rows left out."""
    found: dict[str, records.Entry] = {}
    left_out, seen = [], False
    for number, row in rows:
        if not seen and isinstance(row, dict):
            _check_columns(path, row)
            seen = True
        place = f"{path.name}:{number}"
        try:
            entry, partial = _entry(path.parent, row)
        except _Unusable as error:
            reason, detail = error.args
            left_out.append(records.LeftOut(place, "listed", reason, detail))
            continue
        before = found.get(entry.name)
        if before is None:
            found[entry.name] = entry
        elif partial and before.path == entry.path:
            found[entry.name] = dataclasses.replace(before, captions=before.captions + entry.captions)
        else:
            left_out.append(records.LeftOut(place, "listed", "name occurs twice", entry.name))
    return tuple(found[name] for name in sorted(found)), tuple(left_out)


def _check_columns(path: pathlib.Path, row: dict[str, Any]) -> None:
    names = [str(name) for name in row]
    if not {name.strip().lower() for name in names} & set(COLUMNS["path"]):
        raise records.IntakeError(
            f"{path}: no column names the video; there are {', '.join(names)}; call one of them {COLUMNS['path'][0]!r}"
        )
