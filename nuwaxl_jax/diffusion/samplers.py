"""Samplers: DDPM ancestral, DDIM and DPM-Solver++ 2M, each one `jax.lax.scan` over a descending sequence of timesteps.

At each kept timestep t the network's prediction is turned into an estimate of x_0, and x_s, the sample at the next kept
timestep s < t, is drawn. All samplers are one linear step

    x_s = c_x0 x_0 + c_x_t x_t + c_noise z,   z ~ N(0, I),

and differ in the coefficients and in what stands for x_0. With ac = alphas_cumprod, alpha = sqrt(ac) and
sigma = sqrt(1 - ac):

    DDPM (arXiv:2006.11239; NUWA-XL's eq. 16 with the square root it lacks): the exact posterior q(x_s | x_t, x_0) of
        `gaussian`, c_noise its standard deviation. Exact too where timesteps between s and t are skipped.
    DDIM (arXiv:2010.02502, eq. 12 and 16): x_s = alpha_s x_0 + sqrt(sigma_s^2 - c_noise^2) eps + c_noise z, with
        eps = (x_t - alpha_t x_0) / sigma_t and c_noise = eta sigma_s / sigma_t sqrt(1 - ac_t / ac_s). eta = 1 is DDPM.
    Euler: on the probability flow of x / alpha over sigma / alpha (Karras et al., arXiv:2206.00364) a step is that of
        DDIM with eta = 0.
    DPM-Solver++ 2M (arXiv:2211.01095, algorithm 2): DDIM's step with eta = 0 on x_0 + c_prev (x_0 - x_0 of the step
        before), c_prev = h_s / (2 h_t), where h_s and h_t are the steps of log(alpha / sigma) to come and just made.
        The first step has none before it, the last goes to infinity: both are DDIM's.

The last step goes to the clean sample, ac_s = 1: there c_x0 = 1, the others are 0, and x_0 is returned as it is.

Everything is element by element over the batch: no reduction crosses it, and the noise of element b comes from its own
key, the initial noise from `fold_in(keys[b], INITIAL_NOISE)`, that of step i from `fold_in(keys[b], i)`. An element's
result therefore depends on its own key and inputs only, whatever the batch around it and whatever the devices: to the
bit within one program. A batch of another size is another program, whose compiler may round differently; whoever wants
equal bits for every number of devices and every chunk, as `hierarchy.generate` does, samples batches of one size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nuwaxl_jax.diffusion import gaussian

# (x_t [B, ...], t int32 [B]) -> the network's prediction [B, ...].
DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]

# What the initial noise folds into an element's key: the largest uint32, which no step index reaches.
INITIAL_NOISE = np.uint32(2**32 - 1)


def sample(
    denoise: DenoiseFn,
    diffusion: gaussian.GaussianDiffusion,
    keys: jax.Array,
    shape_per_example: tuple[int, ...],
    *,
    method: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    clip: float | None = None,
    threshold: float | None = None,
    spacing: str = "trailing",
    temperature: float = 1.0,
) -> jax.Array:
    """Draws x_0 from noise.

    Args:
      denoise: the network, closed over its parameters and conditions; called once, inside the scan.
      diffusion: the process, which says what the network predicts.
      keys: typed keys [B], one an element.
      shape_per_example: the shape of one element, e.g. (L, h, w, c).
      method: 'ddpm', 'ddim', 'euler' or 'dpmpp_2m'.
      steps: number of network evaluations, 1..T.
      eta: DDIM's noise, from 0 (deterministic) to 1 (that of DDPM); must be 0 for the others, which have none.
      clip: each x_0 estimate is clipped to [-clip, clip], the returned one included; None: not clipped.
      threshold: a fraction such as 0.995: each x_0 estimate of an element is clipped to that quantile of its |x_0|, at
        least 1. Ours: dynamic thresholding (arXiv:2205.11487, section 2.3) without its division by the quantile, which
        takes pixels back to [-1, 1] and would only shrink latents of unit variance.
      spacing: which timesteps are kept, see `timesteps`.
      temperature: standard deviation of the initial noise; 1 samples the process, 0 starts from its mean, so that only
        the steps' own noise, if any, tells two draws apart.

    Returns:
      x_0, float32 [B, *shape_per_example].

    Raises:
      ValueError: an argument is out of range, or `denoise` changes the shape.
    """
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise ValueError(
            f"keys has dtype {keys.dtype} and shape {keys.shape}; it must hold one typed key for each "
            "batch element, [B], e.g. jax.random.split(jax.random.key(0), B)."
        )
    if clip is not None and clip <= 0:
        raise ValueError(f"clip is {clip}; it must be positive, or None for no clipping.")
    if threshold is not None and (clip is not None or not 0 < threshold <= 1):
        raise ValueError(f"threshold is {threshold}; it must lie in (0, 1], and be None where clip is given.")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must not be negative.")
    kept = timesteps(diffusion.num_timesteps, steps, spacing)
    coefficients = step_coefficients(diffusion, kept, method, eta)
    c_prev = previous_coefficients(diffusion, kept, method)
    shape = tuple(shape_per_example)
    noisy, multistep = bool(np.any(coefficients[2] > 0)), bool(np.any(c_prev > 0))

    def step(carry, inputs):
        x_t, before = carry
        index, t, c_x0, c_x_t, c_noise, c_before = inputs
        t = jnp.full(keys.shape, t, jnp.int32)
        prediction = denoise(x_t, t)
        if prediction.shape != x_t.shape:
            raise ValueError(
                f"denoise returned shape {prediction.shape} for x_t of shape {x_t.shape}; they must be the same."
            )
        x0 = diffusion.to_x0(x_t, t, prediction)
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
        if threshold is not None:
            x0 = _thresholded(x0, threshold)
        used = x0 + c_before * (x0 - before) if multistep else x0
        x_s = c_x0 * used + c_x_t * x_t
        if noisy:
            x_s = x_s + c_noise * _normal(keys, index, shape)
        return (x_s, x0 if multistep else None), None

    tables = tuple(c.astype(np.float32) for c in (*coefficients, c_prev))
    start = temperature * _normal(keys, INITIAL_NOISE, shape)
    inputs = (np.arange(steps, dtype=np.uint32), kept) + tables
    (x0, _), _ = jax.lax.scan(step, (start, jnp.zeros_like(start) if multistep else None), inputs)
    return x0


def timesteps(num_timesteps: int, steps: int, spacing: str = "trailing") -> np.ndarray:
    """The kept timesteps, descending, int32 [steps], all different and in 0..T-1.

    'trailing' always starts at T-1, the only one of pure noise, and is right for few steps; 'leading' is the older
    custom, which ends at 0 but starts below T-1; 'linspace' has both ends (arXiv:2305.08891, table 2).

    Raises:
      ValueError: an unknown spacing, or steps outside 1..T.
    """
    if spacing not in _SPACINGS:
        raise ValueError(f"spacing {spacing!r} is unknown; choose one of {sorted(_SPACINGS)}.")
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"steps is {steps}; it must lie in 1..{num_timesteps}, the number of timesteps.")
    return np.asarray(_SPACINGS[spacing](num_timesteps, steps), np.int32)


def step_coefficients(
    diffusion: gaussian.GaussianDiffusion, kept: np.ndarray, method: str, eta: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(c_x0, c_x_t, c_noise) of the step from each kept timestep to the next, and from the last to the clean sample.

    Args:
      diffusion: the process.
      kept: descending timesteps, int [N].
      method: 'ddpm', 'ddim', 'euler' or 'dpmpp_2m'.
      eta: DDIM's noise in [0, 1]; 0 for the others.

    Returns:
      Three float64 arrays [N].

    Raises:
      ValueError: an unknown method, or an eta it does not take.
    """
    if method not in _METHODS:
        raise ValueError(f"method {method!r} is unknown; choose one of {sorted(_METHODS)}.")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; it must lie in [0, 1].")
    if method != "ddim" and eta != 0.0:
        raise ValueError(f"eta is {eta}, but only method 'ddim' has it; set eta to 0 or method to 'ddim'.")
    ac_t = diffusion.alphas_cumprod[kept]
    return _METHODS[method](ac_t, np.append(ac_t[1:], 1.0), eta)


