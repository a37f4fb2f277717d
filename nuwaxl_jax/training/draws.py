"""Random numbers with one key an example, so that nothing random depends on how a batch is cut."""

import jax
import jax.numpy as jnp


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape], each example from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def uniform(keys: jax.Array) -> jax.Array:
    """Uniform in [0, 1), [B]."""
    return jax.vmap(jax.random.uniform)(keys)


def timesteps(keys: jax.Array, num_timesteps: int, shift: float = 1.0) -> jax.Array:
    """Timesteps int32 [B], uniform, or towards the noisy end by `shift`: the share s u / (1 + (s - 1) u) of u uniform.

    The density at a share x of the way is s / (s - (s - 1) x)^2: s times as many at the last step as without, one in s
    at the first, half of them beyond s / (1 + s) (the shift of arXiv:2403.03206, section 5.3.2, there by resolution).
    """
    if shift == 1.0:
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_timesteps))(keys)
    place = uniform(keys)
    place = shift * place / (1.0 + (shift - 1.0) * place)
    return jnp.minimum((place * num_timesteps).astype(jnp.int32), num_timesteps - 1)


def split(keys: jax.Array, count: int) -> list[jax.Array]:
    """`count` lists of keys [B]."""
    parts = jax.vmap(lambda key: jax.random.split(key, count))(keys)  # [B, count]
    return [parts[:, i] for i in range(count)]
