"""The Gaussian diffusion process: noising, prediction targets, their conversions, and the posterior.

With alpha_t = sqrt(alphas_cumprod[t]) and sigma_t = sqrt(1 - alphas_cumprod[t]) (see `schedules`),

    x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, I).

Given x_t, any one of three quantities fixes the other two, so a network may predict any of them:

    eps   the noise (the paper's choice, section 3.2)
    x0    the clean sample
    v     alpha_t eps - sigma_t x_0 (Salimans & Ho, arXiv:2202.00512)

    x_0 = (x_t - sigma_t eps) / alpha_t = alpha_t x_t - sigma_t v
    eps = (x_t - alpha_t x_0) / sigma_t = sigma_t x_t + alpha_t v

To step back from t to an earlier s one uses the posterior, by Bayes' rule from q(x_t | x_s) and q(x_s | x_0):

    q(x_s | x_t, x_0) = N(mean, variance I),   a = alphas_cumprod[t] / alphas_cumprod[s]
    mean     = alpha_s (1 - a) / sigma_t^2 x_0 + sqrt(a) sigma_s^2 / sigma_t^2 x_t
    variance = sigma_s^2 / sigma_t^2 (1 - a)

A sampler draws mean + sqrt(variance) z with z ~ N(0, I). This is the paper's eq. 16, whose printed noise factor lacks
the square root: it would multiply z by the variance.

Tables are built in float64 NumPy and used in float32. All methods take inputs of any float type and return float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from nuwaxl_jax.diffusion import schedules

PREDICTIONS = ("eps", "x0", "v")


def posterior_coefficients(ac_t: np.ndarray, ac_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of q(x_s | x_t, x_0) for any s < t.

    Args:
      ac_t: alphas_cumprod at t, float64 [N].
      ac_s: alphas_cumprod at s, float64 [N]; 1 where s is the clean sample.

    Returns:
      (coefficient of x_0, coefficient of x_t, variance), each float64 [N]. Where ac_s is 1 they are exactly (1, 0, 0).
    """
    a = ac_t / ac_s
    from_x0 = np.sqrt(ac_s) * (1.0 - a) / (1.0 - ac_t)
    from_x_t = np.sqrt(a) * (1.0 - ac_s) / (1.0 - ac_t)
    variance = (1.0 - ac_s) / (1.0 - ac_t) * (1.0 - a)
    return from_x0, from_x_t, variance


