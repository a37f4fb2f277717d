"""What is known of a slice on this machine: how it was asked for, what runs on it, and what befell it.

<state>/<name>/slice.json     flags and run, so that `watch`, `delete` and the others need only --name
<state>/<name>/events.jsonl   a line each time something happens, with its time
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from typing import Any

DEFAULT = "~/.nuwaxl_launch"


@dataclasses.dataclass
class Record:
    """One slice's.

    Attributes:
      folder: <state>/<name>.
      quiet: write nothing (a dry run).
    """

    folder: pathlib.Path
    quiet: bool = False

    def load(self) -> dict[str, Any]:
        """What `save` wrote, or {}."""
        try:
            return json.loads((self.folder / "slice.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def save(self, **values: Any) -> None:
        """Adds to what is there."""
        self.replace(**{**self.load(), **values})

    def replace(self, **values: Any) -> None:
        """Forgets what was there."""
        if self.quiet:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "slice.json.part"
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(temporary, self.folder / "slice.json")

    def event(self, what: str, **values: Any) -> None:
        """Notes what happened now."""
        if self.quiet:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, "what": what, **values}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """All of them, oldest first."""
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def of(state: str, name: str, quiet: bool = False) -> Record:
    """The record of a name."""
    return Record(pathlib.Path(os.path.expanduser(state)) / name, quiet)
