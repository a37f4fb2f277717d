"""Between torch's layouts and ours, an `Entry` at a time, exactly: nothing is computed, only moved and joined."""

from __future__ import annotations

from typing import Mapping

import numpy as np

from nuwaxl_jax.importing.names import Entry


def to_ours(entry: Entry, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of ours, in the tensors' dtype.

    Raises:
      KeyError: a tensor is missing. ValueError: one has a number of axes that its kind cannot have.
    """
    parts = [_from_torch(entry, name, tensors[name]) for name in entry.theirs]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def to_theirs(entry: Entry, array: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that `to_ours` made the array of."""
    parts = np.split(array, len(entry.theirs), axis=-1) if len(entry.theirs) > 1 else [array]
    return {name: np.ascontiguousarray(_to_torch(entry.kind, part)) for name, part in zip(entry.theirs, parts)}


def _from_torch(entry: Entry, name: str, tensor: np.ndarray) -> np.ndarray:
    tensor = np.asarray(tensor)
    axes = {"conv": (4,), "linear": (2,), "pointwise": (2, 4), "plain": (1, 2)}[entry.kind]
    if tensor.ndim not in axes or (entry.kind == "pointwise" and tensor.shape[2:] not in ((), (1, 1))):
        raise ValueError(f"{name} has shape {tensor.shape}, which is no {entry.kind} tensor")
    if entry.kind == "conv":
        return tensor.transpose(2, 3, 1, 0)
    if entry.kind in ("linear", "pointwise"):
        return tensor.reshape(tensor.shape[:2]).T
    return tensor


def _to_torch(kind: str, array: np.ndarray) -> np.ndarray:
    if kind == "conv":
        return array.transpose(3, 2, 0, 1)
    if kind == "linear":
        return array.T
    return array.T[:, :, None, None] if kind == "pointwise" else array
