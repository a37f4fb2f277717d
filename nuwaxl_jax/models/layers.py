"""Layers shared by the T-KLVAE and the MTD U-Net: convolutions, group norm, attention, and the temporal pair.

Spatial layers see `[N, h, w, c]` with the frames folded into N, so that nothing spatial (group norm above all) mixes
frames. Temporal layers see `[B, L, h, w, c]` and are the identity at initialisation (NUWA-XL, section 3.1): the
convolution's centre tap is the unit matrix, the attention's output projection is zero.

Compute runs in `dtype`; moments, softmax and parameters stay float32.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from typing import Callable, Iterator

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp

Dtype = jnp.dtype | type
Initializer = Callable[..., jax.Array]


_PLATFORM = contextvars.ContextVar("platform", default="")


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what the network being traced will run on."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Inside it `platform()` is `name`: for programs compiled ahead for devices that this machine does not have."""
    token = _PLATFORM.set(name)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def _im2col_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A stride-1 SAME convolution as one product: what XLA:CPU needs at very small maps."""
    rows, cols, c_in, c_out = kernel.shape
    n, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (rows // 2, rows // 2), (cols // 2, cols // 2), (0, 0)))
    patches = [padded[:, i : i + h, j : j + w] for i in range(rows) for j in range(cols)]
    flat = jnp.concatenate(patches, axis=-1).reshape(n * h * w, rows * cols * c_in)  # [N*h*w, k*k*c]
    return (flat @ kernel.reshape(-1, c_out)).reshape(n, h, w, c_out)


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str | tuple = "SAME") -> jax.Array:
    """2-D convolution `[N, h, w, c_in]` by `[k, k, c_in, c_out]`, in the formulation that is fast on this platform.

    XLA:CPU's convolution collapses at maps of 2x2 and less, where one
    matrix product over gathered patches is equal and fast. Elsewhere it is `lax.conv_general_dilated`.
    """
    small = max(x.shape[1:3]) <= 2 and stride == 1 and padding == "SAME"
    if small and kernel.shape[0] > 1 and platform() == "cpu":
        return _im2col_conv(x, kernel)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def upsample_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest-neighbour doubling and a 3x3 SAME convolution in one: `[N, h, w, c] -> [N, 2h, 2w, c_out]`.

    Each output pixel sees at most 2x2 different input pixels, so the four output phases are four 2x2 convolutions
    whose kernels are sums of the 3x3 kernel's taps: 4/9 of the products of the plain formulation, the same result up
    to rounding.
    """
    n, h, w, _ = x.shape

    def taps(k: jax.Array, phase: int) -> jax.Array:  # sums [3, ...] into the 2 inputs that this phase sees
        return jnp.stack([k[0], k[1] + k[2]] if phase == 0 else [k[0] + k[1], k[2]])

    phases = []
    for row in (0, 1):
        for col in (0, 1):
            small = taps(jnp.moveaxis(taps(kernel, row), 1, 0), col)  # [cols 2, rows 2, c_in, c_out]
            padding = ((1 - row, row), (1 - col, col))
            phases.append(conv2d(x, jnp.moveaxis(small, 0, 1), 1, padding))
    out = jnp.stack(phases, axis=3).reshape(n, h, w, 2, 2, -1)  # [N, h, w, row, col, c]
    return out.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, -1)


