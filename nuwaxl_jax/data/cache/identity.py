"""What tells one set of videos, and one tree of parameters, from another: hashes over contents, not over places."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np

from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.data import sources

_EPISODES = 16  # looked into, where a source cannot tell for itself
_FRAMES = 4  # of each


def of_tree(tree: Any) -> str:
    """SHA-256 of a tree of arrays: paths, shapes, types and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def of_vocabulary(path: str) -> str:
    """SHA-256 of a vocabulary of CLIP's, the same for every kind of file that holds it.

    Raises:
      VocabularyError: none is there, or it is damaged.
    """
    known = clip_bpe.read(path)
    values = dict(ids=known.ids, merges=known.merges, pad=known.pad)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def of_source(source: sources.EpisodeSource) -> str:
    """SHA-256 of a source's own `fingerprint()`; without one, of all lengths and of frames and captions of some
    episodes."""
    own = getattr(source, "fingerprint", None)
    if own is not None:
        return hashlib.sha256(own().encode("utf-8", "surrogateescape")).hexdigest()
    lengths = [source.num_frames(i) for i in range(len(source))]
    digest = hashlib.sha256(json.dumps(lengths).encode())
    for i in np.unique(np.linspace(0, len(source) - 1, _EPISODES).astype(int)).tolist():
        index = np.linspace(0, lengths[i] - 1, _FRAMES).astype(int)
        digest.update(np.ascontiguousarray(source.frames(i, index)).tobytes())
        digest.update(json.dumps(source.captions(i, index)).encode())
    return digest.hexdigest()
