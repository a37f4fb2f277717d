"""Schedules against published values and formulas written out independently."""

import math

import numpy as np
import pytest

from nuwaxl_jax.diffusion import schedules

NAMES = ("linear", "scaled_linear", "cosine")


@pytest.mark.parametrize(
    "name, snr, root",
    [
        ("linear", 4.035993e-05, 0.006353),
        ("cosine", 2.428735e-09, 4.928220e-05),
        ("scaled_linear", 0.004682, 0.068265),
    ],
)
def test_terminal_values_are_those_published(name, snr, root):
    """Table 1 of arXiv:2305.08891: SNR(T) and sqrt(alphas_cumprod) at T = 1000."""
    last = schedules.alphas_cumprod(name, 1000)[-1]
    assert last / (1 - last) == pytest.approx(snr, rel=2e-4)
    assert math.sqrt(last) == pytest.approx(root, rel=2e-4)


def test_stable_diffusion_values():
    ac = schedules.alphas_cumprod("scaled_linear", 1000)
    assert ac[0] == pytest.approx(0.99915, abs=1e-12)
    logs = [
        math.log1p(-((math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * t / 999) ** 2))
        for t in range(1000)
    ]
    for t in (0, 1, 499, 998, 999):
        assert ac[t] == pytest.approx(math.exp(math.fsum(logs[: t + 1])), rel=1e-10)
    assert ac[999] == pytest.approx(0.0046600, abs=5e-7)


def test_linear_values():
    ac = schedules.alphas_cumprod("linear", 1000)
    logs = [math.log1p(-(1e-4 + (2e-2 - 1e-4) * t / 999)) for t in range(1000)]
    for t in (0, 500, 999):
        assert ac[t] == pytest.approx(math.exp(math.fsum(logs[: t + 1])), rel=1e-10)


def test_cosine_is_the_closed_form_until_the_clip():
    ac = schedules.alphas_cumprod("cosine", 1000)
    f = [math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(1001)]
    np.testing.assert_allclose(ac[:999], np.array(f[1:1000]) / f[0], rtol=1e-9)
    assert ac[999] / ac[998] == pytest.approx(1 - 0.999, rel=1e-9)  # f(T) = 0: only the clip keeps it positive.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_timesteps", [2, 37, 1000])
@pytest.mark.parametrize("zero", [False, True])
def test_float64_and_strictly_falling_inside_the_unit_interval(name, num_timesteps, zero):
    ac = schedules.alphas_cumprod(name, num_timesteps, zero)
    assert ac.dtype == np.float64 and ac.shape == (num_timesteps,)
    assert np.all(np.diff(ac) < 0) and ac[0] < 1
    assert ac[-1] == 0 if zero else ac[-1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr(name):
    plain = np.sqrt(schedules.alphas_cumprod(name, 1000))
    zero = np.sqrt(schedules.alphas_cumprod(name, 1000, zero_terminal_snr=True))
    assert zero[-1] == 0.0
    assert zero[0] == pytest.approx(plain[0], rel=1e-14)
    # Algorithm 1 is affine in sqrt(alphas_cumprod): relative distances stay.
    np.testing.assert_allclose(
        (zero - zero[-1]) / (zero[0] - zero[-1]), (plain - plain[-1]) / (plain[0] - plain[-1]), atol=1e-14
    )


def test_errors_name_the_field_and_the_choices():
    with pytest.raises(ValueError, match=r"schedule 'quadratic'.*'cosine', 'linear', 'scaled_linear'"):
        schedules.alphas_cumprod("quadratic", 1000)
    with pytest.raises(ValueError, match="num_timesteps is 1;"):
        schedules.alphas_cumprod("linear", 1)
