"""What differs between training the T-KLVAE (NUWA-XL, section 3.1) and the MTD denoiser (section 3.2).

A task has `stage`, `fields` (what it reads of a batch), `no_decay` (a pattern of paths that weight decay leaves
alone), `new_layers` (a pattern of paths that no stage before it trained), `init(key) -> params` and

    loss(params, frozen, batch, keys) -> (mean loss, dict of metrics.Average)

with one key an example, so that nothing random depends on how a batch is cut. A task may have an `objective` that
trains more than the parameters (`vae_objective`, `steps`).
"""

import dataclasses
from typing import Any, Protocol

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.diffusion import losses
from nuwaxl_jax.models import layers
from nuwaxl_jax.models import tklvae
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import vae_objective

_LAST_LAYER = ("decoder", "conv_out", "spatial", "kernel")

Batch = dict[str, jax.Array]
Loss = tuple[jax.Array, dict[str, metrics.Average]]


class Task(Protocol):
    """See the module."""

    stage: str
    fields: tuple[str, ...]
    no_decay: str
    new_layers: str

    def init(self, key: jax.Array) -> Any:
        """New parameters, float32."""

    def loss(self, params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> Loss:
        """The mean loss of the batch, float32, and its metrics."""


def _normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape], each example from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _uniform(keys: jax.Array) -> jax.Array:
    """Uniform in [0, 1), [B]."""
    return jax.vmap(jax.random.uniform)(keys)


def _split(keys: jax.Array, count: int) -> list[jax.Array]:
    """`count` lists of keys [B]."""
    parts = jax.vmap(lambda key: jax.random.split(key, count))(keys)  # [B, count]
    return [parts[:, i] for i in range(count)]


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
        z = mean + jnp.exp(0.5 * logvar) * _normal(keys, mean.shape[1:])
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


def _latents(networks: networks_lib.Networks, frozen: Any, video: jax.Array, noise: jax.Array) -> jax.Array:
    """Pixels [B, L, H, W, 3] to a scaled posterior sample x0 [B, L, h, w, c], given N(0, 1) noise; no gradient.

    Frozen: {'vae': params, 'latent_shift': [c], 'latent_scale': [c]}; x0 = (z - shift) * scale.
    """
    mean, logvar = networks.encode(frozen["vae"], video, temporal=True)
    z = mean + jnp.exp(0.5 * logvar) * noise.reshape(mean.shape)
    return jax.lax.stop_gradient((z - frozen["latent_shift"]) * frozen["latent_scale"])


def _clip_times(keys: jax.Array, count: int, num_timesteps: int) -> jax.Array:
    """Timesteps int32 [B, count]: uniform each, and evenly spread over the `count` of one key (stratified)."""
    place = (_uniform(keys)[:, None] + jnp.arange(count) / count) % 1.0
    return jnp.minimum((place * num_timesteps).astype(jnp.int32), num_timesteps - 1)


