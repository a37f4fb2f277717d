"""T-KLVAE (NUWA-XL, section 3.1): an image KL-VAE whose spatial layers stay, with temporal layers among them.

A temporal convolution follows each spatial 3x3 convolution and a temporal attention follows the spatial attention, in
encoder and decoder alike; both are the identity at initialisation, so a new T-KLVAE computes exactly what its image
KL-VAE does. There is no temporal compression: `[B, L, H, W, 3] -> [B, L, h, w, c]`.

The image part has latent diffusion's layout (arXiv:2112.10752, kl-f8): residual blocks of norm, SiLU, convolution
twice, attention in the middle block alone, asymmetric padding before a strided convolution, nearest upsampling. The
1x1 shortcut of a residual block is not spatial and gets no temporal convolution.

Calls take `temporal=False` to skip every temporal layer: then it *is* the image KL-VAE.
"""

from __future__ import annotations

from typing import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nuwaxl_jax.models import layers
from nuwaxl_jax.models import remat as remat_lib

TEMPORAL = ("none", "conv", "conv_attn")


class TConv(nn.Module):
    """A spatial convolution, then the temporal one: `[B, L, h, w, c] -> [B, L, h', w', features]`."""

    features: int
    stride: int = 1
    upsample: bool = False
    temporal: str = "conv_attn"
    temporal_init: str = "identity"
    temporal_padding: str = "edge"
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temporal: bool) -> jax.Array:
        length = x.shape[1]
        padding = "SAME" if self.stride == 1 else ((0, 1), (0, 1))
        conv = layers.Conv2D(
            self.features, stride=self.stride, padding=padding, upsample=self.upsample, dtype=self.dtype, name="spatial"
        )
        x = layers.unfold(conv(layers.fold(x)), length)
        if temporal and self.temporal != "none":
            over_time = layers.TemporalConv(
                start=self.temporal_init, padding=self.temporal_padding, dtype=self.dtype, name="temporal"
            )
            x = over_time(x)
        return x


class _Block(nn.Module):
    """Fields that every block below passes on."""

    temporal: str = "conv_attn"
    temporal_init: str = "identity"
    temporal_padding: str = "edge"
    dtype: layers.Dtype = jnp.float32

    def conv(self, features: int, name: str, stride: int = 1, upsample: bool = False) -> TConv:
        return TConv(features, stride, upsample, name=name, **self.passed_on())

    def norm(self, x: jax.Array, name: str, silu: bool = True) -> jax.Array:
        """Group norm of each frame."""
        out = layers.GroupNorm(silu=silu, dtype=self.dtype, name=name)(layers.fold(x))
        return layers.unfold(out, x.shape[1])

    def head(self, x: jax.Array, features: int, temporal: bool) -> jax.Array:
        """The last norm and convolution, in float32: bfloat16 would round pixels to steps of 1/256."""
        normed = layers.GroupNorm(silu=True, name="norm_out")(layers.fold(x))
        conv = TConv(features, name="conv_out", **dict(self.passed_on(), dtype=jnp.float32))
        return conv(layers.unfold(normed, x.shape[1]), temporal)

    def passed_on(self) -> dict:
        return dict(
            temporal=self.temporal,
            temporal_init=self.temporal_init,
            temporal_padding=self.temporal_padding,
            dtype=self.dtype,
        )


class ResBlock(_Block):
    """Norm, SiLU, convolution, twice, plus the input."""

    features: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, temporal: bool) -> jax.Array:
        h = self.conv(self.features, "conv1")(self.norm(x, "norm1"), temporal)
        h = self.conv(self.features, "conv2")(self.norm(h, "norm2"), temporal)
        if x.shape[-1] != self.features:
            shortcut = layers.Conv2D(self.features, kernel_size=1, dtype=self.dtype, name="shortcut")
            x = layers.unfold(shortcut(layers.fold(x)), x.shape[1])
        return x + h


class MidBlock(_Block):
    """Residual block, spatial attention, temporal attention, residual block."""

    @nn.compact
    def __call__(self, x: jax.Array, temporal: bool) -> jax.Array:
        b, length, h, w, c = x.shape
        x = ResBlock(features=c, name="res1", **self.passed_on())(x, temporal)
        normed = self.norm(x, "norm", silu=False).reshape(b, length, h * w, c)
        attend = layers.SelfAttention(num_heads=1, use_bias=True, dtype=self.dtype, name="attention")
        x = x + attend(normed).reshape(x.shape)
        if temporal and self.temporal == "conv_attn":
            over_time = layers.TemporalAttention(
                num_heads=1, positions=False, start=self.temporal_init, dtype=self.dtype, name="temporal_attention"
            )
            x = over_time(x)
        return ResBlock(features=c, name="res2", **self.passed_on())(x, temporal)


