"""The CLIP text transformer: causality, order, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import text_encoder


@pytest.fixture(scope="module")
def encoder():
    module = text_encoder.TextEncoder(vocab_size=32, max_tokens=8, width=16, num_layers=2, num_heads=2)
    tokens = jax.random.randint(jax.random.key(1), (2, 3, 8), 0, 32)
    return module, module.init(jax.random.key(0), tokens), tokens


def test_a_token_changes_its_own_and_later_states_alone(encoder):
    module, params, tokens = encoder
    changed = tokens.at[..., 4].set((tokens[..., 4] + 1) % 32)
    delta = jnp.abs(module.apply(params, tokens) - module.apply(params, changed)).max((0, 1, 3))
    assert float(delta[:4].max()) == 0.0 and (delta[4:] > 0).all()


def test_states_do_not_depend_on_how_prompts_are_batched(encoder):
    module, params, tokens = encoder
    states = module.apply(params, tokens)
    assert states.shape == (2, 3, 8, 16) and states.dtype == jnp.float32
    np.testing.assert_allclose(module.apply(params, tokens[1, 2]), states[1, 2], atol=1e-5)


def test_word_order_matters(encoder):
    module, params, tokens = encoder
    swapped = tokens[0, 0].at[jnp.array([1, 2])].set(tokens[0, 0][jnp.array([2, 1])])
    assert float(jnp.abs(module.apply(params, tokens[0, 0])[-1] - module.apply(params, swapped)[-1]).max()) > 1e-4


def test_embeddings_start_as_wide_as_they_are_asked_to():
    module = text_encoder.TextEncoder(500, 8, width=16, num_layers=1, num_heads=2, embedding_std=1.0)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    np.testing.assert_allclose(float(params["tokens"]["embedding"].std()), 1.0, rtol=0.05)
    np.testing.assert_allclose(float(params["positions"].std()), 0.5, rtol=0.25)


def test_quick_gelu_known_value():
    np.testing.assert_allclose(text_encoder.quick_gelu(1.0), 1 / (1 + np.exp(-1.702)), rtol=1e-6)


def test_too_many_tokens_are_refused(encoder):
    module, params, _ = encoder
    with pytest.raises(ValueError, match="max_tokens"):
        module.apply(params, jnp.zeros((9,), jnp.int32))


def test_the_pooled_state_is_that_of_the_first_end_token():
    states = jnp.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    pooled = text_encoder.pooled_state(states, jnp.array([[1, 5, 9, 9], [1, 9, 0, 0]]), end=9)
    np.testing.assert_array_equal(pooled, [states[0, 2], states[1, 1]])
