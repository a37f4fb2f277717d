"""DPM-Solver++ 2M, guidance rescale and thresholding against their papers' formulas and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.diffusion import samplers

MU = 0.4  # of normal data


def make(prediction="v", schedule="scaled_linear", zero=False):
    return gaussian.GaussianDiffusion.create(
        schedule=schedule, num_timesteps=1000, prediction=prediction, zero_terminal_snr=zero
    )


def keys_of(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def best_x0(ac, x, s):
    return MU + ac**0.5 * s**2 / (ac * s**2 + 1 - ac) * (x - ac**0.5 * MU)


def bent_x0(ac, x):
    """An x0 that is not linear in x, so that the steps' order shows."""
    return np.tanh(1.3 * x) + 0.2 * np.sqrt(ac)


def network(diffusion, x0_of):
    """`x0_of(ac, x)` as what `diffusion` predicts; x0_of must take jax arrays too."""
    table = jnp.asarray(diffusion.alphas_cumprod, jnp.float32)

    def denoise(x_t, t):
        ac = table[t].reshape((-1,) + (1,) * (x_t.ndim - 1))
        x0 = x0_of(ac, x_t)
        eps = (x_t - jnp.sqrt(ac) * x0) / jnp.sqrt(1 - ac)
        return {"x0": x0, "eps": eps, "v": jnp.sqrt(ac) * eps - jnp.sqrt(1 - ac) * x0}[diffusion.prediction]

    return denoise


def bent_jax(ac, x):
    return jnp.tanh(1.3 * x) + 0.2 * jnp.sqrt(ac)


def initial(keys, shape):
    draw = lambda key: np.asarray(jax.random.normal(jax.random.fold_in(key, 2**32 - 1), shape), np.float64)
    return np.stack([draw(key) for key in keys])


def algorithm_2(ac, kept, x, x0_of):
    """Algorithm 2 of arXiv:2211.01095, with its lambda, h and r; the clean sample is reached by a first-order step."""
    level = lambda a: 0.5 * math.log(a / (1 - a))
    before, h_before = None, None
    for i, t in enumerate(kept):
        x0 = x0_of(ac[t], x)
        if i + 1 == len(kept):
            return x0
        a_s = ac[kept[i + 1]]
        h = level(a_s) - level(ac[t])
        d = x0
        if before is not None:
            r = h_before / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = np.sqrt((1 - a_s) / (1 - ac[t])) * x - np.sqrt(a_s) * (np.exp(-h) - 1) * d
        before, h_before = x0, h


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("steps, spacing", [(1, "trailing"), (2, "trailing"), (7, "trailing"), (8, "leading")])
def test_dpm_solver_is_its_papers_algorithm(prediction, steps, spacing):
    diffusion = make(prediction)
    kept = samplers.timesteps(1000, steps, spacing)
    made = samplers.sample(
        network(diffusion, bent_jax), diffusion, keys_of(3), (2, 4), method="dpmpp_2m", steps=steps, spacing=spacing
    )
    expected = algorithm_2(diffusion.alphas_cumprod, kept, initial(keys_of(3), (2, 4)), bent_x0)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    if steps > 2:  # and it is not DDIM
        ddim = samplers.sample(
            network(diffusion, bent_jax), diffusion, keys_of(3), (2, 4), method="ddim", steps=steps, spacing=spacing
        )
        assert np.max(np.abs(made - ddim)) > 1e-3


def test_twice_the_steps_are_a_third_of_the_error_where_ddims_is_half():
    """Normal data have a closed form: a point keeps its distance from the mean in standard deviations.

    Leading timesteps end at 0 and the data are wide: the last step, first order in both methods, is then a small one.
    """
    diffusion, std = make(), 2.0

    def error(method, steps):
        ac = diffusion.alphas_cumprod[samplers.timesteps(1000, steps, "leading")[0]]
        exact = MU + std * (initial(keys_of(4), (64,)) - np.sqrt(ac) * MU) / np.sqrt(ac * std**2 + 1 - ac)
        options = dict(method=method, steps=steps, spacing="leading")
        best = network(diffusion, lambda ac, x: best_x0(ac, x, std))
        made = samplers.sample(best, diffusion, keys_of(4), (64,), **options)
        return float(np.sqrt(np.mean(np.square(made - exact))))

    first, second = ([error(method, steps) for steps in (10, 20, 40)] for method in ("ddim", "dpmpp_2m"))
    assert all(1.7 < a / b < 2.3 for a, b in zip(first, first[1:]))
    assert all(2.7 < a / b < 3.7 for a, b in zip(second, second[1:]))
    assert all(b < 0.6 * a for a, b in zip(first, second))


def test_from_pure_noise_its_second_step_is_ddims():
    diffusion = make(zero=True)
    kept = samplers.timesteps(1000, 6)
    previous = samplers.previous_coefficients(diffusion, kept, "dpmpp_2m")
    assert previous[0] == previous[1] == previous[-1] == 0.0 and np.all(previous[2:-1] > 0)
    assert np.all(np.isfinite(previous))
    made = samplers.sample(network(diffusion, bent_jax), diffusion, keys_of(2), (5,), method="dpmpp_2m", steps=6)
    assert np.all(np.isfinite(made))


def test_an_element_does_not_depend_on_its_batch():
    diffusion = make("x0")
    run = jax.jit(lambda keys: samplers.sample(network(diffusion, bent_jax), diffusion, keys, (3,), method="dpmpp_2m"))
    together = np.asarray(run(keys_of(5)))
    np.testing.assert_array_equal(run(keys_of(5)[::-1]), together[::-1])


def test_rescaled_guidance_has_the_conditionals_spread():
    """Equations 15 and 16 of arXiv:2305.08891, an element at a time, in NumPy."""
    rng = np.random.default_rng(0)
    cond, uncond = rng.normal(size=(2, 3, 5)), 2.0 * rng.normal(size=(2, 3, 5))
    plain = uncond + 3.0 * (cond - uncond)
    whole = plain * (cond.std((1, 2)) / plain.std((1, 2)))[:, None, None]
    x, t = jnp.zeros((2, 3, 5)), jnp.zeros(2, jnp.int32)
    constant = lambda value: lambda x_t, t: jnp.asarray(value, jnp.float32)
    for share in (0.7, 1.0):
        wanted = share * whole + (1 - share) * plain
        made = samplers.guided(constant(cond), constant(uncond), 3.0, share)(x, t)
        np.testing.assert_allclose(made, wanted, atol=1e-5)
        both = samplers.guided_batched(constant(np.concatenate([cond, uncond])), 3.0, share)(x, t)
        np.testing.assert_allclose(both, wanted, atol=1e-5)


def test_thresholding_clips_each_element_to_its_own_quantile_and_shrinks_none():
    answer = jnp.stack([jnp.linspace(-3.0, 3.0, 101), jnp.linspace(-0.5, 0.5, 101)])
    made = samplers.sample(lambda x_t, t: answer, make("x0"), keys_of(2), (101,), steps=2, threshold=0.9)
    bound = np.quantile(np.abs(answer[0]), 0.9)
    np.testing.assert_allclose(made[0], np.clip(answer[0], -bound, bound), atol=1e-6)
    assert made[0].max() > 2.5  # latents have no [-1, 1] to be brought back to
    np.testing.assert_array_equal(made[1], answer[1])  # never below 1: small values stay
    with pytest.raises(ValueError, match="threshold is 0.9.*clip"):
        samplers.sample(lambda x_t, t: answer, make("x0"), keys_of(2), (101,), steps=2, threshold=0.9, clip=1.0)
