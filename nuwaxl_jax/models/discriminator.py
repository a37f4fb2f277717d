"""The patch discriminator (Isola et al., arXiv:1611.07004) of latent diffusion's autoencoders.

A fully convolutional network whose every output is a logit for one patch of the frame, above 0 for a real one: strided
4x4 convolutions that double the channels (to eight times at most), then two of stride 1; LeakyReLU between. With
three strided layers a patch is 70 x 70 pixels.

[ours]: group norm where the original has batch norm. It keeps no statistics, so the network stays a pure function of
its parameters, and it does not mix frames, so a clip is judged frame by frame on any number of devices.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from nuwaxl_jax.models import layers

_PADDING = ((1, 1), (1, 1))


def min_size(num_layers: int) -> int:
    """The smallest height and width, in pixels, that leave one logit."""
    return 3 * 2**num_layers


class PatchDiscriminator(nn.Module):
    """Frames `[N, H, W, 3]`, float in [-1, 1], to logits `[N, H / 2^n - 2, W / 2^n - 2]`, float32, n = num_layers."""

    channels: int = 64
    num_layers: int = 3
    dtype: layers.Dtype = jnp.float32

    def _conv(self, features: int, stride: int, use_bias: bool, name: str) -> nn.Conv:
        init = nn.initializers.normal(0.02)
        return nn.Conv(
            features, (4, 4), stride, _PADDING, use_bias=use_bias, kernel_init=init, dtype=self.dtype, name=name
        )

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 4 or min(x.shape[1:3]) < min_size(self.num_layers):
            raise ValueError(
                f"PatchDiscriminator with {self.num_layers} layers needs [N, H, W, 3], H and W at least "
                f"{min_size(self.num_layers)}; got {x.shape}"
            )
        x = nn.leaky_relu(self._conv(self.channels, 2, True, "conv0")(x), 0.2)
        for i in range(1, self.num_layers + 1):
            stride = 2 if i < self.num_layers else 1
            x = self._conv(self.channels * min(2**i, 8), stride, False, f"conv{i}")(x)
            x = nn.leaky_relu(layers.GroupNorm(dtype=self.dtype, name=f"norm{i}")(x), 0.2)
        return self._conv(1, 1, True, "logit")(x)[..., 0].astype(jnp.float32)
