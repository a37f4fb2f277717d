"""Examples of one training stage in ArrayRecord files.

    FOLDER/header.json           the key, what the examples were made of; how many are wanted
    FOLDER/00012.array_record    examples 12 K .. 13 K - 1, a record each, K = SHARD
    FOLDER/00012.lock            held by the process that is writing it; vanishes with the process

A shard appears by renaming when it is complete, so whoever is stopped at any moment goes on with the shards that are
missing, and two writers share them. A record is a CRC-32 and a msgpack of arrays: reading one runs no code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import errno
import fcntl
import functools
import json
import os
import pathlib
import struct
import threading
import time
from typing import Any
import uuid
import zlib

from array_record.python import array_record_module as array_record
from flax import serialization
import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax.data.cache import elements

SHARD = 64  # examples a file
HEADER = "header.json"

_PAUSE = 0.1  # seconds from look to look at a lock that another holds

_CRC = struct.Struct("<I")

Element = dict[str, np.ndarray]


class CacheError(ValueError):
    """A cache that cannot be used or written: one line, which folder, what is wrong, the mend."""


def pack(element: Element) -> bytes:
    """An example as the bytes of a record."""
    body = serialization.msgpack_serialize({name: np.asarray(value) for name, value in element.items()})
    return _CRC.pack(zlib.crc32(body)) + body


def unpack(record: bytes, where: str) -> Element:
    """`pack`'s example again; CacheError where a bit has changed."""
    if len(record) < _CRC.size or _CRC.unpack_from(record)[0] != zlib.crc32(record[_CRC.size :]):
        raise CacheError(f"data.cache: {where} is damaged; remove that file and run --mode=data --cache again")
    return serialization.msgpack_restore(record[_CRC.size :])


