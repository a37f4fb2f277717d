"""PSNR and SSIM against closed forms."""

import numpy as np
import pytest

from nuwaxl_jax.evaluation import image_metrics


def _frames(seed=0, n=2):
    return np.random.default_rng(seed).integers(0, 200, size=(n, 16, 16, 3)).astype(np.uint8)


def test_psnr_of_a_constant_shift_is_known():
    frames = _frames()
    np.testing.assert_allclose(image_metrics.psnr(frames, frames + 5), 20 * np.log10(255 / 5), rtol=1e-9)
    np.testing.assert_array_equal(image_metrics.psnr(frames, frames), 100.0)


def test_ssim_of_constant_frames_is_the_luminance_term_alone():
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    np.testing.assert_allclose(image_metrics.ssim(a, b), (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rtol=1e-6)


def test_ssim_is_one_for_equal_frames_symmetric_and_near_zero_for_unrelated_noise():
    a, b = _frames(1), _frames(2)
    np.testing.assert_allclose(image_metrics.ssim(a, a), 1.0)
    np.testing.assert_allclose(image_metrics.ssim(a, b), image_metrics.ssim(b, a))
    assert abs(image_metrics.ssim(a, b)).max() < 0.2


def test_ssim_by_direct_sums_at_one_pixel():
    a, b = _frames(3, 1), _frames(4, 1)
    a, b = a[:, :11, :11], b[:, :11, :11]  # one window: one value a channel
    offset = np.arange(-5, 6)
    weight = np.exp(-(offset**2) / (2 * 1.5**2))
    weight = np.outer(weight, weight)[None, :, :, None] / weight.sum() ** 2
    x, y = a.astype(float), b.astype(float)
    mean_x, mean_y = (weight * x).sum((1, 2)), (weight * y).sum((1, 2))
    var_x, var_y = (weight * x * x).sum((1, 2)) - mean_x**2, (weight * y * y).sum((1, 2)) - mean_y**2
    cov = (weight * x * y).sum((1, 2)) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    np.testing.assert_allclose(image_metrics.ssim(a, b), expected.mean(1), rtol=1e-6)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        image_metrics.psnr(_frames(), _frames()[:1])
    with pytest.raises(ValueError, match="11x11"):
        image_metrics.ssim(_frames()[:, :8, :8], _frames()[:, :8, :8])
