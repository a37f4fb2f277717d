"""Tensors of public checkpoints by name: one safetensors file, or a folder with one or with shards and their index.

Pickled files (.bin, .ckpt, .pt, .pth) are refused: reading one runs its author's code.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Iterator, Mapping

import numpy as np
import safetensors

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


class WeightsError(ValueError):
    """One line: what is wrong with the files, and the mend."""


class Tensors(Mapping):
    """name -> array, read when asked for; `shapes` without reading.

    Raises:
      WeightsError: no such file, a pickle, a damaged file, or shards that are missing.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self._file_of: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in _files(self.path):
            try:
                with safetensors.safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():
                        part = opened.get_slice(name)
                        self._file_of[name] = file
                        self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
            except safetensors.SafetensorError as error:
                raise WeightsError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error

    def __getitem__(self, name: str) -> np.ndarray:
        # NumPy has no bfloat16 of its own.
        framework = "flax" if self.dtypes[name] == "BF16" else "numpy"
        with safetensors.safe_open(self._file_of[name], framework=framework) as opened:
            return np.asarray(opened.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def digest(self) -> dict[str, str]:
        """File name -> SHA-256 of its bytes."""
        out = {}
        for file in sorted(set(self._file_of.values())):
            with open(file, "rb") as opened:
                out[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
        return out

    def __len__(self) -> int:
        return len(self._file_of)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        if path.suffix in PICKLES:
            raise WeightsError(f"{path}: is a pickle, and reading one runs code; give the .safetensors file instead")
        return [path]
    if not path.is_dir():
        raise WeightsError(f"{path}: does not exist; give a .safetensors file or a folder of a public model")
    indices = sorted(path.glob("*.safetensors.index.json"))
    if indices:
        shards = sorted(set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in shards if not (path / name).is_file()]
        if missing:
            raise WeightsError(f"{path}: {indices[0].name} names {missing[0]}, which is not there; fetch all shards")
        return [path / name for name in shards]
    found = [f for f in sorted(path.glob("*.safetensors")) if ".fp16." not in f.name] or sorted(
        path.glob("*.fp16.safetensors")
    )
    if len(found) == 1:
        return found
    if found:
        raise WeightsError(f"{path}: holds {len(found)} safetensors files and no index; name one of them")
    if any(f.suffix in PICKLES for f in path.iterdir()):
        raise WeightsError(f"{path}: holds pickles alone, and reading one runs code; fetch the .safetensors files")
    raise WeightsError(f"{path}: holds no .safetensors file")
