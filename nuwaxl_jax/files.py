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


def write_json(path: str | os.PathLike, value: Any, shared: bool = False) -> None:
    """Writes `value` as indented JSON with sorted keys; `shared` as of `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), shared)
