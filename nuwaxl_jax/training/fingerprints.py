"""A number for every array of a state: one changed element always changes it, its sharding never does.

It is the sum of the array's words under odd weights modulo 2^32, computed before a save and after a restore. Hashes of
files (`manifest`) say that the files are what was written; fingerprints say that the arrays are what was trained.
"""

from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from nuwaxl_jax import partitioning

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def _partial(block: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The sum over `block`, which begins at `start` of an array of `shape`."""
    bits = np.ascontiguousarray(block).reshape(*block.shape, 1)
    bits = bits.view(_BITS[min(bits.dtype.itemsize, 4)])  # 8-byte types: the last axis doubles
    index = np.zeros((1,) * bits.ndim, np.uint32)
    for d, size in enumerate((*shape, bits.shape[-1])):
        place = np.arange(bits.shape[d], dtype=np.uint32) + np.uint32(start[d] if d < len(start) else 0)
        index = index * np.uint32(size % 2**32) + place.reshape(-1, *(1,) * (bits.ndim - d - 1))
    index = (index ^ (index >> np.uint32(15))) * np.uint32(0x2C1B3C6D)  # mixed, so that swapped neighbours show too
    return int(np.sum(bits * (np.uint32(2) * index + np.uint32(1)), dtype=np.uint32))


def _fingerprint(x: Any) -> int:
    """This process's share: each piece of the array counts once over all processes."""
    if not isinstance(x, jax.Array):
        return _partial(np.asarray(x), (0,) * np.ndim(x), np.shape(x))
    pieces = [(np.asarray(piece.data), piece.index) for piece in x.addressable_shards if piece.replica_id == 0]
    return sum(_partial(data, tuple(i.start or 0 for i in index), x.shape) for data, index in pieces) % 2**32


def fingerprints(tree: Any) -> dict[str, int]:
    """{path: number} of a tree of arrays, the same on every process and under every sharding; waits for the device.

    On the host: compiled, the hundreds of arrays of a state would take longer than the sums themselves.
    """
    named = [(partitioning.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    sums = np.array([_fingerprint(leaf) for _, leaf in named], np.uint32)
    if jax.process_count() > 1 and any(isinstance(leaf, jax.Array) for _, leaf in named):
        sums = np.sum(multihost_utils.process_allgather(sums), axis=0, dtype=np.uint32)
    return dict(zip((name for name, _ in named), sums.tolist()))


def problem(tree: Any, saved: dict[str, int]) -> str:
    """What differs between the arrays of `tree` and the fingerprints of a save; '' where nothing does."""
    found = fingerprints(tree)
    wrong = [name for name in sorted(set(found) | set(saved)) if found.get(name) != saved.get(name)]
    return f"{len(wrong)} of {len(found)} arrays are not what was saved, first {wrong[0]!r}" if wrong else ""
