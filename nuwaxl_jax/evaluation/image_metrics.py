"""PSNR and SSIM of uint8 frames."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame, dB, float64 `[n]`; identical frames give 100.

    Args:
      real, made: uint8 `[n, H, W, 3]`.
    """
    _check(real, made)
    error = np.square(real.astype(np.float64) - made).mean((1, 2, 3))
    return np.where(error > 0, 10 * np.log10(255.0**2 / np.maximum(error, 1e-12)), 100.0).clip(max=100.0)


def ssim(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Structural similarity of each frame, float64 `[n]` in [-1, 1] (Wang et al., 2004).

    Gaussian window of standard deviation 1.5 cut at 11 pixels, each colour channel for itself, borders of 5 pixels
    left out, then the mean.

    Args:
      real, made: uint8 `[n, H, W, 3]`, at least 11 pixels high and wide.
    """
    _check(real, made)
    if min(real.shape[1:3]) < 11:
        raise ValueError(f"ssim needs frames of at least 11x11 pixels, got {real.shape[1]}x{real.shape[2]}")
    x, y = real.astype(np.float64), made.astype(np.float64)

    def blur(z: np.ndarray) -> np.ndarray:
        out = ndimage.gaussian_filter(z, sigma=(0, 1.5, 1.5, 0), radius=(0, 5, 5, 0))
        return out[:, 5:-5, 5:-5]

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similarity /= (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    return similarity.mean((1, 2, 3))


def _check(real: np.ndarray, made: np.ndarray) -> None:
    if real.shape != made.shape or real.ndim != 4 or real.dtype != np.uint8 or made.dtype != np.uint8:
        raise ValueError(
            f"real and made must be uint8 [n, H, W, 3] of one shape, got {real.dtype} {real.shape} and "
            f"{made.dtype} {made.shape}"
        )
