"""Samplers against textbook loops in float64, closed forms, and the promise that elements do not meet."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.diffusion import samplers

MU, S = 0.4, 0.3  # The data of the analytic denoisers: x0 ~ N(MU, S^2), elementwise.


def make(prediction="eps", schedule="scaled_linear", zero=False, num_timesteps=1000):
    return gaussian.GaussianDiffusion.create(
        schedule=schedule, num_timesteps=num_timesteps, prediction=prediction, zero_terminal_snr=zero
    )


def keys_of(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def optimal(diffusion, mu=MU, s=S):
    """The best denoiser of x0 ~ N(mu, s^2), in what `diffusion` predicts: E[x0 | x_t] is linear in x_t."""
    ac = np.asarray(diffusion.alphas_cumprod)
    gain = np.sqrt(ac) * s**2 / (ac * s**2 + 1 - ac)
    table = jnp.asarray(np.stack([np.sqrt(ac), np.sqrt(1 - ac), gain]), jnp.float32)

    def denoise(x_t, t):
        alpha, sigma, k = (table[i][t].reshape((-1,) + (1,) * (x_t.ndim - 1)) for i in range(3))
        x0 = mu + k * (x_t - alpha * mu)
        eps = (x_t - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[diffusion.prediction]

    return denoise


def optimal_x0(ac, x, mu=MU, s=S):
    return mu + np.sqrt(ac) * s**2 / (ac * s**2 + 1 - ac) * (x - np.sqrt(ac) * mu)


def noises(keys, steps, shape):
    """The documented keying: initial noise, then that of each step, element by element, float64."""
    draw = lambda key, i: np.asarray(jax.random.normal(jax.random.fold_in(key, i), shape), np.float64)
    return (
        np.stack([draw(key, 2**32 - 1) for key in keys]),
        [np.stack([draw(key, i) for key in keys]) for i in range(steps)],
    )


def ddpm_loop(ac, kept, x, z):
    """Algorithm 2 of arXiv:2006.11239 in its eps form, on the process that has only the kept timesteps."""
    for i, t in enumerate(kept):
        ac_s = ac[kept[i + 1]] if i + 1 < len(kept) else 1.0
        a = ac[t] / ac_s
        eps = (x - np.sqrt(ac[t]) * optimal_x0(ac[t], x)) / np.sqrt(1 - ac[t])
        x = (x - (1 - a) / np.sqrt(1 - ac[t]) * eps) / np.sqrt(a)
        x = x + np.sqrt((1 - ac_s) / (1 - ac[t]) * (1 - a)) * z[i]
    return x


def ddim_loop(ac, kept, x, z, eta):
    """Equations 12 and 16 of arXiv:2010.02502."""
    for i, t in enumerate(kept):
        ac_s = ac[kept[i + 1]] if i + 1 < len(kept) else 1.0
        x0 = optimal_x0(ac[t], x)
        eps = (x - np.sqrt(ac[t]) * x0) / np.sqrt(1 - ac[t])
        sd = eta * np.sqrt((1 - ac_s) / (1 - ac[t])) * np.sqrt(1 - ac[t] / ac_s)
        x = np.sqrt(ac_s) * x0 + np.sqrt(1 - ac_s - sd**2) * eps + sd * z[i]
    return x


def exact_moments(ac, kept, method, eta=0.0):
    """Mean and variance of the result over all noise: each step is linear in x and z, so both follow a recursion."""
    loop = (
        (lambda x, z, k: ddpm_loop(ac, k, x, z)) if method == "ddpm" else (lambda x, z, k: ddim_loop(ac, k, x, z, eta))
    )
    zero = [0.0] * len(kept)
    mean = loop(0.0, zero, kept)
    variance = (loop(1.0, zero, kept) - mean) ** 2
    for i in range(len(kept)):
        unit = zero[:i] + [1.0] + zero[i + 1 :]
        variance += (loop(0.0, unit, kept) - mean) ** 2
    return mean, variance


@pytest.mark.parametrize(
    "prediction, method, eta, steps, spacing",
    [
        *(
            (p, m, e, 7, "trailing")
            for p in ("eps", "x0", "v")
            for m, e in (("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.6), ("ddim", 1.0))
        ),
        ("eps", "ddpm", 0.0, 5, "leading"),
        ("v", "ddim", 0.6, 6, "linspace"),
    ],
)
def test_is_the_textbook_loop_on_the_documented_noise(prediction, method, eta, steps, spacing):
    diffusion = make(prediction)
    keys = keys_of(3)
    result = samplers.sample(
        optimal(diffusion), diffusion, keys, (2, 4), method=method, steps=steps, eta=eta, spacing=spacing
    )
    x, z = noises(keys, steps, (2, 4))
    ac, kept = diffusion.alphas_cumprod, samplers.timesteps(1000, steps, spacing)
    expected = ddpm_loop(ac, kept, x, z) if method == "ddpm" else ddim_loop(ac, kept, x, z, eta)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_is_the_textbook_loop_on_all_steps():
    diffusion = make(schedule="linear", num_timesteps=60)
    keys = keys_of(2)
    x, z = noises(keys, 60, (5,))
    result = samplers.sample(optimal(diffusion), diffusion, keys, (5,), method="ddpm", steps=60)
    np.testing.assert_allclose(result, ddpm_loop(diffusion.alphas_cumprod, range(59, -1, -1), x, z), atol=1e-5)


@pytest.mark.parametrize(
    "method, eta, steps", [("ddpm", 0.0, 20), ("ddim", 0.0, 10), ("ddim", 1.0, 1000), ("ddpm", 0.0, 1000)]
)
def test_samples_have_the_exact_mean_and_variance(method, eta, steps):
    diffusion = make("v")
    sampler = jax.jit(
        lambda keys: samplers.sample(optimal(diffusion), diffusion, keys, (64,), method=method, steps=steps, eta=eta)
    )
    result = np.asarray(sampler(keys_of(128, seed=3)), np.float64)
    mean, variance = (
        exact_moments(diffusion.alphas_cumprod, samplers.timesteps(1000, steps), method, eta)
        if (steps < 1000)
        else (MU, S**2)
    )  # All steps: the data distribution itself, to discretisation.
    slack = 0.0 if steps < 1000 else 0.01 * S
    n = result.size
    assert abs(result.mean() - mean) < 5 * math.sqrt(variance / n) + slack
    assert result.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / n) + (0.05 if slack else 0))


@pytest.mark.parametrize("steps", [3, 50, 1000])
def test_ddim_with_eta_1_has_the_ddpm_posterior(steps):
    diffusion = make(num_timesteps=1000)
    kept = samplers.timesteps(1000, steps)
    ddim = samplers.step_coefficients(diffusion, kept, "ddim", eta=1.0)
    for a, b in zip(ddim, samplers.step_coefficients(diffusion, kept, "ddpm"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    if steps == 1000:
        _, variance, _ = diffusion.posterior(jnp.ones(1000), jnp.ones(1000), jnp.asarray(kept))
        np.testing.assert_allclose(np.square(ddim[2]), variance, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 20, 1000])
def test_strided_ddpm_steps_compose_to_the_forward_marginals(steps):
    """If x_t ~ q(x_t | x0), the step to s with the true x0 must give q(x_s | x0): right mean and variance."""
    diffusion = make()
    kept = samplers.timesteps(1000, steps)
    c_x0, c_x_t, c_noise = samplers.step_coefficients(diffusion, kept, "ddpm")
    ac_t = diffusion.alphas_cumprod[kept]
    ac_s = np.append(ac_t[1:], 1.0)
    np.testing.assert_allclose(c_x0 + c_x_t * np.sqrt(ac_t), np.sqrt(ac_s), rtol=1e-12)
    np.testing.assert_allclose(c_x_t**2 * (1 - ac_t) + c_noise**2, 1 - ac_s, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("method, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_known_sample_is_returned_exactly(method, eta, steps):
    """With data at one point the best x0 prediction is that point; the last step must add nothing to it."""
    point = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    result = samplers.sample(lambda x_t, t: point, make("x0"), keys_of(2), (3, 4), method=method, steps=steps, eta=eta)
    np.testing.assert_array_equal(result, point)
    for prediction in ("eps", "v"):
        diffusion = make(prediction)
        result = samplers.sample(
            optimal(diffusion, mu=0.7, s=0.0), diffusion, keys_of(2), (3, 4), method=method, steps=steps, eta=eta
        )
        np.testing.assert_allclose(result, 0.7, atol=1e-5)


@pytest.mark.parametrize("method, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine"])
def test_zero_terminal_snr_starts_from_pure_noise_and_keeps_the_mean(method, eta, schedule):
    """One deterministic step of the best denoiser must give the data's mean, whatever the noise."""
    diffusion = make("v", schedule, zero=True)
    one = samplers.sample(optimal(diffusion), diffusion, keys_of(2), (8,), method=method, steps=1, eta=eta)
    np.testing.assert_allclose(one, MU, atol=1e-6)
    some = samplers.sample(optimal(diffusion), diffusion, keys_of(64), (64,), method=method, steps=10, eta=eta)
    assert abs(np.mean(some) - MU) < 5 * S / 64


