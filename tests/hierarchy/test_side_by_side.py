"""Trees side by side, made: also a last one of a single frame."""

import jax
import numpy as np
import pytest

from nuwaxl_jax.hierarchy import generate
from nuwaxl_jax.hierarchy import strategies


def noise(params, keys, cond, cond_mask, prompt_index, *, level):
    """Every frame its own noise, about ten times its number."""
    del params, cond_mask, level
    drawn = jax.vmap(lambda key: jax.random.uniform(key, cond.shape[1:]))(keys)
    return drawn + 10.0 * prompt_index[..., None, None, None]


def _made(plans, num_frames):
    prompts = np.arange(num_frames, dtype=np.int32)[None]
    return generate.generate(noise, {}, plans, jax.random.key(0), prompts, (1, 1, 1), microbatch=2).latents


@pytest.mark.parametrize("num_frames, length, depth", [(11, 4, 2), (12, 4, 2), (21, 4, 2), (29, 4, 3), (3377, 16, 3)])
def test_any_length_is_made(num_frames, length, depth):
    latents = _made(strategies.plans("side_by_side", num_frames, length, depth, 1), num_frames)
    assert latents.shape == (1, num_frames, 1, 1, 1)
    np.testing.assert_array_equal(latents.ravel() // 10, np.arange(num_frames))


@pytest.mark.parametrize("planned, prompts", [(11, 10), (11, 15), (10, 11), (21, 20), (20, 11), (13, 10)])
def test_plans_of_another_length_are_refused(planned, prompts):
    with pytest.raises(ValueError, match=f"prompt_index has {prompts} frames"):
        _made(strategies.plans("side_by_side", planned, 4, 2, 1), prompts)