def previous_coefficients(diffusion: gaussian.GaussianDiffusion, kept: np.ndarray, method: str) -> np.ndarray:
    """c_prev of each step (module docstring), float64 [N]: 0 at the first and the last, and for one-step methods."""
    ac = diffusion.alphas_cumprod[kept]
    out = np.zeros(len(kept))
    if method == "dpmpp_2m" and len(kept) > 2:
        with np.errstate(divide="ignore"):  # pure noise: -inf, a first step without end, c_prev 0 after it
            h = np.diff(0.5 * np.log(ac / (1.0 - ac)))
        out[1:-1] = h[1:] / (2.0 * h[:-1])
    return out


def guided(denoise_cond: DenoiseFn, denoise_uncond: DenoiseFn, scale: float, rescale: float = 0.0) -> DenoiseFn:
    """Classifier-free guidance, uncond + scale (cond - uncond) (arXiv:2207.12598).

    At one x_t the three prediction types are affine in each other, so the guided result is the same for all of them.
    `scale` is a Python float; 1 is the conditional network itself and 0 the unconditional one, without the cost of the
    other. `rescale` in [0, 1] is how much of the guided prediction is brought back to the standard deviation of the
    conditional one, an element at a time (arXiv:2305.08891, equations 15 and 16, there 0.7).
    """
    if scale == 1.0:
        return denoise_cond
    if scale == 0.0:
        return denoise_uncond
    return lambda x_t, t: _extrapolate(denoise_cond(x_t, t), denoise_uncond(x_t, t), scale, rescale)


