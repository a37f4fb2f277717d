"""The denoising loss and its weightings over time.

NUWA-XL minimises the squared error of the predicted noise over all L frames of a segment, the given border frames
included, with the same weight at every timestep (section 3.2):

    loss = w(t) mean ||prediction - target||^2.

For one and the same network error the squared errors of the three prediction types differ by a known factor. With
snr = alpha_t^2 / sigma_t^2, an error in x_0 of size e is

    ||eps error||^2 = snr ||e||^2,   ||v error||^2 = (snr + 1) ||e||^2,

so a weighting that is meant in x_0-space, w_x0(t) ||e||^2, has to be divided by that factor:

    weighting   w_x0(t)            w(t) for x0, eps, v
    min_snr     min(snr, gamma)    min(snr, gamma), min(snr, gamma) / snr, min(snr, gamma) / (snr + 1)
    snr         snr                snr, 1, snr / (snr + 1)

min_snr is Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv:2303.09556), gamma = 5.
'uniform', the paper's, is w(t) = 1 for every prediction type.

Under zero terminal SNR both SNR weightings vanish at the last timestep, the one that sampling starts from, and nearly
do so in the steps before it: these are then trained by what they share with the others alone. 'uniform' on v, which is
w_x0(t) = snr + 1, keeps them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nuwaxl_jax.diffusion import gaussian


def loss_weights(diffusion: gaussian.GaussianDiffusion, weighting: str, gamma: float = 5.0) -> np.ndarray:
    """The weight w(t) of the squared error on the prediction target, float64 [T].

    Args:
      diffusion: the process; its prediction type decides the factor.
      weighting: 'uniform', 'min_snr' or 'snr'.
      gamma: the bound of 'min_snr', positive; the others ignore it.

    Raises:
      ValueError: an unknown weighting, or a gamma that is not positive.
    """
    if weighting not in _WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} is unknown; choose one of {sorted(_WEIGHTINGS)}.")
    if gamma <= 0:
        raise ValueError(f"min_snr_gamma is {gamma}; it must be positive (usual: 5).")
    snr = diffusion.snr_table
    return _WEIGHTINGS[weighting](snr, _ERROR_FACTORS[diffusion.prediction](snr), gamma)


def denoising_loss(
    diffusion: gaussian.GaussianDiffusion,
    prediction: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    t: jax.Array,
    *,
    weighting: str = "uniform",
    gamma: float = 5.0,
    frame_weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Squared error of the prediction, a batch element at a time, in float32 whatever the input types.

    Args:
      diffusion: the process; says what `prediction` is.
      prediction: the network's output [B, L, ...].
      x0: the clean latents [B, L, ...].
      eps: the noise that made x_t [B, L, ...].
      t: int32 [B].
      weighting: 'uniform' (the paper's), 'min_snr' or 'snr'.
      gamma: the bound of 'min_snr'.
      frame_weights: [B, L], not negative: the loss of an element is the weighted mean over its frames. Pass
        1 - given to leave given frames out (the paper keeps them: None). An element with no weight at all has loss 0.

    Returns:
      (per_example, mse), float32 [B] each: with and without the weight w(t). Their mean over the batch is the loss.

    Raises:
      ValueError: shapes that do not match, or as `loss_weights`.
    """
    if not prediction.shape == x0.shape == eps.shape:
        raise ValueError(
            f"prediction {prediction.shape}, x0 {x0.shape} and eps {eps.shape} must have one shape [B, L, ...]."
        )
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t has shape {t.shape}; it must be [B] = {x0.shape[:1]}.")
    target = diffusion.target(x0, eps, t)
    error = jnp.square(jnp.asarray(prediction, jnp.float32) - target)
    if frame_weights is None:
        mse = jnp.mean(error, axis=tuple(range(1, error.ndim)))  # [B]
    else:
        if frame_weights.shape != x0.shape[:2]:
            raise ValueError(f"frame_weights has shape {frame_weights.shape}; it must be [B, L] = {x0.shape[:2]}.")
        frame_weights = jnp.asarray(frame_weights, jnp.float32)
        per_frame = jnp.mean(error, axis=tuple(range(2, error.ndim)))  # [B, L]
        total = jnp.sum(frame_weights, axis=1)  # [B]
        mse = jnp.sum(frame_weights * per_frame, axis=1) / jnp.where(total > 0, total, 1.0)
    weights = jnp.asarray(loss_weights(diffusion, weighting, gamma), jnp.float32)
    return jnp.take(weights, t, mode="fill", fill_value=jnp.nan) * mse, mse


# The squared error of each prediction type per squared error in x0.
_ERROR_FACTORS = {
    "x0": np.ones_like,
    "eps": lambda snr: snr,
    "v": lambda snr: snr + 1.0,
}

# w(t) as a function of (snr, error factor, gamma).
_WEIGHTINGS = {
    "uniform": lambda snr, factor, gamma: np.ones_like(snr),
    "min_snr": lambda snr, factor, gamma: np.minimum(snr, gamma) / factor,
    "snr": lambda snr, factor, gamma: snr / factor,
}
