"""Weights as one safetensors file: a bundle's arrays, and in its header the resolved config and a card, as JSON.

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

import ml_collections
import numpy as np
import safetensors
import safetensors.numpy

from nuwaxl_jax import config as config_lib

Bundle = dict[str, Any]
SHIPPED = "toons_small.safetensors"


def _flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    items = enumerate(tree) if isinstance(tree, (tuple, list)) else tree.items()
    flat: dict[str, np.ndarray] = {}
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, (dict, tuple, list)):
            flat.update(_flatten(value, f"{name}/"))
        else:
            flat[name] = np.asarray(value)
    return flat


def _unflatten(flat: dict[str, np.ndarray]) -> Bundle:
    tree: Bundle = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
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
        flat[name] = np.ascontiguousarray(value.astype(kept))
        if not np.isfinite(flat[name]).all():
            raise ValueError(f"weights: {name} does not fit {kept}; save it with dtype float32")
    metadata = {"config": config_lib.to_json(config), "card": json.dumps(card, sort_keys=True)}
    part = f"{os.fspath(path)}.part"
    safetensors.numpy.save_file(flat, part, metadata=metadata)
    os.replace(part, path)


def load(path: str | os.PathLike) -> tuple[Bundle, ml_collections.ConfigDict, dict[str, Any]]:
    """(bundle in float32, its config, its card plus `file` and `sha256`).

    Raises:
      FileNotFoundError, ValueError: one line that says what is wrong with the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} does not exist; give a .safetensors file, or --weights=shipped")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"weights: {path} is not a readable safetensors file ({error}); fetch or export it again"
        ) from error
    if "config" not in metadata:
        raise ValueError(f"weights: {path} carries no config; it was not written by --mode=export")
    card = json.loads(metadata.get("card", "{}"))
    card |= {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return _unflatten(flat), config_lib.from_json(metadata["config"]), card


def shipped_path() -> pathlib.Path:
    """The weights that come with the package."""
    return pathlib.Path(str(importlib.resources.files("nuwaxl_jax") / "assets" / SHIPPED))