def test_clip_bounds_every_estimate_and_the_result():
    x = samplers.sample(lambda x_t, t: 5 * jnp.sign(x_t), make("x0"), keys_of(2), (64,), steps=3, clip=1.0)
    np.testing.assert_array_equal(np.unique(x), [-1.0, 1.0])
    diffusion = make("x0")
    free = samplers.sample(lambda x_t, t: 5 * x_t, diffusion, keys_of(2), (64,), steps=3)
    assert np.max(np.abs(free)) > 1.0
    # An estimate inside the bounds is left alone.
    with jax.disable_jit():  # operation by operation: two compiled programs may fuse, and round, apart
        inside = samplers.sample(optimal(diffusion), diffusion, keys_of(2), (64,), steps=3, clip=100.0)
        unclipped = samplers.sample(optimal(diffusion), diffusion, keys_of(2), (64,), steps=3)
    np.testing.assert_array_equal(inside, unclipped)


@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_temperature_is_the_spread_of_the_initial_noise(method):
    """The best denoiser is linear, and so is the sampler: what the noise adds scales with the temperature."""
    diffusion = make("v")
    run = lambda temperature: samplers.sample(
        optimal(diffusion), diffusion, keys_of(2), (8,), method=method, steps=5, temperature=temperature
    )
    cold, half, whole = run(0.0), run(0.5), run(1.0)
    assert np.ptp(cold) == 0.0
    np.testing.assert_allclose(half - cold, 0.5 * (whole - cold), atol=1e-6)
    assert np.std(whole) > 0.1
    with pytest.raises(ValueError, match="temperature is -1"):
        run(-1.0)