class Conv2D(nn.Module):
    """A 2-D convolution with bias on `[N, h, w, c]`; `upsample` doubles h and w before it (nearest, 3x3 alone)."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: str | tuple = "SAME"
    zero_init: bool = False
    upsample: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init: Initializer = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        out = upsample_conv(x, kernel) if self.upsample else conv2d(x, kernel, self.stride, self.padding)
        return out + bias.astype(self.dtype)


def num_groups(channels: int) -> int:
    """Groups of a group norm: 32 from 64 channels on (as in latent diffusion), fewer below, always a divisor."""
    return math.gcd(32, max(channels // 2, 1), channels)


class GroupNorm(nn.Module):
    """Group normalisation of each item of the batch, optionally followed by SiLU; moments in one float32 pass.

    With frames folded into the batch it is per frame, as in the image networks that NUWA-XL starts from.
    """

    silu: bool = False
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        groups = num_groups(channels)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        # Moments of each channel first: XLA:CPU reduces over [P] much faster than over [P, c/g].
        pixels = tuple(range(1, x.ndim - 1))
        x = x.astype(jnp.float32)
        per_group = channels // groups
        mean = x.mean(pixels).reshape(-1, groups, per_group).mean(-1)  # [N, g]
        square = jnp.square(x).mean(pixels).reshape(-1, groups, per_group).mean(-1)
        inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + self.epsilon)
        gain = jnp.repeat(inverse, per_group, axis=1) * scale  # [N, c]
        shift = bias - jnp.repeat(mean, per_group, axis=1) * gain
        spatial = (x.shape[0],) + (1,) * (x.ndim - 2) + (channels,)
        out = x * gain.reshape(spatial) + shift.reshape(spatial)
        return (nn.silu(out) if self.silu else out).astype(self.dtype)


def plain_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, mask: jax.Array | None = None
) -> jax.Array:
    """`attention` as XLA compiles it: softmax in float32, divided after the product; the reference of the others."""
    head_dim = q.shape[-1] // num_heads

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], num_heads, head_dim)  # [..., K, heads, d]

    logits = jnp.einsum("...qhd,...khd->...hqk", split(q), split(k), preferred_element_type=jnp.float32)
    logits = logits * head_dim**-0.5
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))  # [..., heads, Q, K]
    out = jnp.einsum("...hqk,...khd->...qhd", weights.astype(v.dtype), split(v), preferred_element_type=jnp.float32)
    out = out / jnp.moveaxis(weights.sum(-1), -1, -2)[..., None]
    return out.reshape(*q.shape[:-1], q.shape[-1]).astype(q.dtype)


def chunked_attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, chunk: int = 256) -> jax.Array:
    """`attention`, `chunk` queries after another, their scores anew in the backward pass; chunk divides Q."""

    @jax.checkpoint
    def part(some: jax.Array) -> jax.Array:
        return plain_attention(some, k, v, num_heads)

    *lead, queries, channels = q.shape
    parts = jnp.moveaxis(q.reshape(*lead, queries // chunk, chunk, channels), -3, 0)  # [Q / chunk, ..., chunk, c]
    return jnp.moveaxis(jax.lax.map(part, parts), 0, -3).reshape(q.shape)


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int) -> jax.Array:
    """`attention` by cuDNN's flash kernel, which never holds the scores; see `_suits_cudnn`."""
    flat = (x.reshape(-1, x.shape[-2], num_heads, x.shape[-1] // num_heads) for x in (q, k, v))  # [N, n, heads, d]
    return jax.nn.dot_product_attention(*flat, implementation="cudnn").reshape(q.shape)


def _suits_cudnn(q: jax.Array, k: jax.Array, num_heads: int) -> bool:
    """Whether the kernel takes these arrays, and whether the scores that it avoids outweigh q, k and v themselves."""
    head_dim = q.shape[-1] // num_heads
    half = q.dtype == k.dtype and q.dtype in (jnp.bfloat16, jnp.float16)
    return half and head_dim % 8 == 0 and head_dim <= 128 and min(q.shape[-2], k.shape[-2]) >= 64


def _has_cudnn() -> bool:
    """Whether this process can trace cuDNN calls: JAX asks the library for its version then."""
    backend = jax.extend.backend.get_backend()
    return platform() == backend.platform == "gpu" and "cuda" in backend.platform_version


def attention(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, mask: jax.Array | None = None) -> jax.Array:
    """Multi-head attention of `q [..., Q, c]` to `k, v [..., K, c]`, in the formulation for the platform.

    On NVIDIA GPUs, in half precision, unmasked and from 64 tokens on, cuDNN's; else `plain_attention`, and from 1024
    tokens on by chunks: a third of its memory, 1.4 times its time with gradient on CPU (experiments/speed/remat.md). On
    TPUs `jax.nn.dot_product_attention` does no more, and the Pallas kernel takes sequences in multiples of 128 alone:
    no 16 frames, no 77 words. The platform is the one a program is lowered for, not the one that JAX runs on.

    Args:
      mask: boolean, broadcastable to `[..., heads, Q, K]`; False keys are not seen.
    """
    if mask is not None:
        return plain_attention(q, k, v, num_heads, mask)
    long = q.shape[-2] * k.shape[-2] >= 2**20 and q.shape[-2] % 256 == 0
    default = functools.partial(chunked_attention if long else plain_attention, num_heads=num_heads)
    if _suits_cudnn(q, k, num_heads) and _has_cudnn():
        cuda = functools.partial(cudnn_attention, num_heads=num_heads)
        return jax.lax.platform_dependent(q, k, v, cuda=cuda, default=default)
    return default(q, k, v)


class SelfAttention(nn.Module):
    """Projections and attention of a sequence `[..., n, c]` to itself; no norm, no residual."""

    num_heads: int
    zero_init: bool = False
    use_bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1]
        qkv = nn.Dense(3 * channels, use_bias=self.use_bias, dtype=self.dtype, name="qkv")(x)
        out = attention(*jnp.split(qkv, 3, axis=-1), self.num_heads, mask)
        kernel_init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return nn.Dense(channels, dtype=self.dtype, kernel_init=kernel_init, name="out")(out)


def sinusoid(position: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoidal embedding `[..., width]` of `position [...]`, cosines first as in Stable Diffusion; float32."""
    half = width // 2
    frequency = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def identity_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """`W[(k - 1) // 2] = I`, zero elsewhere, for a kernel `[k, c, c]` (NUWA-XL, section 3.1)."""
    del key
    taps, c_in, c_out = shape
    return jnp.zeros(shape, dtype).at[(taps - 1) // 2].set(jnp.eye(c_in, c_out, dtype=dtype))


class TemporalConv(nn.Module):
    """1-D convolution over time at every pixel of `[B, L, h, w, c]`.

    Computed as a 2-D convolution with kernel (k, 1) over `[B, L, h*w, c]`.
    start: identity (the paper's) or random (Table 2a).
    padding: at both ends of the clip: zero, or edge, the first and last frame repeated (a still clip then gives the
      same at every length, and no frame knows that it stands at an end).
    """

    kernel_size: int = 3
    start: str = "identity"
    padding: str = "zero"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        init = identity_init if self.start == "identity" else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (self.kernel_size, channels, channels), jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        b, length, h, w, _ = x.shape
        columns = x.astype(self.dtype).reshape(b, length, h * w, channels)
        if self.padding == "edge":
            before = (self.kernel_size - 1) // 2
            columns = jnp.pad(columns, ((0, 0), (before, self.kernel_size - 1 - before), (0, 0), (0, 0)), mode="edge")
        out = jax.lax.conv_general_dilated(
            columns,
            kernel[:, None],
            (1, 1),
            "VALID" if self.padding == "edge" else "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out.reshape(x.shape) + bias.astype(self.dtype)


class TemporalAttention(nn.Module):
    """Residual attention over the frames of `[B, L, h, w, c]` at every pixel; the output projection starts at zero.

    positions: adds a sinusoidal frame index inside the branch (the networks' only notion of frame order beside the
    temporal convolutions); without it the layer works at any length.
    """

    num_heads: int
    positions: bool = True
    start: str = "identity"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, length, h, w, channels = x.shape
        frames = x.reshape(b * length, h, w, channels)
        normed = GroupNorm(dtype=self.dtype, name="norm")(frames).reshape(b, length, h * w, channels)
        if self.positions:
            place = sinusoid(jnp.arange(length), channels).astype(self.dtype)  # [L, c]
            normed = normed + place[None, :, None]
        sequence = normed.swapaxes(1, 2)  # [B, h*w, L, c]
        attend = SelfAttention(self.num_heads, zero_init=self.start == "identity", dtype=self.dtype, name="attention")
        out = attend(sequence).swapaxes(1, 2).reshape(x.shape)  # [B, L, h, w, c]
        return x + out


def fold(x: jax.Array) -> jax.Array:
    """`[B, L, ...] -> [B*L, ...]`: frames into the batch."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def unfold(x: jax.Array, length: int) -> jax.Array:
    """`[B*L, ...] -> [B, L, ...]`."""
    return x.reshape(-1, length, *x.shape[1:])
