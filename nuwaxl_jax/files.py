"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
from typing import Any


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data`; a reader sees the old file or the new one."""
    part = f"{os.fspath(path)}.part"
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