def mixing(x_t, t):
    """A denoiser that is not linear and mixes all of an element, but no two elements."""
    weights = jnp.linspace(-1.0, 0.9, x_t.shape[-1], dtype=jnp.float32)
    return jnp.tanh(x_t[:, ::-1] * weights + jnp.sin(0.01 * t.astype(jnp.float32))[:, None, None])


@pytest.mark.parametrize("method, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5)])
def test_an_element_does_not_depend_on_its_batch(method, eta):
    """To the bit in one program, wherever it lies and whoever its neighbours are; to rounding in a smaller batch."""
    run = jax.jit(lambda keys: samplers.sample(mixing, make("x0"), keys, (3, 7), method=method, steps=6, eta=eta))
    together = np.asarray(run(keys_of(5)))
    assert len(np.unique(together)) == together.size
    np.testing.assert_array_equal(run(keys_of(5)[::-1]), together[::-1])
    other = np.asarray(run(jnp.concatenate([keys_of(5)[:2], keys_of(3, seed=9)])))
    np.testing.assert_array_equal(other[:2], together[:2])
    assert np.all(other[2:] != together[2:])
    for b in range(5):
        np.testing.assert_allclose(run(keys_of(5)[b : b + 1])[0], together[b], atol=2e-6)


def test_a_neighbour_that_is_not_finite_spoils_nothing():
    broken = jnp.array([1.0, jnp.nan, 1.0, jnp.inf])[:, None, None]
    whole = jnp.ones((4, 1, 1))
    run = jax.jit(
        lambda factor, keys: samplers.sample(
            lambda x_t, t: factor * mixing(x_t, t), make("x0"), keys, (3, 7), method="ddpm", steps=4
        )
    )
    np.testing.assert_array_equal(run(broken, keys_of(4))[::2], run(whole, keys_of(4))[::2])


def test_sharded_over_devices_it_needs_no_collective_and_gives_the_same_bits():
    """Each device, with its two elements, gives what one device gives for these two."""
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    run = lambda keys: samplers.sample(mixing, make("x0"), keys, (3, 7), method="ddpm", steps=4)
    placed = jax.device_put(keys_of(2 * count), sharding)
    compiled = jax.jit(run, out_shardings=sharding).lower(placed).compile()
    text = compiled.as_text()
    assert not [op for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if op in text]
    result = compiled(placed)
    assert result.sharding.spec == jax.P("data")
    alone = jax.jit(run)
    expected = [alone(keys_of(2 * count)[2 * i : 2 * i + 2]) for i in range(count)]
    np.testing.assert_array_equal(result, np.concatenate(expected))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from equations(inner.jaxpr)


@pytest.mark.parametrize("method, eta, draws", [("ddpm", 0.0, 2), ("ddim", 0.5, 2), ("ddim", 0.0, 1)])
def test_is_one_scan_that_carries_only_x(method, eta, draws):
    """And deterministic DDIM does not pay for noise it does not use: the initial draw is its only one."""
    run = lambda keys: samplers.sample(mixing, make(), keys, (3, 7), method=method, steps=4, eta=eta)
    traced = jax.make_jaxpr(run)(keys_of(2))
    found = collections.Counter(e.primitive.name for e in equations(traced.jaxpr))
    assert found["scan"] == 1 and found["while"] == 0
    scan = next(e for e in equations(traced.jaxpr) if e.primitive.name == "scan")
    assert scan.params["length"] == 4
    assert [v.aval.shape for v in scan.outvars] == [(2, 3, 7)]  # The carried x, and nothing stacked over the steps.
    assert found["random_bits"] == draws


def test_noise_is_never_drawn_twice():
    """The states a constant denoiser sees differ by the step noise; no two draws may be related."""
    keys = keys_of(1)
    x, z = noises(keys, 6, (4000,))
    correlation = np.corrcoef(np.concatenate([x, *z]))
    assert np.max(np.abs(correlation - np.eye(7))) < 5 / math.sqrt(4000)


def test_bfloat16_network_keeps_a_float32_state():
    diffusion = make("v")
    seen = []

    def denoise(x_t, t):
        seen.append((x_t.dtype, t.dtype, t.shape))
        return optimal(diffusion)(x_t, t).astype(jnp.bfloat16)

    result = samplers.sample(denoise, diffusion, keys_of(2), (16,), steps=5)
    assert result.dtype == jnp.float32
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("int32"), (2,))}
    exact = samplers.sample(optimal(diffusion), diffusion, keys_of(2), (16,), steps=5)
    np.testing.assert_allclose(result, exact, atol=0.02)
    assert np.any(result != exact)


