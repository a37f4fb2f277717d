"""Inception-v3 as FID has it (Heusel et al., arXiv:1706.08500): 2048 features a frame.

The network is TensorFlow's of December 2015, which the `pytorch-fid` package made available in torch, and differs from
the usual Inception-v3 in its pooling: averages leave padding out, and the last block takes a maximum where the others
take an average. Frames are resized to 299x299, bilinear, centres of pixels at halves, without smoothing when they
shrink. Batch normalisation (epsilon 1e-3) is folded into the convolutions as weights are read.

The weights are not in this project or any package: `pt_inception-2015-12-05-6726825d.pth` of the pytorch-fid
repository's release "fid_weights", by path; or the same tensors in safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nuwaxl_jax.evaluation.features import pickles
from nuwaxl_jax.importing import tensors as tensors_lib

HASH_BEGINS = "6726825d"  # the SHA-256 of the standard file, whose name says so
SIZE = 299  # pixels
WIDTH = 2048  # features
_EPSILON = 1e-3  # of batch normalisation


class Unit(nn.Module):
    """ReLU of a convolution `[n, H, W, c]` with a bias."""

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True  # to keep height and width; else not at all

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = [((k - 1) // 2,) * 2 if self.padded else (0, 0) for k in self.size]
        strides = (self.stride, self.stride)
        return nn.relu(nn.Conv(self.features, self.size, strides, padding, precision="highest", name="conv")(x))


def _max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _mean_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


class Inception(nn.Module):
    """Frames float32 `[n, 299, 299, 3]` in [-1, 1] to features `[n, 2048]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = lambda x, name, *fields: Unit(*fields, name=name)(x)
        x = unit(x, "Conv2d_1a_3x3", 32, (3, 3), 2, False)
        x = unit(x, "Conv2d_2a_3x3", 32, (3, 3), 1, False)
        x = _max_pool(unit(x, "Conv2d_2b_3x3", 64, (3, 3)))
        x = unit(x, "Conv2d_3b_1x1", 80)
        x = _max_pool(unit(x, "Conv2d_4a_3x3", 192, (3, 3), 1, False))
        for block, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = self._thick(x, f"Mixed_{block}", pooled)
        x = self._shrink(x, "Mixed_6a", ((384, 3, 2),), ((64, 1), (96, 3), (96, 3, 2)), ("branch3x3", "branch3x3dbl"))
        for block, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = self._crossed(x, f"Mixed_{block}", width)
        long = ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))
        x = self._shrink(x, "Mixed_7a", ((192, 1), (320, 3, 2)), long, ("branch3x3", "branch7x7x3"))
        x = self._split(x, "Mixed_7b", _mean_pool)
        x = self._split(x, "Mixed_7c", lambda x: nn.max_pool(x, (3, 3), (1, 1), "SAME"))
        return x.mean((1, 2))

    def _chain(self, x: jax.Array, name: str, steps: tuple) -> jax.Array:
        """Units one after the other, `name_1`, `name_2`, ...: (features, size[, stride 2 without padding])."""
        for i, (features, size, *stride) in enumerate(steps, 1):
            size = (size, size) if isinstance(size, int) else size
            label = f"{name}_{i}" if len(steps) > 1 else name
            x = Unit(features, size, *(stride and (2, False)), name=label)(x)
        return x

    def _thick(self, x: jax.Array, block: str, pooled: int) -> jax.Array:
        chain = lambda x, branch, *steps: self._chain(x, f"{block}.{branch}", steps)
        branches = (
            chain(x, "branch1x1", (64, 1)),
            chain(x, "branch5x5", (48, 1), (64, 5)),
            chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            chain(_mean_pool(x), "branch_pool", (pooled, 1)),
        )
        return jnp.concatenate(branches, axis=-1)

    def _shrink(self, x: jax.Array, block: str, one: tuple, other: tuple, names: tuple[str, str]) -> jax.Array:
        first, second = (self._chain(x, f"{block}.{name}", steps) for name, steps in zip(names, (one, other)))
        return jnp.concatenate((first, second, _max_pool(x)), axis=-1)

    def _crossed(self, x: jax.Array, block: str, width: int) -> jax.Array:
        chain = lambda x, branch, *steps: self._chain(x, f"{block}.{branch}", steps)
        row, column = (1, 7), (7, 1)
        branches = (
            chain(x, "branch1x1", (192, 1)),
            chain(x, "branch7x7", (width, 1), (width, row), (192, column)),
            chain(x, "branch7x7dbl", (width, 1), (width, column), (width, row), (width, column), (192, row)),
            chain(_mean_pool(x), "branch_pool", (192, 1)),
        )
        return jnp.concatenate(branches, axis=-1)

    def _split(self, x: jax.Array, block: str, pool: Any) -> jax.Array:
        unit = lambda x, branch, *fields: Unit(*fields, name=f"{block}.{branch}")(x)
        short = unit(x, "branch3x3_1", 384)
        long = unit(unit(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, (3, 3))
        branches = (
            unit(x, "branch1x1", 320),
            unit(short, "branch3x3_2a", 384, (1, 3)),
            unit(short, "branch3x3_2b", 384, (3, 1)),
            unit(long, "branch3x3dbl_3a", 384, (1, 3)),
            unit(long, "branch3x3dbl_3b", 384, (3, 1)),
            unit(pool(x), "branch_pool", 192),
        )
        return jnp.concatenate(branches, axis=-1)


@functools.cache
def _shapes() -> Mapping[str, Any]:
    frames = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), frames)["params"]


def params_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `Inception` from the original's tensors, batch normalisation folded in.

    Args:
      tensors: `Conv2d_1a_3x3.conv.weight` [out, in, h, w], `Conv2d_1a_3x3.bn.{weight, bias, running_mean,
        running_var}`, ...; others (the classifier) are left alone.

    Raises:
      ValueError: a tensor that is missing or has another shape.
    """

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"no tensor {name!r}")
        value = np.asarray(tensors[name], np.float64)
        if value.shape != shape:
            raise ValueError(f"{name!r} has shape {value.shape}, not {shape}")
        return value

    out = {}
    for name, unit in _shapes().items():
        rows, columns, inputs, features = unit["conv"]["kernel"].shape
        norm = {key: take(f"{name}.bn.{key}", (features,)) for key in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / np.sqrt(norm["running_var"] + _EPSILON)
        kernel = take(f"{name}.conv.weight", (features, inputs, rows, columns)).transpose(2, 3, 1, 0) * scale
        bias = norm["bias"] - norm["running_mean"] * scale
        out[name] = {"conv": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}
    return out


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The parameters of `Inception` in a file.

    Raises:
      ValueError: it cannot be read or holds other tensors.
    """
    path = pathlib.Path(path)
    try:
        return params_of(tensors_lib.Tensors(path) if path.suffix == ".safetensors" else pickles.read_torch(path))
    except ValueError as error:
        mend = "give pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or its tensors in safetensors"
        raise ValueError(f"{error}; {mend}") from error
