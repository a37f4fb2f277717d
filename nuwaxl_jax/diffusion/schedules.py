"""Noise schedules of a discrete diffusion process, in float64 NumPy.

The process adds noise to x_0 in T small steps t = 0..T-1, each with its own variance beta_t,

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

A product of such steps is again Gaussian. With the cumulative product

    alphas_cumprod[t] = prod_{i <= t} (1 - beta_i)

one draws x_t from x_0 at once:

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I),   alpha_t = sqrt(alphas_cumprod[t]),   alpha_t^2 + sigma_t^2 = 1,

so the signal-to-noise ratio is snr_t = alphas_cumprod[t] / (1 - alphas_cumprod[t]). A schedule is a choice of
beta_0..beta_{T-1}; `alphas_cumprod` holds all that the rest of the package needs of it.

NUWA-XL states neither T nor its schedule. Those on offer:

    linear         beta from 1e-4 to 2e-2, evenly spaced (Ho et al., arXiv:2006.11239)
    scaled_linear  sqrt(beta) evenly spaced, beta from 0.00085 to 0.012 (latent diffusion, Stable Diffusion)
    cosine         alphas_cumprod follows a squared cosine (Nichol & Dhariwal, arXiv:2102.09672, eq. 17)

The first two keep their end points for every T, as their authors wrote them for T = 1000. A much smaller T therefore
leaves signal in x_{T-1}, which the sampler's pure noise lacks; `zero_terminal_snr` removes that signal for any T.
"""

from collections.abc import Callable
import math

import numpy as np


def alphas_cumprod(name: str, num_timesteps: int, zero_terminal_snr: bool = False) -> np.ndarray:
    """Returns alphas_cumprod, float64 [T], strictly falling from near 1.

    Args:
      name: a key of the table at the bottom: 'linear', 'scaled_linear' or 'cosine'.
      num_timesteps: T, at least 2.
      zero_terminal_snr: rescale so that the last value is exactly 0 and the first is kept.

    Raises:
      ValueError: the name is unknown or num_timesteps is below 2.
    """
    if name not in _BETAS:
        raise ValueError(f"schedule {name!r} is unknown; choose one of {sorted(_BETAS)}.")
    if num_timesteps < 2:
        raise ValueError(f"num_timesteps is {num_timesteps}; a diffusion process needs at least 2 (usual: 1000).")
    values = np.cumprod(1.0 - _BETAS[name](num_timesteps))
    return rescale_to_zero_terminal_snr(values) if zero_terminal_snr else values


def rescale_to_zero_terminal_snr(values: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alphas_cumprod) so that it ends at 0 and starts where it did.

    Algorithm 1 of Lin et al., "Common diffusion noise schedules and sample steps are flawed" (arXiv:2305.08891).
    Without it the last training step still shows the network the mean of x_0, while sampling starts from pure noise:
    samples drift to medium brightness.

    Args:
      values: alphas_cumprod, float64 [T].

    Returns:
      The rescaled alphas_cumprod, float64 [T]; the last is exactly 0.
    """
    root = np.sqrt(np.asarray(values, np.float64))
    first, last = root[0], root[-1]
    return np.square((root - last) * (first / (first - last)))


def _linear_betas(num_timesteps: int) -> np.ndarray:
    """Evenly spaced beta, float64 [T]."""
    return np.linspace(1e-4, 2e-2, num_timesteps, dtype=np.float64)


def _scaled_linear_betas(num_timesteps: int) -> np.ndarray:
    """Evenly spaced sqrt(beta), squared, float64 [T]."""
    return np.square(np.linspace(math.sqrt(0.00085), math.sqrt(0.012), num_timesteps, dtype=np.float64))


def _cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """beta_t = 1 - f(t+1) / f(t), f(u) = cos^2(pi/2 (u/T + offset) / (1 + offset)), clipped at max_beta, float64 [T].

    The offset keeps the first steps from being vanishingly small, the clip keeps the last one from a division by 0.
    """
    time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    signal = np.square(np.cos((time + offset) / (1.0 + offset) * (math.pi / 2.0)))
    return np.minimum(1.0 - signal[1:] / signal[:-1], max_beta)


_BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "linear": _linear_betas,
    "scaled_linear": _scaled_linear_betas,
    "cosine": _cosine_betas,
}
