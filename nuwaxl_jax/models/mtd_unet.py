"""Mask Temporal Diffusion (MTD): the 3-D U-Net of NUWA-XL, section 3.2 and figure 2.

One block, in the paper's order: join the skip (up blocks), convolve, add t, spatial convolution (frames in the
batch), temporal convolution (pixels in the batch), visual injection, spatial self-attention, prompt cross-attention
(frame l sees prompt l only), temporal self-attention, resample.

Visual injection (symmetric: in down and up blocks of every scale, none in the middle):
  h <- w_c * h + b_c + h, then h <- w_m * h + b_m + h,
with (w_c, b_c) a zero-initialised convolution of the condition latents x_0^c at that scale and (w_m, b_m) one of the
mask. Both depend on the inputs of a segment alone, never on x_t or t, so `context` computes them (and the keys and
values of the prompts) once a sampling run, and `denoise` reuses them at every step:
  h <- gain * h + shift,  gain = (1 + w_m)(1 + w_c),  shift = (1 + w_m) b_c + b_m.

With its temporal layers at the identity, its injections at zero and its level embedding at zero, a new network
computes exactly the per-frame image U-Net. `denoise_images` is that image network: the paper starts it from a
pre-trained text-to-image model, the stage `image_denoiser` pre-trains it here. The level embedding (shared weights for
every level of the tree) is ours.

Training with rematerialisation (module `remat`) takes a deferred context: the blocks' inputs in place of the gains,
shifts, keys and values, which each block then computes itself, so that none of them is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nuwaxl_jax.models import condition
from nuwaxl_jax.models import layers
from nuwaxl_jax.models import remat as remat_lib

Context = dict[str, Any]


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, + t; norm, SiLU, convolution; plus the input. `[N, h, w, c]`, temb `[N, D]`."""

    features: int
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        normed = layers.GroupNorm(silu=True, epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        h = layers.Conv2D(self.features, dtype=self.dtype, name="conv1")(normed)
        shift = nn.Dense(self.features, dtype=self.dtype, name="time")(nn.silu(temb))
        h = h + shift[:, None, None, :]
        normed = layers.GroupNorm(silu=True, epsilon=1e-5, dtype=self.dtype, name="norm2")(h)
        h = layers.Conv2D(self.features, zero_init=True, dtype=self.dtype, name="conv2")(normed)
        if x.shape[-1] != self.features:
            x = layers.Conv2D(self.features, kernel_size=1, dtype=self.dtype, name="shortcut")(x)
        return x + h


class Injection(nn.Module):
    """(gain, shift), each `[N, h, w, features]`, of the condition `[N, h, w, c]` and the mask `[N, h, w, 1]`."""

    features: int
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, cond: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        zero_conv = dict(zero_init=True, dtype=self.dtype)
        cond_wb = layers.Conv2D(2 * self.features, name="cond", **zero_conv)(cond)
        mask_wb = layers.Conv2D(2 * self.features, name="mask", **zero_conv)(mask)
        w_c, b_c = jnp.split(cond_wb, 2, axis=-1)
        w_m, b_m = jnp.split(mask_wb, 2, axis=-1)
        return (1.0 + w_m) * (1.0 + w_c), (1.0 + w_m) * b_c + b_m


class PromptAttention(nn.Module):
    """Cross-attention of a frame's pixels to its own prompt, keys and values computed apart from the queries."""

    features: int
    num_heads: int
    dtype: layers.Dtype = jnp.float32

    def setup(self) -> None:
        self.kv = nn.Dense(2 * self.features, use_bias=False, dtype=self.dtype)
        self.q = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.out = nn.Dense(self.features, dtype=self.dtype)

    def keys_values(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Text states `[N, n, D]` to keys and values `[N, n, features]`."""
        return tuple(jnp.split(self.kv(text), 2, axis=-1))

    def __call__(self, x: jax.Array, keys_values: tuple[jax.Array, jax.Array]) -> jax.Array:
        return self.out(layers.attention(self.q(x), *keys_values, self.num_heads))


class GEGLU(nn.Module):
    """Feed-forward: out(a * gelu(b)); exact: by the error function, as in Stable Diffusion, not its tanh formula."""

    mult: int
    exact: bool = False
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        a, b = jnp.split(nn.Dense(2 * self.mult * channels, dtype=self.dtype, name="in")(x), 2, axis=-1)
        return nn.Dense(channels, dtype=self.dtype, name="out")(a * nn.gelu(b, approximate=not self.exact))


class SpatialTransformer(nn.Module):
    """Self-attention, prompt cross-attention and feed-forward over the pixels of each frame; the branch starts at 0."""

    features: int
    num_heads: int
    prompt: bool
    ff_mult: int
    exact_gelu: bool = False
    dtype: layers.Dtype = jnp.float32

    def setup(self) -> None:
        self.norm = layers.GroupNorm(dtype=self.dtype)
        self.proj_in = nn.Dense(self.features, dtype=self.dtype)
        self.norm1 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.self_attention = layers.SelfAttention(self.num_heads, dtype=self.dtype)
        if self.prompt:
            self.norm2 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
            self.prompt_attention = PromptAttention(self.features, self.num_heads, self.dtype)
        self.norm3 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.feed_forward = GEGLU(self.ff_mult, self.exact_gelu, self.dtype)
        self.proj_out = nn.Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros)

    def keys_values(self, text: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        return self.prompt_attention.keys_values(text) if self.prompt else None

    def __call__(self, x: jax.Array, keys_values: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        n, h, w, c = x.shape
        y = self.proj_in(self.norm(x).reshape(n, h * w, c))
        y = y + self.self_attention(self.norm1(y))
        if self.prompt:
            y = y + self.prompt_attention(self.norm2(y), keys_values)
        y = y + self.feed_forward(self.norm3(y))
        return x + self.proj_out(y).reshape(x.shape)


class MTDBlock(nn.Module):
    """Steps 1 to 8 of a block (module docstring), on `[N = B*L, h, w, c]`."""

    features: int
    num_heads: int
    prompt: bool
    ff_mult: int
    temporal: str
    inject: bool
    exact_gelu: bool = False
    dtype: layers.Dtype = jnp.float32

    def setup(self) -> None:
        self.res = ResBlock(self.features, self.dtype)
        if self.temporal != "none":
            self.temporal_conv = layers.TemporalConv(dtype=self.dtype)
        if self.inject:
            self.injection = Injection(self.features, self.dtype)
        self.transformer = SpatialTransformer(
            self.features, self.num_heads, self.prompt, self.ff_mult, self.exact_gelu, self.dtype
        )
        if self.temporal == "conv_attn":
            self.temporal_attention = layers.TemporalAttention(self.num_heads, dtype=self.dtype)

    def context(self, cond: jax.Array | None, mask: jax.Array | None, text: jax.Array) -> Context:
        """What of this block depends on the segment's inputs alone; without `cond` nothing is injected."""
        injected = self.injection(cond, mask) if self.inject and cond is not None else None
        return dict(injection=injected, keys_values=self.transformer.keys_values(text))

    def __call__(
        self, x: jax.Array, temb: jax.Array, ctx: Context, length: int | None, skip: jax.Array | None = None
    ) -> jax.Array:
        """ctx: of `context`, or its arguments. length: frames of a clip; None for images: no temporal layers."""
        if "text" in ctx:
            ctx = self.context(**ctx)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        h = self.res(x, temb)
        if length and self.temporal != "none":
            h = layers.fold(self.temporal_conv(layers.unfold(h, length)))
        if ctx["injection"] is not None:
            gain, shift = ctx["injection"]
            h = gain * h + shift
        h = self.transformer(h, ctx["keys_values"])
        if length and self.temporal == "conv_attn":
            h = layers.fold(self.temporal_attention(layers.unfold(h, length)))
        return h


class MTDUNet(nn.Module):
    """The denoiser. Fields as in `config.default().unet`.

    Shapes: x_t, cond `[B, L, h, w, c]`; cond_mask `[B, L, h, w, 1]`, 1 where a frame is given; text `[B, L, n, D]`;
    t and level int32 `[B]`. h and w must be multiples of `2 ** (len(channel_mults) - 1)`. Returns the prediction
    `[B, L, h, w, c]` in float32.

    num_levels: 0 = no level embedding (one network a level); otherwise the levels of the tree that share weights.
    condition_fill: 'zero' or 'linear' a level (module `condition`); () is 'zero' at every level.
    mid_prompt: whether the middle block has prompt attention.
    downsample_padding: of the strided 3x3 convolutions: 'same' (below and right alone) or 'symmetric' (one all round,
      as in Stable Diffusion). gelu: 'tanh' or 'exact', of the feed-forward.
    remat: what the backward pass keeps of each block (module `remat`): 'none', 'products' or 'blocks'.
    dtype: of the compute; the time embedding and the output's norm and convolution stay float32.
    """

    out_channels: int
    channels: int = 64
    channel_mults: Sequence[int] = (1, 2, 3)
    num_res_blocks: int = 1
    num_heads: int = 4
    prompt_levels: Sequence[bool] = (True, True, True)
    ff_mult: int = 2
    cond_channels: int = 32
    temporal: str = "conv_attn"
    injection: str = "down_up"
    num_levels: int = 0
    condition_fill: Sequence[str] = ()
    mid_prompt: bool = True
    downsample_padding: str = "same"
    gelu: str = "tanh"
    remat: str = "none"
    dtype: layers.Dtype = jnp.float32

    def _block(self, level: int, side: str, index: int) -> MTDBlock:
        top_up = side == "up" and level == 0
        inject = {
            "none": False,
            "top_up": top_up,
            "up": side == "up",
            "down_up": side in ("up", "down"),
        }
        if self.injection not in inject:
            raise ValueError(f"MTDUNet.injection is {self.injection!r}; choose one of {', '.join(inject)}")
        return remat_lib.wrap(MTDBlock, self.remat, static_argnums=(4,))(
            features=self.channels * self.channel_mults[level],
            num_heads=self.num_heads,
            prompt=self.mid_prompt if side == "mid" else self.prompt_levels[level],
            ff_mult=self.ff_mult,
            temporal=self.temporal,
            inject=inject[self.injection],
            exact_gelu=self.gelu == "exact",
            dtype=self.dtype,
            name=f"{side}{level}_{index}" if side != "mid" else "mid",
        )

    def setup(self) -> None:
        levels = range(len(self.channel_mults))
        width = 4 * self.channels
        self.time_in = nn.Dense(width)
        self.time_out = nn.Dense(width)
        if self.num_levels:
            self.level_embedding = nn.Embed(self.num_levels, width, embedding_init=nn.initializers.zeros)
        self.conv_in = layers.Conv2D(self.channels, dtype=self.dtype)
        self.cond_down = [
            layers.Conv2D(self.cond_channels, stride=2, dtype=self.dtype, name=f"cond_down{i}") for i in levels[1:]
        ]
        self.down = [[self._block(i, "down", j) for j in range(self.num_res_blocks)] for i in levels]
        self.downsample = [
            layers.Conv2D(
                self.channels * self.channel_mults[i],
                stride=2,
                padding="SAME" if self.downsample_padding == "same" else ((1, 1), (1, 1)),
                dtype=self.dtype,
                name=f"downsample{i}",
            )
            for i in levels[:-1]
        ]
        self.mid = self._block(levels[-1], "mid", 0)
        self.mid_res = remat_lib.wrap(ResBlock, self.remat)(
            self.channels * self.channel_mults[-1], self.dtype, name="mid_res"
        )
        self.up = [[self._block(i, "up", j) for j in range(self.num_res_blocks + 1)] for i in levels]
        self.upsample = [
            layers.Conv2D(self.channels * self.channel_mults[i], upsample=True, dtype=self.dtype, name=f"upsample{i}")
            for i in levels[1:]
        ]
        self.norm_out = layers.GroupNorm(silu=True, epsilon=1e-5)
        self.conv_out = layers.Conv2D(self.out_channels, zero_init=True)

    def context(
        self, text: jax.Array, cond: jax.Array, cond_mask: jax.Array, level: jax.Array, deferred: bool = False
    ) -> Context:
        """Everything the blocks need of the segment's own inputs; independent of x_t and t.

        deferred: the blocks compute their part of it at every call, and keep none of it for a backward pass.
        """
        if "linear" in self.condition_fill:
            filled = jnp.array([name == "linear" for name in self.condition_fill])[level]  # [B]
            cond = jnp.where(filled[:, None, None, None, None], condition.fill(cond, cond_mask), cond)
        text, cond, mask = (layers.fold(x).astype(self.dtype) for x in (text, cond, cond_mask))
        scales = [(cond, mask)]
        for conv in self.cond_down:  # the paper's cascade of down-convolutions
            cond, mask = conv(cond), mask[:, ::2, ::2]
            scales.append((cond, mask))
            cond = nn.silu(cond)
        return self._blocks_context(scales, text, deferred)

    def _blocks_context(self, scales: Sequence[tuple], text: jax.Array, deferred: bool) -> Context:
        def of(block: MTDBlock, cond: jax.Array | None, mask: jax.Array | None) -> Context:
            return dict(cond=cond, mask=mask, text=text) if deferred else block.context(cond, mask, text)

        down = [[of(block, *scales[i]) for block in blocks] for i, blocks in enumerate(self.down)]
        up = [[of(block, *scales[i]) for block in blocks] for i, blocks in enumerate(self.up)]
        return dict(down=down, mid=of(self.mid, *scales[-1]), up=up)

    def _time(self, t: jax.Array) -> jax.Array:
        return self.time_out(nn.silu(self.time_in(layers.sinusoid(t, self.channels))))  # [B, D]

    def denoise(self, x_t: jax.Array, t: jax.Array, level: jax.Array, ctx: Context) -> jax.Array:
        """The prediction for x_t at step t, given `context`'s result."""
        length = x_t.shape[1]
        temb = self._time(t)
        if self.num_levels:
            temb = temb + self.level_embedding(level)
        temb = jnp.repeat(temb, length, axis=0)  # [B*L, D]
        return layers.unfold(self._frames(layers.fold(x_t), temb, ctx, length), length)

    def denoise_images(self, x_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        """The image network: x_t `[N, h, w, c]`, t `[N]`, text `[N, n, D]` to the prediction `[N, h, w, c]`.

        The same spatial layers and no other: no temporal layer, no injection, no level.
        """
        nothing = [(None, None)] * len(self.channel_mults)
        ctx = self._blocks_context(nothing, text.astype(self.dtype), deferred=self.remat != "none")
        return self._frames(x_t, self._time(t), ctx, None)

    def _frames(self, x_t: jax.Array, temb: jax.Array, ctx: Context, length: int | None) -> jax.Array:
        """The U-Net proper, on frames `[N, h, w, c]` with temb `[N, D]`; float32."""
        levels = len(self.channel_mults)
        h = self.conv_in(x_t)
        skips = [h]
        for i in range(levels):
            for block, block_ctx in zip(self.down[i], ctx["down"][i]):
                h = block(h, temb, block_ctx, length)
                skips.append(h)
            if i < levels - 1:
                h = self.downsample[i](h)
                skips.append(h)
        h = self.mid_res(self.mid(h, temb, ctx["mid"], length), temb)
        for i in reversed(range(levels)):
            for block, block_ctx in zip(self.up[i], ctx["up"][i]):
                h = block(h, temb, block_ctx, length, skips.pop())
            if i > 0:
                h = self.upsample[i - 1](h)
        return self.conv_out(self.norm_out(h))

    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        text: jax.Array,
        cond: jax.Array,
        cond_mask: jax.Array,
        level: jax.Array,
    ) -> jax.Array:
        factor = 2 ** (len(self.channel_mults) - 1)
        if x_t.ndim != 5 or x_t.shape[2] % factor or x_t.shape[3] % factor:
            raise ValueError(f"MTDUNet needs [B, L, h, w, c] with h and w multiples of {factor}, got {x_t.shape}")
        if cond.shape != x_t.shape or cond_mask.shape != (*x_t.shape[:-1], 1):
            raise ValueError(f"MTDUNet: cond {cond.shape} and cond_mask {cond_mask.shape} do not fit x_t {x_t.shape}")
        ctx = self.context(text, cond, cond_mask, level, deferred=self.remat != "none")
        return self.denoise(x_t, t, level, ctx)
