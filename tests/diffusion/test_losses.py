"""The denoising loss: closed forms, the agreement of prediction types, frame weights, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.diffusion import gaussian
from nuwaxl_jax.diffusion import losses

T = jnp.array([0, 3, 200, 700, 999])


def make(prediction="eps", zero=False):
    return gaussian.GaussianDiffusion.create(schedule="scaled_linear", prediction=prediction, zero_terminal_snr=zero)


def draws(seed=0, shape=(5, 4, 2, 2, 3)):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(3)]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_default_is_the_papers_mse_over_all_frames(prediction):
    diffusion = make(prediction)
    x0, eps, output = draws()
    alpha = np.sqrt(diffusion.alphas_cumprod[np.asarray(T)]).reshape(5, 1, 1, 1, 1)
    target = {"eps": eps, "x0": x0, "v": alpha * eps - np.sqrt(1 - alpha**2) * x0}[prediction]
    expected = np.mean((np.asarray(output, np.float64) - target) ** 2, axis=(1, 2, 3, 4))
    per_example, mse = losses.denoising_loss(diffusion, output, x0, eps, T)
    np.testing.assert_allclose(per_example, expected, rtol=1e-5)
    np.testing.assert_array_equal(per_example, mse)


@pytest.mark.parametrize(
    "weighting, in_x0_space",
    [
        ("min_snr", lambda snr: np.minimum(snr, 5.0)),
        ("snr", lambda snr: snr),
    ],
)
def test_snr_weightings_are_the_same_loss_for_every_prediction_type(weighting, in_x0_space):
    """One network error, seen as an error in eps, x0 or v, must weigh the same."""
    x0, eps, error = draws()
    guess = x0 + 0.1 * error
    snr = np.asarray(make().snr(T), np.float64)
    expected = in_x0_space(snr) * np.mean(np.square(guess - x0), axis=(1, 2, 3, 4))
    for prediction in ("eps", "x0", "v"):
        diffusion = make(prediction)
        x_t = diffusion.q_sample(x0, T, eps)
        output = {"eps": diffusion.to_eps, "x0": diffusion.to_x0, "v": diffusion.to_v}[prediction](x_t, T, guess, "x0")
        per_example, _ = losses.denoising_loss(diffusion, output, x0, eps, T, weighting=weighting, gamma=5.0)
        np.testing.assert_allclose(per_example, expected, rtol=1e-3, err_msg=prediction)


@pytest.mark.parametrize("snr, eps, x0, v", [(0.25, 1.0, 0.25, 0.2), (5.0, 1.0, 5.0, 5 / 6), (99.0, 5 / 99, 5.0, 0.05)])
def test_min_snr_weights_as_published(snr, eps, x0, v):
    """arXiv:2303.09556, section 3.4: min(SNR, gamma) / SNR for eps, / (SNR + 1) for v."""
    for prediction, weight in (("eps", eps), ("x0", x0), ("v", v)):
        diffusion = make(prediction)
        table = losses.loss_weights(diffusion, "min_snr", gamma=5.0)
        at = np.interp(np.log(snr), np.log(diffusion.snr_table[::-1]), table[::-1])
        assert at == pytest.approx(weight, rel=5e-3)


def test_frame_weights_leave_given_frames_out():
    x0, eps, output = draws()
    inner = jnp.tile(jnp.array([0.0, 1.0, 1.0, 0.0]), (5, 1))  # A local segment: first and last frame given.
    loss = lambda out: losses.denoising_loss(make(), out, x0, eps, T, frame_weights=inner)[0]
    expected = np.mean(np.square(output - eps)[:, 1:3], axis=(1, 2, 3, 4))
    np.testing.assert_allclose(loss(output), expected, rtol=1e-5)
    gradient = jax.grad(lambda out: jnp.sum(loss(out)))(output)
    assert np.all(gradient[:, (0, 3)] == 0) and np.all(gradient[:, 1:3] != 0)
    ones = losses.denoising_loss(make(), output, x0, eps, T, frame_weights=jnp.ones((5, 4)))[0]
    np.testing.assert_allclose(ones, losses.denoising_loss(make(), output, x0, eps, T)[0], rtol=1e-5)


def test_an_element_with_every_frame_given_has_loss_zero_and_finite_gradient():
    x0, eps, output = draws()
    weights = jnp.ones((5, 4)).at[2].set(0.0)
    loss = lambda out: losses.denoising_loss(make(), out, x0, eps, T, frame_weights=weights)[0]
    assert loss(output)[2] == 0 and np.all(loss(output)[jnp.array([0, 1, 3, 4])] > 0)
    assert np.all(np.isfinite(jax.grad(lambda out: jnp.sum(loss(out)))(output)))


def test_bfloat16_is_reduced_in_float32():
    """4096 errors of 1 + 2^-7 squared: a bfloat16 sum would stop growing at 256."""
    shape = (1, 4, 32, 32, 1)
    output = jnp.full(shape, 1 + 2**-7, jnp.bfloat16)
    zero = jnp.zeros(shape, jnp.bfloat16)
    per_example, mse = losses.denoising_loss(
        make(), output, zero, zero, jnp.array([5]), weighting="min_snr", frame_weights=jnp.ones((1, 4), jnp.bfloat16)
    )
    assert per_example.dtype == mse.dtype == jnp.float32
    assert mse[0] == pytest.approx((1 + 2**-7) ** 2, rel=1e-6)


def test_zero_terminal_snr_trains_its_last_step_if_uniform():
    x0, eps, output = draws()
    per_example, _ = losses.denoising_loss(make("v", zero=True), output, x0, eps, T)
    np.testing.assert_allclose(per_example[-1], np.mean(np.square(output + x0)[-1]), rtol=1e-5)  # v = -x0.
    for weighting in ("min_snr", "snr"):  # Defined there too, not 0 / 0: the weight is 0.
        per_example, mse = losses.denoising_loss(make("v", zero=True), output, x0, eps, T, weighting=weighting)
        assert per_example[-1] == 0 and mse[-1] > 0 and np.all(np.isfinite(per_example))


def test_errors_name_the_field_and_the_mend():
    x0, eps, output = draws()
    with pytest.raises(ValueError, match="weighting 'p2'.*'min_snr', 'snr', 'uniform'"):
        losses.denoising_loss(make(), output, x0, eps, T, weighting="p2")
    with pytest.raises(ValueError, match="min_snr_gamma is 0"):
        losses.denoising_loss(make(), output, x0, eps, T, weighting="min_snr", gamma=0)
    with pytest.raises(ValueError, match="must have one shape"):
        losses.denoising_loss(make(), output[:, :2], x0, eps, T)
    with pytest.raises(ValueError, match=r"frame_weights has shape \(5, 3\); it must be \[B, L\] = \(5, 4\)"):
        losses.denoising_loss(make(), output, x0, eps, T, frame_weights=jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="t has shape"):
        losses.denoising_loss(make(), output, x0, eps, T[:3])