@pytest.mark.parametrize(
    "spacing, steps, expected",
    [
        ("trailing", 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        ("leading", 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", 3, [999, 666, 332]),
        ("trailing", 1, [999]),
        ("linspace", 1, [999]),
        ("leading", 1, [0]),
    ],
)
def test_timesteps_as_published(spacing, steps, expected):
    """The rows of ten are table 2 of arXiv:2305.08891, counted from 0."""
    kept = samplers.timesteps(1000, steps, spacing)
    assert kept.dtype == np.int32
    assert kept.tolist() == expected


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("num_timesteps", [2, 50, 97])
def test_timesteps_are_distinct_and_descending_for_every_count(spacing, num_timesteps):
    for steps in range(1, num_timesteps + 1):
        kept = samplers.timesteps(num_timesteps, steps, spacing)
        assert kept.shape == (steps,) and np.all(np.diff(kept) < 0) and kept[-1] >= 0 and kept[0] < num_timesteps
    assert kept.tolist() == list(range(num_timesteps))[::-1]


def test_guidance():
    cond, uncond = (lambda x_t, t: x_t + 1.0), (lambda x_t, t: 2.0 * x_t)
    x, t = jnp.array([[1.0, 3.0]]), jnp.array([5])
    np.testing.assert_allclose(samplers.guided(cond, uncond, 3.0)(x, t), [[2.0, 0.0]])  # 2x + 3 (1 - x)
    np.testing.assert_array_equal(samplers.guided(cond, None, 1.0)(x, t), cond(x, t))
    np.testing.assert_array_equal(samplers.guided(None, uncond, 0.0)(x, t), uncond(x, t))

    def both(x_t, t):
        assert x_t.shape == (2, 2) and t.shape == (2,)
        is_cond = jnp.array([[True], [False]])
        return jnp.where(is_cond, cond(x_t, t), uncond(x_t, t)).astype(jnp.bfloat16)

    batched = samplers.guided_batched(both, 3.0)(x, t)
    assert batched.dtype == jnp.float32
    np.testing.assert_allclose(batched, [[2.0, 0.0]])


def test_guidance_is_the_same_for_every_prediction_type():
    results = []
    for prediction in ("eps", "x0", "v"):
        diffusion = make(prediction)
        denoise = samplers.guided(optimal(diffusion, mu=0.5), optimal(diffusion, mu=-0.2), 2.5)
        results.append(samplers.sample(denoise, diffusion, keys_of(2), (8,), method="ddpm", steps=8))
    np.testing.assert_allclose(results[1], results[0], atol=2e-5)
    np.testing.assert_allclose(results[2], results[0], atol=2e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(method="heun"), r"method 'heun'.*'ddim', 'ddpm'"),
        (dict(spacing="karras"), r"spacing 'karras'.*'leading', 'linspace', 'trailing'"),
        (dict(steps=0), r"steps is 0; it must lie in 1..1000"),
        (dict(steps=1001), r"steps is 1001"),
        (dict(eta=1.5), r"eta is 1.5; it must lie in \[0, 1\]"),
        (dict(method="ddpm", eta=0.5), r"set eta to 0 or method to 'ddim'"),
        (dict(clip=0.0), r"clip is 0.0; it must be positive"),
    ],
)
def test_errors_name_the_field_and_the_mend(arguments, message):
    with pytest.raises(ValueError, match=message):
        samplers.sample(mixing, make(), keys_of(2), (3, 7), **arguments)


def test_errors_of_shape():
    with pytest.raises(ValueError, match="one typed key for each batch element"):
        samplers.sample(mixing, make(), jax.random.key(0), (3, 7))
    with pytest.raises(ValueError, match="one typed key for each batch element"):
        samplers.sample(mixing, make(), jnp.zeros((2, 2), jnp.uint32), (3, 7))
    with pytest.raises(ValueError, match=r"denoise returned shape \(2, 3\)"):
        samplers.sample(lambda x_t, t: x_t[..., 0], make(), keys_of(2), (3, 7))