class Encoder(_Block):
    """`[B, L, H, W, 3]` in [-1, 1] to posterior mean and log-variance `[B, L, h, w, 2c]`."""

    channels: int = 16
    channel_mults: Sequence[int] = (1, 2, 4)
    num_res_blocks: int = 1
    latent_channels: int = 4
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, temporal: bool) -> jax.Array:
        res_block, mid_block = (remat_lib.wrap(m, self.remat, static_argnums=(2,)) for m in (ResBlock, MidBlock))
        h = self.conv(self.channels, "conv_in")(x, temporal)
        for level, mult in enumerate(self.channel_mults):
            for i in range(self.num_res_blocks):
                block = res_block(features=self.channels * mult, name=f"down{level}_res{i}", **self.passed_on())
                h = block(h, temporal)
            if level < len(self.channel_mults) - 1:
                h = self.conv(self.channels * mult, f"down{level}_sample", stride=2)(h, temporal)
        h = mid_block(name="mid", **self.passed_on())(h, temporal)
        h = self.head(h, 2 * self.latent_channels, temporal)
        quant = layers.Conv2D(2 * self.latent_channels, kernel_size=1, name="quant")
        return layers.unfold(quant(layers.fold(h)), x.shape[1])


class Decoder(_Block):
    """Latents `[B, L, h, w, c]` to pixels `[B, L, H, W, 3]`, about [-1, 1]."""

    channels: int = 16
    channel_mults: Sequence[int] = (1, 2, 4)
    num_res_blocks: int = 1
    out_channels: int = 3
    remat: str = "none"

    @nn.compact
    def __call__(self, z: jax.Array, temporal: bool) -> jax.Array:
        res_block, mid_block = (remat_lib.wrap(m, self.remat, static_argnums=(2,)) for m in (ResBlock, MidBlock))
        length = z.shape[1]
        post_quant = layers.Conv2D(z.shape[-1], kernel_size=1, dtype=self.dtype, name="post_quant")
        h = layers.unfold(post_quant(layers.fold(z)), length)
        h = self.conv(self.channels * self.channel_mults[-1], "conv_in")(h, temporal)
        h = mid_block(name="mid", **self.passed_on())(h, temporal)
        for level in reversed(range(len(self.channel_mults))):
            features = self.channels * self.channel_mults[level]
            for i in range(self.num_res_blocks + 1):
                h = res_block(features=features, name=f"up{level}_res{i}", **self.passed_on())(h, temporal)
            if level > 0:
                h = self.conv(features, f"up{level}_sample", upsample=True)(h, temporal)
        return self.head(h, self.out_channels, temporal)


class TKLVAE(nn.Module):
    """The temporal KL-VAE. Fields as in `config.default().vae`.

    Shapes: video `[B, L, H, W, 3]` float in [-1, 1]; H and W multiples of `2 ** (len(channel_mults) - 1)`;
    latents `[B, L, h, w, latent_channels]`, float32.

    remat: what the backward pass keeps of each residual and middle block (module `remat`).
    dtype: of the compute; the last norm and convolutions of encoder and decoder stay float32.
    """

    channels: int = 16
    channel_mults: Sequence[int] = (1, 2, 4)
    num_res_blocks: int = 1
    latent_channels: int = 4
    temporal: str = "conv_attn"
    temporal_init: str = "identity"
    temporal_padding: str = "edge"
    remat: str = "none"
    dtype: layers.Dtype = jnp.float32

    def setup(self) -> None:
        if self.temporal not in TEMPORAL:
            raise ValueError(f"TKLVAE.temporal is {self.temporal!r}; choose one of {', '.join(TEMPORAL)}")
        shared = dict(
            channels=self.channels,
            channel_mults=self.channel_mults,
            num_res_blocks=self.num_res_blocks,
            temporal=self.temporal,
            temporal_init=self.temporal_init,
            temporal_padding=self.temporal_padding,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.encoder = Encoder(latent_channels=self.latent_channels, **shared)
        self.decoder = Decoder(**shared)

    def encode(self, video: jax.Array, temporal: bool = True) -> tuple[jax.Array, jax.Array]:
        """Posterior (mean, log-variance), each `[B, L, h, w, c]` float32; log-variance within [-30, 20]."""
        factor = 2 ** (len(self.channel_mults) - 1)
        if video.ndim != 5 or video.shape[2] % factor or video.shape[3] % factor:
            raise ValueError(
                f"TKLVAE.encode needs [B, L, H, W, 3] with H and W multiples of {factor}, got {video.shape}"
            )
        mean, logvar = jnp.split(self.encoder(video, temporal), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: jax.Array, temporal: bool = True) -> jax.Array:
        """Pixels `[B, L, H, W, 3]` float32, not clipped."""
        return self.decoder(z, temporal)

    def __call__(
        self, video: jax.Array, key: jax.Array | None = None, temporal: bool = True
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(reconstruction, mean, log-variance); decodes a posterior sample under `key`, the mean without one."""
        mean, logvar = self.encode(video, temporal)
        z = mean if key is None else posterior_sample(mean, logvar, key)
        return self.decode(z, temporal), mean, logvar


def posterior_sample(mean: jax.Array, logvar: jax.Array, key: jax.Array) -> jax.Array:
    """z ~ N(mean, exp(logvar))."""
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each element, in nats."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
