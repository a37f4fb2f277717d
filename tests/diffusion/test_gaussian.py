"""The Gaussian process: definitions, conversions, and the posterior against Bayes' rule worked out by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.diffusion import gaussian

PAIRS = list(itertools.permutations(("eps", "x0", "v"), 2))


def make(prediction="eps", schedule="scaled_linear", zero=False, num_timesteps=1000):
    return gaussian.GaussianDiffusion.create(
        schedule=schedule, num_timesteps=num_timesteps, prediction=prediction, zero_terminal_snr=zero
    )


def draws(batch, shape=(3, 2), seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((batch,) + shape).astype(np.float32),
        rng.standard_normal((batch,) + shape).astype(np.float32),
    )


def convert(diffusion, to, x_t, t, prediction, kind):
    return {"eps": diffusion.to_eps, "x0": diffusion.to_x0, "v": diffusion.to_v}[to](x_t, t, prediction, kind)


def test_q_sample_has_the_mean_and_variance_of_the_step_by_step_chain():
    """Composes q(x_t | x_{t-1}) step by step, which uses the betas alone."""
    diffusion = make(schedule="linear", num_timesteps=1000)
    mean, variance, at = 1.0, 0.0, {}
    for t in range(1000):
        beta = 1e-4 + (2e-2 - 1e-4) * t / 999
        mean, variance = mean * np.sqrt(1 - beta), variance * (1 - beta) + beta
        at[t] = (mean, np.sqrt(variance))
    t = jnp.array([0, 10, 500, 999])
    one, zero = jnp.ones((4, 2, 3)), jnp.zeros((4, 2, 3))
    for i, step in enumerate([0, 10, 500, 999]):
        np.testing.assert_allclose(diffusion.q_sample(one, t, zero)[i], at[step][0], rtol=1e-6)
        np.testing.assert_allclose(diffusion.q_sample(zero, t, one)[i], at[step][1], rtol=1e-6)


@pytest.mark.parametrize("source, to", PAIRS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_conversions_are_cycles_at_every_timestep(source, to, schedule):
    diffusion = make(schedule=schedule)
    t = jnp.arange(1000)
    x0, eps = draws(1000)
    x_t = diffusion.q_sample(x0, t, eps)
    truth = {"eps": eps, "x0": x0, "v": make("v", schedule).target(x0, eps, t)}
    there = convert(diffusion, to, x_t, t, truth[source], source)
    back = convert(diffusion, source, x_t, t, there, to)
    # float32 rounding, magnified by at most 1 / min(alpha, sigma) = 157 ('linear', last step).
    atol = 2e-6 / min(np.sqrt(diffusion.alphas_cumprod[-1]), np.sqrt(1 - diffusion.alphas_cumprod[0]))
    np.testing.assert_allclose(there, truth[to], atol=atol)
    np.testing.assert_allclose(back, truth[source], atol=atol)


@pytest.mark.parametrize("source, to", [("x0", "v"), ("v", "x0"), ("x0", "eps"), ("v", "eps")])
@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine"])
def test_conversions_hold_where_there_is_no_signal(source, to, schedule):
    diffusion = make("v", schedule, zero=True)
    t = jnp.arange(1000)
    x0, eps = draws(1000)
    x_t = diffusion.q_sample(x0, t, eps)
    np.testing.assert_array_equal(x_t[-1], eps[-1])  # Pure noise.
    truth = {"eps": eps, "x0": x0, "v": diffusion.target(x0, eps, t)}
    np.testing.assert_allclose(convert(diffusion, to, x_t, t, truth[source], source), truth[to], atol=2e-4)
    np.testing.assert_array_equal(truth["v"][-1], -x0[-1])


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_target_gives_back_what_made_x_t(prediction):
    diffusion = make(prediction)
    t = jnp.array([0, 300, 999])
    x0, eps = draws(3)
    x_t, target = diffusion.q_sample(x0, t, eps), diffusion.target(x0, eps, t)
    np.testing.assert_allclose(diffusion.to_x0(x_t, t, target), x0, atol=1e-4)
    np.testing.assert_allclose(diffusion.to_eps(x_t, t, target), eps, atol=1e-4)


def test_v_by_rotation():
    """arXiv:2202.00512, appendix D: x_t = cos(phi) x0 + sin(phi) eps, v is its derivative by phi."""
    diffusion = make("v")
    x0, eps = draws(1)
    t = jnp.array([400])
    phi = np.arccos(np.sqrt(diffusion.alphas_cumprod[400]))
    h = 1e-4
    x_at = lambda angle: np.cos(angle) * x0.astype(np.float64) + np.sin(angle) * eps.astype(np.float64)
    np.testing.assert_allclose(diffusion.target(x0, eps, t), (x_at(phi + h) - x_at(phi - h)) / (2 * h), atol=1e-5)


@pytest.mark.parametrize("zero", [False, True])
def test_posterior_by_bayes_rule(zero):
    """Product of the densities N(x_s; alpha_s x0, sigma_s^2) and N(x_t; sqrt(a) x_s, 1 - a) as functions of x_s."""
    diffusion = make("v", zero=zero)
    ac = diffusion.alphas_cumprod
    t = np.array([1, 2, 500, 998, 999])
    x0, x_t = draws(5)
    mean, variance, log_variance = diffusion.posterior(x0, x_t, jnp.asarray(t))
    a = ac[t] / ac[t - 1]
    precision = 1 / (1 - ac[t - 1]) + a / (1 - a)
    expected = (np.sqrt(ac[t - 1]) / (1 - ac[t - 1]) * x0.T + np.sqrt(a) / (1 - a) * x_t.T) / precision
    np.testing.assert_allclose(mean, expected.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.ravel(variance), 1 / precision, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(log_variance), -np.log(precision), rtol=1e-5, atol=1e-5)
    assert variance.shape == log_variance.shape == (5, 1, 1)


def test_posterior_of_the_last_step_is_x0():
    diffusion = make()
    x0, x_t = draws(2)
    mean, variance, log_variance = diffusion.posterior(x0, x_t, jnp.array([0, 0]))
    np.testing.assert_array_equal(mean, x0)
    np.testing.assert_array_equal(variance, 0)
    at_one = diffusion.posterior(x0, x_t, jnp.array([1, 1]))[1]
    np.testing.assert_allclose(log_variance, np.log(at_one), rtol=1e-6)  # Finite: that of t = 1.


def test_snr():
    """Terminal SNR of Stable Diffusion's schedule: 0.004682 (arXiv:2305.08891, table 1)."""
    t = jnp.array([0, 999])
    np.testing.assert_allclose(make().snr(t), [0.99915 / 0.00085, 0.004682], rtol=2e-4)
    assert make("v", zero=True).snr(t)[1] == 0