@dataclasses.dataclass(frozen=True)
class ImageDenoiserTask:
    """The image part of the denoiser on single frames: what the paper takes from a pre-trained text-to-image model.

    Every frame of a clip is an image of its own, with its own prompt, timestep and noise; a clip's timesteps are spread
    evenly. The T-KLVAE sees each frame as a clip of one frame. Parameters are the whole denoiser's; temporal layers,
    injections and the level embedding have no gradient and stay as they are at initialisation.

    Attributes:
      networks: of `networks.build`.
      weighting, min_snr_gamma: of `losses.denoising_loss`.
      caption_dropout: share of images trained with the empty prompt.
    """

    networks: networks_lib.Networks
    weighting: str = "uniform"
    min_snr_gamma: float = 5.0
    caption_dropout: float = 0.0
    stage: str = "image_denoiser"
    fields: tuple[str, ...] = ("frames", "tokens")
    no_decay: str = r"temporal|injection|cond_down"
    new_layers: str = ""

    def init(self, key: jax.Array) -> Any:
        """{'unet', 'text'}."""
        return self.networks.init_denoiser(key)

    def loss(self, params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> Loss:
        """batch: frames uint8 [B, l, H, W, 3], tokens int32 [B, l, N]. Metric: mse, without the weight w(t)."""
        encode_keys, caption_keys, time_keys, noise_keys = _split(keys, 4)
        size, count = batch["frames"].shape[:2]
        diffusion = self.networks.diffusion
        pixels = networks_lib.to_float(batch["frames"])
        images = pixels.reshape(size * count, 1, *pixels.shape[2:])  # clips of one frame
        shape = (count, *self.networks.latent_shape)
        x0 = _latents(self.networks, frozen, images, _normal(encode_keys, shape))[:, 0]  # [N, h, w, c]
        null = jnp.asarray(self.networks.null_tokens(), batch["tokens"].dtype)
        dropped = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(caption_keys) < self.caption_dropout
        tokens = jnp.where(dropped[..., None], null, batch["tokens"]).reshape(size * count, -1)
        t = jnp.ravel(_clip_times(time_keys, count, diffusion.num_timesteps))
        eps = _normal(noise_keys, shape).reshape(x0.shape)
        text = self.networks.text_states(params["text"], tokens)
        prediction = self.networks.denoise_images(params, diffusion.q_sample(x0, t, eps), t, text)
        loss, mse = losses.denoising_loss(
            diffusion, prediction, x0, eps, t, weighting=self.weighting, gamma=self.min_snr_gamma
        )  # [N], [N]
        return jnp.mean(loss), {"mse": metrics.average(mse)}


@dataclasses.dataclass(frozen=True)
class DenoiserTask:
    """The MTD denoiser, one network for every level (or, with `level`, for one).

    Frozen: {'vae': params, 'latent_shift': [c], 'latent_scale': [c]}; x0 = (z - shift) * scale with z a posterior
    sample of the T-KLVAE. Given frames of a clip: none at level 0; the first and the last at other levels, but with
    probability `unconditional_prob` none, and with `first_only_prob` the first alone (both ours: the tree may start at
    any level, and the sliding-window baseline runs on the same weights).

    Attributes:
      networks: of `networks.build`.
      depth: levels, for the metrics.
      handover: 'latent': cond = x0 at given frames (ours); 'pixel': the encoding of the masked video (the paper).
      loss_on_given: the paper's loss covers given frames too; False leaves them out.
      weighting: of `losses.denoising_loss`.
      min_snr_gamma: of 'min_snr'.
      caption_dropout: share of clips trained with the empty prompt.
      unconditional_prob: see above.
      first_only_prob: see above.
      cond_noise: standard deviation of noise on the condition's given frames, in latents of unit variance.
      per_frame: False gives every frame the first frame's prompt.
    """

    networks: networks_lib.Networks
    depth: int
    handover: str = "latent"
    loss_on_given: bool = True
    weighting: str = "uniform"
    min_snr_gamma: float = 5.0
    caption_dropout: float = 0.0
    unconditional_prob: float = 0.0
    first_only_prob: float = 0.0
    cond_noise: float = 0.0
    per_frame: bool = True
    stage: str = "denoiser"
    fields: tuple[str, ...] = ("frames", "tokens", "level")
    no_decay: str = ""
    new_layers: str = r"temporal|injection|cond_down|level_embedding"

    def __post_init__(self):
        if self.handover not in ("latent", "pixel"):
            raise ValueError(f"hierarchy.handover is {self.handover!r}; choose 'latent' or 'pixel'.")

    def init(self, key: jax.Array) -> Any:
        """{'unet', 'text'}."""
        return self.networks.init_denoiser(key)

    def encode(self, frozen: Any, video: jax.Array, keys: jax.Array) -> jax.Array:
        """Float pixels [B, L, H, W, 3] to a scaled posterior sample [B, L, h, w, c]; no gradient."""
        shape = (video.shape[1], *self.networks.latent_shape)
        return _latents(self.networks, frozen, video, _normal(keys, shape))

    def given_frames(self, level: jax.Array, length: int, keys: jax.Array) -> jax.Array:
        """1.0 where a frame is given, float32 [B, L]."""
        draw = _uniform(keys)
        first = (level > 0) & (draw >= self.unconditional_prob)  # [B]
        last = first & (draw >= self.unconditional_prob + self.first_only_prob)
        index = jnp.arange(length)
        given = (first[:, None] & (index == 0)) | (last[:, None] & (index == length - 1))
        return given.astype(jnp.float32)

    def condition(self, frozen: Any, video: jax.Array, x0: jax.Array, mask: jax.Array, keys: jax.Array) -> jax.Array:
        """cond [B, L, h, w, c] for the mask [B, L, 1, 1, 1]."""
        encode_keys, noise_keys = _split(keys, 2)
        # Masked pixels are grey: 0 in [-1, 1].
        cond = mask * x0 if self.handover == "latent" else self.encode(frozen, video * mask, encode_keys)
        if self.cond_noise > 0:
            cond = cond + mask * self.cond_noise * _normal(noise_keys, x0.shape[1:])
        return cond

    def drop_captions(self, tokens: jax.Array, keys: jax.Array) -> jax.Array:
        """Tokens [B, L, N] with whole clips replaced by the empty prompt."""
        if not self.per_frame:
            tokens = jnp.broadcast_to(tokens[:, :1], tokens.shape)
        null = jnp.asarray(self.networks.null_tokens(), tokens.dtype)
        return jnp.where((_uniform(keys) < self.caption_dropout)[:, None, None], null, tokens)

    def loss(self, params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> Loss:
        """batch: frames uint8 [B, L, H, W, 3], tokens int32 [B, L, N], level int32 [B].

        Metrics: mse (without the weight w(t)), mse_level_<k> over the clips of level k.
        """
        encode_keys, given_keys, cond_keys, caption_keys, time_keys, noise_keys = _split(keys, 6)
        video = networks_lib.to_float(batch["frames"])
        level = batch["level"]
        diffusion = self.networks.diffusion
        x0 = self.encode(frozen, video, encode_keys)  # [B, L, h, w, c]
        given = self.given_frames(level, x0.shape[1], given_keys)  # [B, L]
        mask = given[:, :, None, None, None]
        cond = self.condition(frozen, video, x0, mask, cond_keys)
        cond_mask = jnp.broadcast_to(mask, (*x0.shape[:-1], 1))
        text = self.networks.text_states(params["text"], self.drop_captions(batch["tokens"], caption_keys))
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, diffusion.num_timesteps))(time_keys)  # [B]
        eps = _normal(noise_keys, x0.shape[1:])
        prediction = self.networks.denoise(params, diffusion.q_sample(x0, t, eps), t, text, cond, cond_mask, level)
        weights = None if self.loss_on_given else 1.0 - given
        loss, mse = losses.denoising_loss(
            diffusion, prediction, x0, eps, t, weighting=self.weighting, gamma=self.min_snr_gamma, frame_weights=weights
        )  # [B], [B]
        values = {"mse": metrics.average(mse)}
        for k in range(self.depth):
            values[f"mse_level_{k}"] = metrics.average(mse, level == k)
        return jnp.mean(loss), values


