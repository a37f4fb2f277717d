"""Training the T-KLVAE (NUWA-XL, section 3.1), and the image KL-VAE that it starts from; see `tasks`."""

import dataclasses
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.models import layers
from nuwaxl_jax.models import tklvae
from nuwaxl_jax.training import draws
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import vae_objective

_LAST_LAYER = ("decoder", "conv_out", "spatial", "kernel")

Batch = dict[str, jax.Array]
Loss = tuple[jax.Array, dict[str, metrics.Average]]


@dataclasses.dataclass(frozen=True)
class VAETask:
    """Reconstruction and KL of the (T-)KLVAE.

        loss = mean over pixel values |x - x'| (l1), (x - x')^2 (l2) or their sum  +  kl_weight * mean over latents KL

    with pixels in [-1, 1] and KL in nats a latent element. Latent diffusion sums where this averages (both over an
    image's values); its kl_weight w is w * (latent elements) / (pixel values) here. With an `objective` the first
    term is its loss.

    Attributes:
      networks: of `networks.build`.
      temporal: False trains the image KL-VAE on single frames; the temporal layers wait in the tree, untouched.
      recon: 'l1', 'l2' or 'l1+l2'.
      kl_weight: see above.
      objective: LPIPS, a learned log-variance, a discriminator; None without any of them.
    """

    networks: networks_lib.Networks
    temporal: bool
    recon: str
    kl_weight: float
    objective: vae_objective.VAEObjective | None = None
    stage: str = "vae"
    fields: tuple[str, ...] = ("frames",)
    new_layers: str = r"temporal"

    def __post_init__(self):
        known = sorted(vae_objective.RECONSTRUCTIONS)
        if self.recon not in known:
            raise ValueError(f"vae.loss is {self.recon!r}; choose one of {known}.")

    @property
    def no_decay(self) -> str:
        """Temporal layers have no gradient in image training, and must stay the identity."""
        return "" if self.temporal else r"temporal"

    def init(self, key: jax.Array) -> Any:
        """The whole T-KLVAE's tree, temporal layers included."""
        return self.networks.init_vae(key)

    def loss(self, params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> Loss:
        """batch: frames uint8 [B, l, H, W, 3]. Metrics: recon, kl, psnr (dB of pixels in [-1, 1], mean over clips), and
        those of the objective.

        params: the T-KLVAE's; with an objective that trains, (those, the objective's).
        """
        params, trained = params if self.objective is not None and self.objective.trains else (params, {})
        video = networks_lib.to_float(batch["frames"])  # [B, l, H, W, 3]
        mean, logvar = self.networks.encode(params, video, temporal=self.temporal)
        z = mean + jnp.exp(0.5 * logvar) * draws.normal(keys, mean.shape[1:])
        made = self.networks.decode(params, z, temporal=self.temporal).astype(jnp.float32)
        error = made - video
        if self.objective is None:
            recon = jnp.mean(vae_objective.RECONSTRUCTIONS[self.recon](error))
            values = dict(recon=metrics.average(recon))
        else:
            frames = layers.fold(made), layers.fold(video)  # [B*l, H, W, 3]
            recon, values = self.objective.loss(*frames, trained, frozen, self._last_layer(params, z))
        kl = jnp.mean(tklvae.kl_divergence(mean, logvar))
        mse = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))  # [B]
        psnr = 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))
        values |= dict(kl=metrics.average(kl), psnr=metrics.average(psnr))
        return recon + self.kl_weight * kl, values

    def _last_layer(self, params: Any, z: jax.Array) -> vae_objective.LastLayer:
        """(W -> x' [B*l, H, W, 3], W), all else without gradient; W the decoder's last spatial kernel.

        In videos too, where a temporal convolution follows it [ours].
        """
        params, z = jax.lax.stop_gradient((params, z))
        flat = traverse_util.flatten_dict(params)

        def through(kernel: jax.Array) -> jax.Array:
            changed = traverse_util.unflatten_dict({**flat, _LAST_LAYER: kernel})
            return layers.fold(self.networks.decode(changed, z, temporal=self.temporal).astype(jnp.float32))

        return through, flat.get(_LAST_LAYER)