@dataclasses.dataclass(frozen=True)
class GaussianDiffusion:
    """A diffusion process and what its network predicts. Hashable, so fit for a static argument of `jax.jit`.

    In all methods `t` is int32 [B] in 0..T-1, one a batch element, and the other arrays are [B, ...]. A `t` of T or
    more yields NaN, not a neighbour's value.

    Attributes:
      schedule: name of the noise schedule, see `schedules`.
      num_timesteps: T.
      prediction: what the network predicts: 'eps', 'x0' or 'v'.
      zero_terminal_snr: whether x_{T-1} is pure noise.
    """

    schedule: str
    num_timesteps: int
    prediction: str
    zero_terminal_snr: bool

    @classmethod
    def create(
        cls,
        *,
        schedule: str = "scaled_linear",
        num_timesteps: int = 1000,
        prediction: str = "eps",
        zero_terminal_snr: bool = False,
    ) -> "GaussianDiffusion":
        """Returns the process.

        Raises:
          ValueError: an unknown schedule or prediction, num_timesteps below 2, or eps prediction with
            zero_terminal_snr: there x_{T-1} is the noise itself, so predicting it says nothing of x_0.
        """
        return cls(schedule, num_timesteps, prediction, zero_terminal_snr)

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r} is unknown; choose one of {sorted(PREDICTIONS)}.")
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "zero_terminal_snr cannot go with prediction 'eps': the last step holds no signal, so eps "
                "does not determine x0 there; set prediction to 'v' or 'x0', or zero_terminal_snr to "
                "False."
            )
        self.alphas_cumprod.setflags(write=False)  # Also checks the schedule and num_timesteps.

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """float64 [T]."""
        return schedules.alphas_cumprod(self.schedule, self.num_timesteps, self.zero_terminal_snr)

    @functools.cached_property
    def _posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients of x_0 and x_t, and the variance, of q(x_{t-1} | x_t, x_0), float64 [T] each."""
        return posterior_coefficients(self.alphas_cumprod, np.append(1.0, self.alphas_cumprod[:-1]))

    def _alpha_sigma(self, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha_t and sigma_t, float32 [B, 1, ...], to multiply `like` [B, ...] with."""
        return (_gather(np.sqrt(self.alphas_cumprod), t, like), _gather(np.sqrt(1.0 - self.alphas_cumprod), t, like))

    def q_sample(self, x0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
        """Noises x0 to x_t = alpha_t x0 + sigma_t eps, float32 [B, ...]."""
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * _float32(x0) + sigma * _float32(eps)

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """What the network should predict for this x0 and eps at t, float32 [B, ...]."""
        if self.prediction == "x0":
            return _float32(x0)
        if self.prediction == "eps":
            return _float32(eps)
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * _float32(eps) - sigma * _float32(x0)

    def to_x0(self, x_t: jax.Array, t: jax.Array, prediction: jax.Array, kind: str | None = None) -> jax.Array:
        """The x0 that a prediction implies, float32 [B, ...].

        Args:
          x_t: the noised sample [B, ...].
          t: int32 [B].
          prediction: the network's output [B, ...].
          kind: what `prediction` holds, 'eps', 'x0' or 'v'; None: what this process predicts.

        Raises:
          ValueError: an unknown kind, or 'eps' under zero terminal SNR.
        """
        kind = self._check_kind(kind)
        if kind == "x0":
            return _float32(prediction)
        alpha, sigma = self._alpha_sigma(t, x_t)
        if kind == "v":
            return alpha * _float32(x_t) - sigma * _float32(prediction)
        return (_float32(x_t) - sigma * _float32(prediction)) / alpha

    def to_eps(self, x_t: jax.Array, t: jax.Array, prediction: jax.Array, kind: str | None = None) -> jax.Array:
        """The noise that a prediction implies, float32 [B, ...]; arguments and errors as for `to_x0`."""
        kind = self._check_kind(kind)
        if kind == "eps":
            return _float32(prediction)
        alpha, sigma = self._alpha_sigma(t, x_t)
        if kind == "v":
            return sigma * _float32(x_t) + alpha * _float32(prediction)
        return (_float32(x_t) - alpha * _float32(prediction)) / sigma

    def to_v(self, x_t: jax.Array, t: jax.Array, prediction: jax.Array, kind: str | None = None) -> jax.Array:
        """The v that a prediction implies, float32 [B, ...]; arguments and errors as for `to_x0`."""
        kind = self._check_kind(kind)
        if kind == "v":
            return _float32(prediction)
        alpha, sigma = self._alpha_sigma(t, x_t)
        return alpha * self.to_eps(x_t, t, prediction, kind) - sigma * self.to_x0(x_t, t, prediction, kind)

    def from_guess(
        self, x_t: jax.Array, t: jax.Array, prediction: jax.Array, mean: jax.Array, std: jax.Array
    ) -> jax.Array:
        """A prediction that starts from a guess of x0; ours, after EDM's preconditioning (arXiv:2206.00364, eq. 7).

        Were x0 normal with this mean and std, its best estimate from x_t alone would be

            g = mean + alpha std^2 / D (x_t - alpha mean),   D = alpha^2 std^2 + sigma^2,

        off by std sigma / sqrt(D). The result says x0 = (1 - r) g + r x0(prediction) with r = std / sqrt(D): how far g
        is off, over how far it would be off for std 1. Thus std 0 gives the mean whatever the network says, std 1 and a
        zero mean the prediction as it is, and little noise always the prediction.

        Args:
          x_t: the noised sample [B, ...].
          t: int32 [B].
          prediction: the network's output [B, ...].
          mean: of the guess, [B, ...].
          std: of the guess, 0 to 1 in latents of unit variance, broadcast against x_t; 1: the prediction as it is.

        Returns:
          What this process predicts (eps, x0 or v), float32 [B, ...].
        """
        alpha, sigma = self._alpha_sigma(t, x_t)
        prediction, variance = _float32(prediction), jnp.square(std)
        rest = _float32(x_t) - alpha * mean
        total = jnp.square(alpha) * variance + jnp.square(sigma)
        if self.prediction == "x0":
            guess = mean + alpha * variance / total * rest
        elif self.prediction == "eps":
            guess = sigma / total * rest
        else:  # alpha eps - sigma x0, without its cancellation at small sigma
            guess = sigma * (alpha * (1.0 - variance) / total * rest - mean)
        mixed = guess + std / jnp.sqrt(total) * (prediction - guess)
        return jnp.where(std < 1.0, mixed, prediction)

    def posterior(self, x0: jax.Array, x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mean, variance and log variance of q(x_{t-1} | x_t, x0); at t = 0 the mean is x0 and the variance 0.

        A draw is mean + sqrt(variance) z: the standard deviation, where the paper's eq. 16 prints the variance.

        Returns:
          (mean [B, ...], variance [B, 1, ...], log_variance [B, 1, ...]), float32. The log variance at t = 0 is that of
          t = 1, the custom that keeps it finite.
        """
        from_x0, from_x_t, variance = self._posterior
        mean = _gather(from_x0, t, x0) * _float32(x0) + _gather(from_x_t, t, x_t) * _float32(x_t)
        log_variance = np.log(np.append(variance[1], variance[1:]))
        return mean, _gather(variance, t, x0), _gather(log_variance, t, x0)

    @functools.cached_property
    def snr_table(self) -> np.ndarray:
        """alpha_t^2 / sigma_t^2, float64 [T]; 0 at T-1 under zero terminal SNR."""
        return self.alphas_cumprod / (1.0 - self.alphas_cumprod)

    def snr(self, t: jax.Array) -> jax.Array:
        """The signal-to-noise ratio alpha_t^2 / sigma_t^2, float32 [B]."""
        return _gather(self.snr_table, t, t)

    def _check_kind(self, kind: str | None) -> str:
        kind = self.prediction if kind is None else kind
        if kind not in PREDICTIONS:
            raise ValueError(f"kind {kind!r} is unknown; choose one of {sorted(PREDICTIONS)}.")
        if kind == "eps" and self.zero_terminal_snr:
            raise ValueError(
                "eps cannot be converted under zero_terminal_snr: at the last step it does not determine "
                "x0; predict 'v' or 'x0'."
            )
        return kind


def _float32(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _gather(table: np.ndarray, t: jax.Array, like: jax.Array) -> jax.Array:
    """table[t], float32, with the trailing dimensions of size 1 that broadcast it over `like` [B, ...]."""
    t = jnp.asarray(t)
    if t.ndim != 1 or jnp.ndim(like) < 1 or t.shape[0] != jnp.shape(like)[0]:
        raise ValueError(
            f"t has shape {t.shape}; it must be [B], one timestep for each element of the batch of shape "
            f"{jnp.shape(like)}."
        )
    values = jnp.take(jnp.asarray(table, jnp.float32), t, mode="fill", fill_value=jnp.nan)
    return values.reshape(t.shape + (1,) * (jnp.ndim(like) - 1))