def latent_moments(networks: networks_lib.Networks, vae_params: Any, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per-channel mean and mean square of the latents of one batch, float32 [c] each.

    The posterior's own variance counts: E[z^2] = mean^2 + exp(logvar), so no sample is drawn.
    """
    mean, logvar = networks.encode(vae_params, frames)
    axes = tuple(range(mean.ndim - 1))
    return jnp.mean(mean, axes), jnp.mean(jnp.square(mean) + jnp.exp(logvar), axes)


def new_layers(config: ml_collections.ConfigDict, section: str) -> str:
    """Pattern of the paths of `config.train.<section>` that neither an image stage nor public weights bring."""
    if section == "vae":
        return VAETask.new_layers
    if section != "denoiser":
        return ""
    own = []
    if "image_denoiser" not in config.train.stages:  # Stable Diffusion v1 has no transformer where no prompt goes in
        levels = (k for k, prompt in enumerate(config.unet.prompt_levels) if not prompt)
        own = [rf"(down|up){level}_\d+/transformer" for level in levels]
    return "|".join((DenoiserTask.new_layers, *own))


def build(config: ml_collections.ConfigDict, stage: str) -> Task:
    """The task of a stage: 'image_vae', 'vae', 'image_denoiser', 'denoiser' or 'denoiser_<level>'."""
    section = stage if stage in config.train else "denoiser"
    networks = networks_lib.build(config, config.train[section].dtype)
    if section in ("image_vae", "vae"):
        return VAETask(
            networks,
            temporal=section == "vae",
            recon=config.vae.loss,
            kl_weight=config.vae.kl_weight,
            objective=vae_objective.build(config, section),
            stage=stage,
        )
    process = config.diffusion
    if section == "image_denoiser":
        return ImageDenoiserTask(
            networks,
            weighting=process.weighting,
            min_snr_gamma=process.min_snr_gamma,
            caption_dropout=process.caption_dropout,
        )
    return DenoiserTask(
        networks,
        depth=config.hierarchy.depth,
        handover=config.hierarchy.handover,
        loss_on_given=process.loss_on_given,
        weighting=process.weighting,
        min_snr_gamma=process.min_snr_gamma,
        caption_dropout=process.caption_dropout,
        unconditional_prob=process.unconditional_prob,
        first_only_prob=process.first_only_prob,
        cond_noise=process.cond_noise,
        per_frame=config.text.per_frame,
        stage=stage,
        new_layers=new_layers(config, section),
    )
