"""LPIPS (Zhang et al., arXiv:1801.03924) with VGG16: how different two images look.

    d(a, b) = sum over blocks l of  mean over pixels of  sum over channels c of  w_lc (u_lc(a) - u_lc(b))^2

u_l are the activations after the last convolution of VGG16's block l, five in all, at each pixel scaled to unit length
over its channels; w_l >= 0 are learned, one number a channel. Images in [-1, 1] are first shifted and scaled by the
published constants, which undo the range and standardise as VGG16 expects.

No weights come with the project. `params_of` takes those of the `lpips` package by their names there.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nuwaxl_jax.models import layers

CHANNELS = (64, 128, 256, 512, 512)  # of VGG16's five blocks
MIN_SIZE = 16  # pixels: four halvings leave one
_CONVS = (2, 2, 3, 3, 3)  # convolutions of each block
# Places of the convolutions in the torch original's list of layers, ReLUs and poolings counted.
_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def _unit(x: jax.Array) -> jax.Array:
    """`[N, h, w, c]` over its length at each pixel, float32; where all channels are 0, 0 with a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + 1e-10)


class VGG16(nn.Module):
    """Standardised images `[N, H, W, 3]` to the activations at the end of each block, `[N, H / 2^l, W / 2^l, c_l]`."""

    channels: Sequence[int] = CHANNELS
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        out = []
        for block, (features, count) in enumerate(zip(self.channels, _CONVS)):
            if block > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for i in range(count):
                x = nn.relu(layers.Conv2D(features, dtype=self.dtype, name=f"block{block}_conv{i}")(x))
            out.append(x)
        return out


class LPIPS(nn.Module):
    """Images `[N, H, W, 3]`, float in [-1, 1], at least 16 pixels a side, twice, to distances `[N]`, float32."""

    channels: Sequence[int] = CHANNELS
    dtype: layers.Dtype = jnp.float32

    def setup(self) -> None:
        self.vgg = VGG16(self.channels, self.dtype)
        self.heads = [
            self.param(f"head{block}", nn.initializers.ones, (features,), jnp.float32)
            for block, features in enumerate(self.channels)
        ]

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        if a.shape != b.shape or a.ndim != 4 or min(a.shape[1:3]) < MIN_SIZE:
            raise ValueError(
                f"LPIPS needs two batches [N, H, W, 3] of one shape, H and W at least {MIN_SIZE}; "
                f"got {a.shape} and {b.shape}"
            )
        shift, scale = jnp.array(_SHIFT), jnp.array(_SCALE)
        features = [self.vgg((x - shift) / scale) for x in (a, b)]
        total = jnp.zeros(a.shape[0])
        for head, one, other in zip(self.heads, *features):
            total += jnp.mean(jnp.square(_unit(one) - _unit(other)) @ head, axis=(1, 2))
        return total


def params_of(tensors: Mapping[str, np.ndarray], channels: Sequence[int] = CHANNELS) -> dict[str, Any]:
    """The parameters of `LPIPS`, float32, from the tensors of the `lpips` package's `LPIPS(net="vgg")`.

    Args:
      tensors: `net.slice1.0.weight` [out, in, 3, 3], `net.slice1.0.bias`, ..., `lin0.model.1.weight` [1, c, 1, 1], ...;
        others, such as the constants, are left alone.
      channels: of the blocks.

    Raises:
      ValueError: a tensor that is missing or has another shape.
    """

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"no tensor {name!r}; save the state of lpips.LPIPS(net='vgg')")
        value = np.asarray(tensors[name], np.float32)
        if value.shape != shape:
            raise ValueError(f"{name!r} has shape {value.shape}, not {shape}; save the state of lpips.LPIPS(net='vgg')")
        return value

    vgg, inputs = {}, 3
    for block, (places, features) in enumerate(zip(_PLACES, channels)):
        for i, place in enumerate(places):
            name = f"net.slice{block + 1}.{place}"
            kernel = take(f"{name}.weight", (features, inputs, 3, 3)).transpose(2, 3, 1, 0)  # [3, 3, in, out]
            vgg[f"block{block}_conv{i}"] = {"kernel": kernel, "bias": take(f"{name}.bias", (features,))}
            inputs = features
    heads = {
        f"head{block}": take(f"lin{block}.model.1.weight", (1, features, 1, 1)).reshape(-1)
        for block, features in enumerate(channels)
    }
    return {"vgg": vgg, **heads}