def test_bfloat16_in_float32_out():
    diffusion = make("v")
    x = jnp.full((2, 3), 0.5, jnp.bfloat16)
    t = jnp.array([0, 999])
    x_t = diffusion.q_sample(x, t, x)
    outputs = [
        x_t,
        diffusion.target(x, x, t),
        diffusion.to_x0(x, t, x),
        diffusion.to_eps(x, t, x),
        diffusion.to_v(x, t, x),
        *diffusion.posterior(x, x, t),
    ]
    assert {o.dtype for o in outputs} == {jnp.dtype("float32")}
    alpha = np.sqrt(diffusion.alphas_cumprod[999])
    np.testing.assert_allclose(x_t[1], 0.5 * (alpha + np.sqrt(1 - alpha**2)), rtol=1e-6)  # No bfloat16 rounding.


def test_is_a_static_argument_and_equal_processes_share_a_compilation():
    traced = []

    @jax.jit(static_argnums=0)
    def noise(diffusion, x, t):
        traced.append(diffusion)
        return diffusion.q_sample(x, t, x)

    x, t = jnp.ones((2, 3)), jnp.array([1, 2])
    noise(make(), x, t)
    noise(make(), x, t)
    assert len(traced) == 1
    noise(make("v"), x, t)
    assert len(traced) == 2


def test_tables_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        make().alphas_cumprod[0] = 0.5


def test_a_timestep_out_of_range_is_not_silently_clamped():
    x = jnp.ones((1, 2))
    assert np.all(np.isnan(make().q_sample(x, jnp.array([1000]), x)))


def test_errors_name_the_field_and_the_mend():
    with pytest.raises(ValueError, match="zero_terminal_snr cannot go with prediction 'eps'.*set prediction to 'v'"):
        make("eps", zero=True)
    with pytest.raises(ValueError, match="prediction 'noise'.*'eps', 'v', 'x0'"):
        make("noise")
    with pytest.raises(ValueError, match="schedule 'sine'"):
        make(schedule="sine")
    x, t = jnp.ones((2, 3)), jnp.array([1, 2])
    with pytest.raises(ValueError, match="kind 'w'"):
        make().to_x0(x, t, x, "w")
    with pytest.raises(ValueError, match="eps cannot be converted under zero_terminal_snr"):
        make("v", zero=True).to_x0(x, t, x, "eps")
    with pytest.raises(ValueError, match=r"t has shape \(\); it must be \[B\]"):
        make().q_sample(x, jnp.array(1), x)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("std", [0.05, 0.5, 0.9])
def test_a_guess_and_the_network_are_mixed_as_bayes_says(kind, std):
    """Bayes' rule in precisions, worked out in float64: neither its form nor its quantities are the code's."""
    diffusion = make(kind)
    t = jnp.array([1, 200, 700, 990])
    x0, eps = draws(4)
    mean = x0 + std * draws(4, seed=1)[0]
    network = draws(4, seed=2)[0]  # any answer
    x_t = np.float64(diffusion.q_sample(x0, t, eps))
    ac = np.float64(diffusion.alphas_cumprod)[np.asarray(t)].reshape(-1, 1, 1)
    precision = 1 / std**2 + ac / (1 - ac)
    best = (mean / std**2 + np.sqrt(ac) / (1 - ac) * x_t) / precision
    share = np.sqrt(1 / precision / (1 - ac))  # posterior std, over that of a standard normal
    own = np.float64(diffusion.to_x0(x_t, t, network))
    wanted = (1 - share) * best + share * own
    mixed = diffusion.from_guess(x_t, t, network, mean, jnp.float32(std))
    scale = 1 + np.abs(own)  # eps at the last steps says little of x0
    np.testing.assert_allclose(diffusion.to_x0(x_t, t, mixed) / scale, wanted / scale, atol=2e-4)


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_a_sure_guess_is_the_answer_and_none_leaves_the_prediction(kind):
    diffusion = make(kind, zero=True)
    t = jnp.array([1, 500, 999])
    x_t, network = draws(3)
    mean = draws(3, seed=1)[0]
    np.testing.assert_array_equal(diffusion.from_guess(x_t, t, network, mean, jnp.float32(1.0)), network)
    sure = diffusion.from_guess(x_t, t, network, mean, jnp.float32(0.0))
    np.testing.assert_allclose(diffusion.to_x0(x_t, t, sure), mean, atol=1e-5)
    by_element = jnp.array([0.0, 1.0, 0.0])[:, None, None]
    mixed = diffusion.from_guess(x_t, t, network, mean, by_element)
    np.testing.assert_array_equal(mixed[1], network[1])
    np.testing.assert_array_equal(mixed[0], sure[0])