def _differences(saved: Any, given: Any, prefix: str = "") -> list[str]:
    """'field old -> new' of every leaf of two JSON values that differs."""
    if isinstance(saved, dict) and isinstance(given, dict):
        names = sorted({*saved, *given})
        return [d for n in names for d in _differences(saved.get(n), given.get(n), f"{prefix}{n}.")]
    return [] if saved == given else [f"{prefix.rstrip('.')} {_short(saved)} -> {_short(given)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text[:9]}..'" if isinstance(value, str) and len(text) > 40 else text


class Folder:
    """One stage's cache.

    Attributes:
      path: of the folder.
      key: JSON dict that the examples follow from.
      count: examples, a multiple of SHARD.
    """

    def __init__(self, path: str | os.PathLike, key: dict[str, Any], count: int):
        self.path, self.key, self.count = pathlib.Path(path), key, count

    @classmethod
    def create(cls, path: str | os.PathLike, key: dict[str, Any], count: int) -> Folder:
        """Makes the folder, or opens one of the same key, which then holds at least `count` examples.

        Raises:
          CacheError: it was made of something else, or cannot be written.
        """
        path, wanted = pathlib.Path(path), -(-count // SHARD) * SHARD
        if (path / HEADER).exists():
            there = cls.open(path, key)
            if there.count >= wanted:
                return there
        folder = cls(path, key, wanted)
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            files.write_json(path / HEADER, dict(key=key, count=wanted), shared=True)
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike, key: dict[str, Any]) -> Folder:
        """Opens a folder, complete or not.

        Raises:
          CacheError: none is there, or it was made of something else.
        """
        path = pathlib.Path(path)
        if not (path / HEADER).exists():
            raise CacheError(f"data.cache: {path} holds no cache; make it with --mode=data --cache and the same flags")
        try:
            header = json.loads((path / HEADER).read_text(encoding="utf-8"))
            saved, count = header["key"], int(header["count"])
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(f"data.cache: {path / HEADER} cannot be read ({error}); remove the folder") from error
        if wrong := _differences(saved, json.loads(json.dumps(key))):
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise CacheError(
                f"data.cache: {path} was made of something else: {'; '.join(wrong[:4])}{more}; use those, or another "
                "folder"
            )
        return cls(path, key, count)

    @property
    def num_shards(self) -> int:
        return self.count // SHARD

    def shard(self, number: int) -> pathlib.Path:
        """Path of a shard."""
        return self.path / f"{number:05d}.array_record"

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there."""
        there = {name for name in os.listdir(self.path) if name.endswith(".array_record")}
        return [number for number in range(self.num_shards) if self.shard(number).name not in there]

    @contextlib.contextmanager
    def claim(self, number: int, wait: Callable[[], None] | None = None) -> Iterator[bool]:
        """True while this process alone may write a shard that is not there.

        wait: called again and again while another writes it; may raise. None: False where another does.
        """
        path = self.path / f"{number:05d}.lock"
        with _writing(self.path):
            lock = open(path, "w", encoding="utf-8")
        with lock:
            try:
                _lock(lock, wait)
                mine = not self.shard(number).exists()
                for part in self.path.glob(f".{number:05d}.*.part"):  # of a writer that was killed
                    part.unlink(missing_ok=True)
            except BlockingIOError:
                mine = False
            except OSError as error:  # a file system without locks: both write, and what they write is the same
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                mine = not self.shard(number).exists()
            yield mine
            if self.shard(number).exists():
                path.unlink(missing_ok=True)

    def write(self, number: int, elements: Iterable[Element]) -> None:
        """Writes a shard of SHARD examples, all or nothing.

        Raises:
          CacheError: no space, or a folder that cannot be written.
          ValueError: another number of examples.
        """
        part = self.path / f".{number:05d}.{uuid.uuid4().hex[:12]}.part"
        with _writing(self.path):
            try:
                writer, written = array_record.ArrayRecordWriter(str(part), "group_size:1"), 0
                try:
                    for written, element in enumerate(elements, start=1):
                        writer.write(pack(element))
                finally:
                    writer.close()
                if written != SHARD or _num_records(part) != SHARD:  # the library keeps quiet about a full disk
                    raise OSError(errno.EIO, f"{written} examples made, {_num_records(part)} written")
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(part, self.shard(number))
            finally:
                part.unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes of the shards that are there."""
        return sum(os.path.getsize(self.shard(n)) for n in range(self.num_shards) if self.shard(n).exists())


def _lock(file: Any, wait: Callable[[], None] | None) -> None:
    """Raises BlockingIOError where another holds it, and `wait` is None."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise
        wait()
        time.sleep(_PAUSE)


def _num_records(path: pathlib.Path) -> int:
    """Records of a file; 0 where it is damaged, which the library says in either of two ways."""
    try:
        reader = array_record.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError:
        return 0
    return count


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except CacheError:
        raise
    except (OSError, RuntimeError) as error:  # the library's errors are RuntimeErrors
        reason = " ".join(str(error).split())
        raise CacheError(f"data.cache: {path} cannot be written ({reason}); what is complete there is kept") from error


def noted_key(path: str | os.PathLike) -> dict[str, Any]:
    """The key of the cache in a folder; empty where there is none."""
    try:
        return dict(json.loads((pathlib.Path(path) / HEADER).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class Examples:
    """Random access to a complete folder's examples; thread-safe, and cheap to copy into processes."""

    def __init__(self, folder: Folder):
        """Checks that every shard is whole.

        Raises:
          CacheError: shards are missing or damaged.
        """
        if missing := folder.missing():
            have = f"{folder.num_shards - len(missing)} of {folder.num_shards} shards"
            raise CacheError(f"data.cache: {folder.path} has {have}; --mode=data --cache with the same flags goes on")
        self._folder = folder
        self._local = threading.local()
        for number in range(folder.num_shards):
            if (found := _num_records(folder.shard(number))) != SHARD:
                raise CacheError(
                    f"data.cache: {folder.shard(number)} is damaged, {found} of {SHARD} examples; remove that file and "
                    "run --mode=data --cache again"
                )

    def __len__(self) -> int:
        return self._folder.count

    @property
    def key(self) -> dict[str, Any]:
        """What the examples were made of."""
        return self._folder.key

    def __getitem__(self, index: int) -> Element:
        number, row = divmod(int(index), SHARD)
        where = f"{self._folder.shard(number)}, example {row},"
        try:
            [record] = self._reader(number).read([row])
        except (RuntimeError, ValueError, IndexError) as error:
            raise CacheError(
                f"data.cache: {where} cannot be read ({error}); remove that file and make it anew"
            ) from error
        return elements.read(unpack(record, where))

    def _reader(self, number: int) -> Any:
        # One open file a shard and thread: a few kB each.
        readers = self._local.__dict__.setdefault("readers", {})
        if number not in readers:
            readers[number] = array_record.ArrayRecordReader(str(self._folder.shard(number)))
        return readers[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._local = threading.local()


class Epochs:
    """Examples for ever: the first time in their own order, then shuffled anew each time; for grain."""

    def __init__(self, examples: Examples, seed: int):
        self._examples, self._seed = examples, seed

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> Element:
        epoch, place = divmod(int(index), len(self._examples))
        return self._examples[place if epoch == 0 else _order(len(self._examples), self._seed, epoch)[place]]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