def guided_batched(denoise_both: DenoiseFn, scale: float, rescale: float = 0.0) -> DenoiseFn:
    """`guided` with both evaluations in one batch of 2B.

    Args:
      denoise_both: takes x_t [2B, ...] and t [2B], with the conditions in the first B and none in the last B.
      scale: guidance scale; 1 and 0 cost the full 2B here, `guided` is the better choice for them.
      rescale: as for `guided`.
    """

    def denoise(x_t, t):
        both = denoise_both(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))  # [2B, ...]
        cond, uncond = jnp.split(both, 2)  # [B, ...] each
        return _extrapolate(cond, uncond, scale, rescale)

    return denoise


def _extrapolate(cond: jax.Array, uncond: jax.Array, scale: float, rescale: float) -> jax.Array:
    cond, uncond = jnp.asarray(cond, jnp.float32), jnp.asarray(uncond, jnp.float32)
    out = uncond + scale * (cond - uncond)
    if not rescale:
        return out
    axes = tuple(range(1, cond.ndim))
    ratio = jnp.std(cond, axes, keepdims=True) / jnp.maximum(jnp.std(out, axes, keepdims=True), 1e-8)
    return (rescale * ratio + (1.0 - rescale)) * out


def _thresholded(x0: jax.Array, fraction: float) -> jax.Array:
    """`sample`'s threshold."""
    bound = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), fraction, axis=1)  # [B]
    bound = jnp.maximum(bound, 1.0).reshape(-1, *[1] * (x0.ndim - 1))
    return jnp.clip(x0, -bound, bound)


def _normal(keys: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise, float32 [B, *shape], element b from `fold_in(keys[b], index)`."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32))(keys)


def _trailing(num_timesteps: int, steps: int) -> np.ndarray:
    return np.round(num_timesteps - np.arange(steps) * num_timesteps / steps) - 1


def _leading(num_timesteps: int, steps: int) -> np.ndarray:
    return np.arange(steps)[::-1] * (num_timesteps // steps)


def _linspace(num_timesteps: int, steps: int) -> np.ndarray:
    return np.round(np.linspace(num_timesteps - 1, 0, steps))


def _ddpm(ac_t: np.ndarray, ac_s: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    del eta  # Checked to be 0.
    c_x0, c_x_t, variance = gaussian.posterior_coefficients(ac_t, ac_s)
    return c_x0, c_x_t, np.sqrt(variance)


def _ddim(ac_t: np.ndarray, ac_s: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    c_noise = eta * np.sqrt((1.0 - ac_s) / (1.0 - ac_t) * (1.0 - ac_t / ac_s))
    c_eps = np.sqrt(np.maximum(1.0 - ac_s - np.square(c_noise), 0.0))  # Rounding may go below 0 where ac_t is 0.
    c_x_t = c_eps / np.sqrt(1.0 - ac_t)
    return np.sqrt(ac_s) - c_x_t * np.sqrt(ac_t), c_x_t, c_noise


_METHODS = {"ddpm": _ddpm, "ddim": _ddim, "euler": _ddim, "dpmpp_2m": _ddim}

_SPACINGS = {"trailing": _trailing, "leading": _leading, "linspace": _linspace}
