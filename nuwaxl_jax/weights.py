"""Weights as one safetensors file: a bundle's arrays, and in its header the resolved config and a card, as JSON;
with CLIP's tokenizer also its vocabulary.

A bundle is everything sampling needs: `{'vae', 'latent_shift', 'latent_scale', 'denoisers': (tree, ...)}` with the
moving averages of the parameters. Reading one runs no code and opens no pickle.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import pathlib
from typing import Any

from flax import traverse_util
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.data import clip_bpe

Bundle = dict[str, Any]
SHIPPED = "toons_small.safetensors"


def _flatten(bundle: Bundle) -> dict[str, Any]:
    numbered = {str(i): tree for i, tree in enumerate(bundle["denoisers"])}
    return traverse_util.flatten_dict({**bundle, "denoisers": numbered}, sep="/")


def _unflatten(flat: dict[str, np.ndarray]) -> Bundle:
    tree = traverse_util.unflatten_dict(flat, sep="/")
    denoisers = tree.get("denoisers", {})
    tree["denoisers"] = tuple(denoisers[str(i)] for i in range(len(denoisers)))
    return tree


def save(
    path: str | os.PathLike,
    bundle: Bundle,
    config: ml_collections.ConfigDict,
    card: dict[str, Any],
    dtype: str = "float16",
) -> None:
    """Writes a bundle by atomic rename; float arrays are stored as `dtype`, the latent statistics as float32."""
    flat = {}
    for name, value in _flatten(bundle).items():
        kept = np.float32 if name.startswith("latent_") else np.dtype(dtype)
        flat[name] = np.ascontiguousarray(np.asarray(value).astype(kept))
        if not np.isfinite(flat[name]).all():
            raise ValueError(f"weights: {name} does not fit {kept}; save it with dtype float32")
    metadata = {"config": config_lib.to_json(config), "card": json.dumps(card, sort_keys=True)}
    if config.text.tokenizer == "clip_bpe":
        metadata[clip_bpe.HEADER_KEY] = clip_bpe.read(config.text.vocabulary).to_json()
    save_tensors(path, flat, metadata)


def save_tensors(
    path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """One safetensors file, by atomic rename."""
    part = f"{os.fspath(path)}.part"
    safetensors.numpy.save_file(tensors, part, metadata=metadata)
    os.replace(part, path)


def load(
    path: str | os.PathLike, only: tuple[str, ...] = ("",)
) -> tuple[Bundle, ml_collections.ConfigDict, dict[str, Any]]:
    """(bundle in float32, its config, its card plus `file`, `dtype` (as stored) and `sha256`).

    only: beginnings of the arrays' names, 'vae/', 'latent_', 'denoisers/0/'; others are not read.

    Raises:
      FileNotFoundError, ValueError: one line that says what is wrong with the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} does not exist; give a .safetensors file, or --weights=shipped")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys() if name.startswith(only)}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"weights: {path} is not a readable safetensors file ({error}); fetch or export it again"
        ) from error
    if "config" not in metadata:
        raise ValueError(f"weights: {path} carries no config; it was not written by --mode=export")
    card = json.loads(metadata.get("card", "{}"))
    half = any(value.dtype == np.float16 for value in stored.values())
    card |= {"file": path.name, "dtype": "float16" if half else "float32", "sha256": digest(path)}
    flat = {name: value.astype(np.float32) for name, value in stored.items()}
    config = config_lib.from_json(metadata["config"])
    if clip_bpe.HEADER_KEY in metadata:
        config.text.vocabulary = os.fspath(path)
    return _unflatten(flat), config, card


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(bundle: Bundle) -> str:
    """SHA-256 of a bundle's names, shapes and numbers as float32, whatever file or checkpoint they come from."""
    hashed = hashlib.sha256()
    for name, value in sorted(_flatten(bundle).items()):
        value = np.ascontiguousarray(np.asarray(value, np.float32))
        hashed.update(f"{name} {value.shape}\n".encode())
        hashed.update(value.data)
    return hashed.hexdigest()


def find(name: str) -> pathlib.Path:
    """The path of a file, or of the weights that come with the package: 'shipped', or ''."""
    if name in ("", "shipped"):
        return pathlib.Path(str(importlib.resources.files("nuwaxl_jax") / "assets" / SHIPPED))
    return pathlib.Path(name)
