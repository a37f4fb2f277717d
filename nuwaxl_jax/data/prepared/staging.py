"""The folder in which a set grows: shards that appear whole, who is at work on which, and what turned out damaged.

    settings.json            what the set is made from; other settings or videos are refused
    shards/<unit>.json       the shard is complete; its records are in <unit>.array_record
    shards/<unit>.tmp        the shard being written
    claims/<unit>            locked by who writes that shard; the lock goes with the process
    damaged/<video>-<frame>  a video that cannot be decoded from a part that starts at that frame
    dataset/                 the set being put together

Whatever is killed here at any moment can be gone on with, by one or by several.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import os
import pathlib
from typing import Any

from nuwaxl_jax import files
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import plan as plan_lib

_FREE = "free some space, then run the same command again: it goes on from what is done, which is kept"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns an error of the disk into one line.

    FileNotFoundError passes, for folders that another has finished with, and BlockingIOError, for locks.

    Raises:
      PreparationError: the disk is full, may not be written, or fails.
    """
    try:
        yield
    except (FileNotFoundError, BlockingIOError):
        raise
    except (OSError, RuntimeError) as error:  # ArrayRecord's errors are RuntimeErrors
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split()).split(";")[0]
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason
        mend = _FREE if full else "give a folder that can be written"
        raise format_lib.PreparationError(f"{path}: cannot be written ({reason}); {mend}") from error


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool = True) -> Iterator[bool]:
    """Whether a file could be locked, until the end of the block or of the process."""
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            with writing(path):
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


class Staging:
    """See the module's docstring; safe to use by several processes and threads at once."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self.dataset = self.folder / "dataset"
        self._shards, self._claims, self._damaged = (self.folder / name for name in ("shards", "claims", "damaged"))

    def settle(self, plan: plan_lib.Plan) -> None:
        """Makes the folder, or checks that what it holds is of the same settings and videos.

        Raises:
          PreparationError: it is not, or cannot be written.
        """
        sources = plan.sources()
        with writing(self.folder):
            for each in (self._shards, self._claims, self._damaged):
                each.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "lock"):
                note = self.folder / "settings.json"
                if note.exists():
                    self._check(json.loads(note.read_text(encoding="utf-8")), sources)
                else:
                    files.write_json(note, sources)

    def _check(self, was: dict[str, Any], now: dict[str, Any]) -> None:
        differs = plan_lib.difference(was, now)
        if differs:
            raise format_lib.PreparationError(
                f"{self.folder}: holds the beginning of another set: {differs}; "
                f"set that back, or remove {self.folder}, or give another --out"
            )

    def finishing(self) -> contextlib.AbstractContextManager[bool]:
        """Held by the one who puts the set together."""
        return locked(self.folder / "lock")

    def claim(self, unit: plan_lib.Unit) -> contextlib.AbstractContextManager[bool]:
        """Whether this shard is now ours to make."""
        return locked(self._claims / unit.name, wait=False)

    def temporary(self, unit: plan_lib.Unit) -> pathlib.Path:
        return self._shards / f"{unit.name}.tmp"

    def shard(self, unit: plan_lib.Unit) -> pathlib.Path:
        return self._shards / f"{unit.name}.array_record"

    def note(self, unit: plan_lib.Unit) -> pathlib.Path:
        """The file that says the shard is complete."""
        return self._shards / f"{unit.name}.json"

    def complete(self, unit: plan_lib.Unit, made: dict[str, Any]) -> None:
        """Gives a written shard its name, then says what is in it."""
        with writing(self.shard(unit)):
            if made["frames"]:
                sync(self.temporary(unit))
                os.replace(self.temporary(unit), self.shard(unit))
                sync(self._shards)
            files.write_bytes(self.note(unit), json.dumps(made).encode())
            sync(self._shards)

    def made(self, unit: plan_lib.Unit) -> dict[str, Any]:
        """What is in a complete shard."""
        return json.loads(self.note(unit).read_text(encoding="utf-8"))

    def mark_damaged(self, piece: plan_lib.Piece, message: str) -> None:
        """Notes that a piece cannot be decoded."""
        path = self._damaged / f"{piece.video}-{piece.start}"
        with writing(path):
            files.write_bytes(path, message.encode("utf-8", "surrogateescape"))

    def is_damaged(self, piece: plan_lib.Piece) -> bool:
        """Whether this piece cannot be decoded."""
        return (self._damaged / f"{piece.video}-{piece.start}").exists()

    def damaged(self) -> dict[int, str]:
        """Video -> why its earliest bad part cannot be decoded; the same whoever came upon it first."""
        found: dict[int, tuple[int, str]] = {}
        for path in self._damaged.iterdir():
            if path.suffix == ".part":
                continue
            video, start = (int(number) for number in path.name.split("-"))
            if video not in found or start < found[video][0]:
                found[video] = start, path.read_text(encoding="utf-8", errors="surrogateescape")
        return {video: message for video, (_, message) in sorted(found.items())}
