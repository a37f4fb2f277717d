"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any
import uuid


def write_bytes(path: str | os.PathLike, data: bytes, shared: bool = False) -> None:
    """Writes `data`; a reader sees the old file or the new one.

    Args:
      shared: other processes may write the same file at the same time; the last one's stays.
    """
    own = f".{uuid.uuid4().hex[:8]}" if shared else ""
    part = f"{os.fspath(path)}{own}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        if shared:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)


def joined(path: str | os.PathLike, record: dict[str, Any], field: str) -> dict[str, Any]:
    """`record`, and in its `field` also what the JSON file at `path` has there, if all other fields are equal."""
    if not os.path.isfile(path):
        return record
    with open(path, encoding="utf-8") as file:
        before = json.load(file)
    alike = isinstance(before, dict) and before | {field: record[field]} == record
    return record | {field: before.get(field, {}) | record[field]} if alike else record


def write_json(path: str | os.PathLike, value: Any, shared: bool = False) -> None:
    """Writes `value` as indented JSON with sorted keys; `shared` as of `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), shared)
