"""Random numbers with one key an example, so that nothing random depends on how a batch is cut."""

import jax


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape], each example from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def uniform(keys: jax.Array) -> jax.Array:
    """Uniform in [0, 1), [B]."""
    return jax.vmap(jax.random.uniform)(keys)


def split(keys: jax.Array, count: int) -> list[jax.Array]:
    """`count` lists of keys [B]."""
    parts = jax.vmap(lambda key: jax.random.split(key, count))(keys)  # [B, count]
    return [parts[:, i] for i in range(count)]
