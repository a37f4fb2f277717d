"""The CLIP text transformer (arXiv:2103.00020): what NUWA-XL reads its per-frame prompts with (section 3.2).

Pre-norm blocks, causal self-attention, quick-GELU feed-forward of four times the width, a final norm. The paper uses
a pre-trained one; small presets train it from scratch together with the denoiser.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from nuwaxl_jax.models import layers


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), CLIP's activation."""
    return x * nn.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on `[n, N, D]`."""

    num_heads: int
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        width = x.shape[-1]
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        x = x + layers.SelfAttention(self.num_heads, use_bias=True, dtype=self.dtype, name="attention")(normed, mask)
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        hidden = quick_gelu(nn.Dense(4 * width, dtype=self.dtype, name="mlp_in")(normed))
        return x + nn.Dense(width, dtype=self.dtype, name="mlp_out")(hidden)


class TextEncoder(nn.Module):
    """Tokens int32 `[..., N]` to last hidden states float32 `[..., N, D]`. Fields as in `config.default().text`.

    With an `embedding_std` of the order of 1 a state stays near its own word, whatever the blocks learn to leave out.
    """

    vocab_size: int
    max_tokens: int
    width: int
    num_layers: int
    num_heads: int
    embedding_std: float = 0.02  # CLIP's
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        if tokens.shape[-1] > self.max_tokens:
            raise ValueError(f"TextEncoder got {tokens.shape[-1]} tokens, text.max_tokens is {self.max_tokens}")
        flat = tokens.reshape(-1, tokens.shape[-1])  # [n, N]
        words, places = (nn.initializers.normal(std) for std in (self.embedding_std, self.embedding_std / 2))
        embed = nn.Embed(self.vocab_size, self.width, embedding_init=words, name="tokens")
        place = self.param("positions", places, (self.max_tokens, self.width), jnp.float32)
        x = (embed(flat) + place[: flat.shape[1]]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((flat.shape[1],) * 2, bool))
        for i in range(self.num_layers):
            x = TextBlock(self.num_heads, dtype=self.dtype, name=f"block{i}")(x, causal)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="final_norm")(x)
        return x.astype(jnp.float32).reshape(*tokens.shape, self.width)


def pooled_state(states: jax.Array, tokens: jax.Array, end: int) -> jax.Array:
    """CLIP's summary of a prompt: the state at its first end token.

    Args:
      states: [..., N, D], of `TextEncoder`.
      tokens: int32 [..., N].
      end: id of the end token.

    Returns:
      [..., D]; the first state where there is no end token.
    """
    place = jnp.argmax(tokens == end, axis=-1)[..., None, None]
    return jnp.take_along_axis(states, place, axis=-2)[..., 0, :]
