"""Training the MTD denoiser (NUWA-XL, section 3.2), and the image denoiser that it starts from; see `tasks`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.diffusion import losses
from nuwaxl_jax.training import draws
from nuwaxl_jax.training import latents
from nuwaxl_jax.training import metrics

Batch = dict[str, jax.Array]
Loss = tuple[jax.Array, dict[str, metrics.Average]]


def _clip_times(keys: jax.Array, count: int, num_timesteps: int) -> jax.Array:
    """Timesteps int32 [B, count]: uniform each, and evenly spread over the `count` of one key (stratified)."""
    place = (draws.uniform(keys)[:, None] + jnp.arange(count) / count) % 1.0
    return jnp.minimum((place * num_timesteps).astype(jnp.int32), num_timesteps - 1)


def fields_of(cached: tuple[str, ...], handover: str = "latent") -> tuple[str, ...]:
    """What a denoiser reads of a batch, its level apart.

    cached: 'latents': the posterior's moments, float [B, L, h, w, 2 c], take the place of the frames; with the handover
    by pixels also `masked`, [B, 2, L, h, w, 2 c], those of the videos of `latents.border_masks`. 'text': states
    [B, L, N, D] beside the tokens.
    """
    pictures = ("moments", *(("masked",) if handover == "pixel" else ())) if "latents" in cached else ("frames",)
    return (*pictures, "tokens", *(("text",) if "text" in cached else ()))


def _text(
    networks: networks_lib.Networks,
    cached: tuple[str, ...],
    params: Any,
    batch: Batch,
    dropped: jax.Array,
    shared: jax.Array | None = None,
) -> jax.Array:
    """States [B, L, N, D]; where `dropped` (bool [B, L] or [B, 1]) those of the empty prompt.

    shared: bool [B], clips of which every frame has the first one's prompt.
    """
    null = jnp.asarray(networks.null_tokens(), batch["tokens"].dtype)
    name = "text" if "text" in cached else "tokens"
    prompts = batch[name]  # [B, L, N] or [B, L, N, D]
    if shared is not None:
        prompts = jnp.where(shared.reshape(-1, *[1] * (prompts.ndim - 1)), prompts[:, :1], prompts)
    if name == "tokens":
        return networks.text_states(params["text"], jnp.where(dropped[..., None], null, prompts))
    return jnp.where(dropped[..., None, None], networks.text_states(params["text"], null), prompts)


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
      cached: what the batch brings ready made, see `fields_of`.
    """

    networks: networks_lib.Networks
    weighting: str = "uniform"
    min_snr_gamma: float = 5.0
    caption_dropout: float = 0.0
    cached: tuple[str, ...] = ()
    stage: str = "image_denoiser"
    no_decay: str = r"temporal|injection|cond_down"
    new_layers: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """What `loss` reads of a batch."""
        return fields_of(self.cached)

    def init(self, key: jax.Array) -> Any:
        """{'unet', 'text'}."""
        return self.networks.init_denoiser(key)

    def loss(self, params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> Loss:
        """batch: frames uint8 [B, l, H, W, 3], tokens int32 [B, l, N]. Metric: mse, without the weight w(t)."""
        encode_keys, caption_keys, time_keys, noise_keys = draws.split(keys, 4)
        size, count = batch["tokens"].shape[:2]
        diffusion = self.networks.diffusion
        flat = lambda x: x.reshape(size * count, *x.shape[2:])  # noqa: E731
        if "latents" in self.cached:
            moments = flat(batch["moments"])[:, None]  # [N, 1, h, w, 2 c]
        else:
            images = flat(networks_lib.to_float(batch["frames"]))[:, None]  # clips of one frame
            moments = latents.moments(self.networks, frozen, images)
        shape = (count, *self.networks.latent_shape)
        x0 = latents.sample(frozen, moments, draws.normal(encode_keys, shape))[:, 0]  # [N, h, w, c]
        dropped = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(caption_keys) < self.caption_dropout
        t = jnp.ravel(_clip_times(time_keys, count, diffusion.num_timesteps))
        eps = draws.normal(noise_keys, shape).reshape(x0.shape)
        text = flat(_text(self.networks, self.cached, params, batch, dropped))
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
    probability `unconditional_prob` none, and with `first_only_prob` the first alone, or 1 to `first_frames` first ones
    (both ours: the tree may start at any level, and the sliding-window baseline runs on the same weights).

    Attributes:
      networks: of `networks.build`.
      depth: levels, for the metrics.
      handover: 'latent': cond = x0 at given frames (ours); 'pixel': the encoding of the masked video (the paper).
      loss_on_given: the paper's loss covers given frames too; False leaves them out.
      weighting: of `losses.denoising_loss`.
      min_snr_gamma: of 'min_snr'.
      caption_dropout: share of clips trained with the empty prompt.
      unconditional_prob: see above.
      first_only_prob, first_frames: see above.
      time_shift: of `draws.timesteps`; 1.0 is uniform.
      cond_noise: standard deviation of noise on the condition's given frames, in latents of unit variance.
      per_frame: False gives every frame of a clip of level 1 and on the first frame's prompt.
      cached: what the batch brings ready made, see `fields_of`.
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
    first_frames: int = 1
    time_shift: float = 1.0
    cond_noise: float = 0.0
    per_frame: bool = True
    cached: tuple[str, ...] = ()
    stage: str = "denoiser"
    no_decay: str = ""
    new_layers: str = r"temporal|injection|cond_down|level_embedding"

    def __post_init__(self):
        if self.handover not in ("latent", "pixel"):
            raise ValueError(f"hierarchy.handover is {self.handover!r}; choose 'latent' or 'pixel'.")

    @property
    def fields(self) -> tuple[str, ...]:
        """What `loss` reads of a batch."""
        return (*fields_of(self.cached, self.handover), "level")

    def init(self, key: jax.Array) -> Any:
        """{'unet', 'text'}."""
        return self.networks.init_denoiser(key)

    def encode(self, frozen: Any, moments: jax.Array, keys: jax.Array) -> jax.Array:
        """Moments [B, L, h, w, 2 c] to a scaled posterior sample [B, L, h, w, c]; no gradient."""
        return latents.sample(frozen, moments, draws.normal(keys, (moments.shape[1], *self.networks.latent_shape)))

    def given_frames(self, level: jax.Array, length: int, keys: jax.Array) -> jax.Array:
        """1.0 where a frame is given, float32 [B, L]."""
        if self.first_frames > 1:
            keys, number_keys = draws.split(keys, 2)
        draw = draws.uniform(keys)
        first = (level > 0) & (draw >= self.unconditional_prob)  # [B]
        last = first & (draw >= self.unconditional_prob + self.first_only_prob)
        index = jnp.arange(length)
        number = 1
        if self.first_frames > 1:
            more = jax.vmap(lambda key: jax.random.randint(key, (), 1, self.first_frames + 1))(number_keys)
            number = jnp.where(last, 1, more)[:, None]
        given = (first[:, None] & (index < number)) | (last[:, None] & (index == length - 1))
        return given.astype(jnp.float32)

    def condition(
        self, frozen: Any, batch: Batch, x0: jax.Array, given: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(cond [B, L, h, w, c], mask [B, L, 1, 1, 1]) for the frames given [B, L]."""
        encode_keys, noise_keys = draws.split(keys, 2)
        mask = given[:, :, None, None, None]
        if self.handover == "latent":
            cond = mask * x0
        else:
            cond = self.encode(frozen, self._masked_moments(frozen, batch, given), encode_keys)
        if self.cond_noise > 0:
            cond = cond + mask * self.cond_noise * draws.normal(noise_keys, x0.shape[1:])
        return cond, mask

    def _masked_moments(self, frozen: Any, batch: Batch, given: jax.Array) -> jax.Array:
        """The encoding of the masked video, [B, L, h, w, 2 c]."""
        if "latents" not in self.cached:
            video = latents.masked(networks_lib.to_float(batch["frames"]), given)
            return latents.moments(self.networks, frozen, video)
        first, both = (given[:, i, None, None, None, None] > 0 for i in (0, -1))
        kept = batch["masked"]  # [B, 2, L, h, w, 2 c]
        return jnp.where(both, kept[:, 1], jnp.where(first, kept[:, 0], frozen["blank"]))

    def text(self, params: Any, batch: Batch, keys: jax.Array) -> jax.Array:
        """States [B, L, N, D] of the prompts, those of whole clips replaced by the empty one's."""
        dropped = draws.uniform(keys)[:, None] < self.caption_dropout
        shared = None if self.per_frame else batch["level"] > 0
        return _text(self.networks, self.cached, params, batch, dropped, shared)

    def loss(self, params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> Loss:
        """batch: frames uint8 [B, L, H, W, 3], tokens int32 [B, L, N], level int32 [B].

        Metrics: mse (without the weight w(t)), mse_level_<k> over the clips of level k.
        """
        encode_keys, given_keys, cond_keys, caption_keys, time_keys, noise_keys = draws.split(keys, 6)
        level = batch["level"]
        diffusion = self.networks.diffusion
        if "latents" in self.cached:
            moments = batch["moments"]
        else:
            moments = latents.moments(self.networks, frozen, networks_lib.to_float(batch["frames"]))
        x0 = self.encode(frozen, moments, encode_keys)  # [B, L, h, w, c]
        given = self.given_frames(level, x0.shape[1], given_keys)  # [B, L]
        cond, mask = self.condition(frozen, batch, x0, given, cond_keys)
        cond_mask = jnp.broadcast_to(mask, (*x0.shape[:-1], 1))
        text = self.text(params, batch, caption_keys)
        t = draws.timesteps(time_keys, diffusion.num_timesteps, self.time_shift)  # [B]
        eps = draws.normal(noise_keys, x0.shape[1:])
        prediction = self.networks.denoise(params, diffusion.q_sample(x0, t, eps), t, text, cond, cond_mask, level)
        weights = None if self.loss_on_given else 1.0 - given
        loss, mse = losses.denoising_loss(
            diffusion, prediction, x0, eps, t, weighting=self.weighting, gamma=self.min_snr_gamma, frame_weights=weights
        )  # [B], [B]
        values = {"mse": metrics.average(mse)}
        for k in range(self.depth):
            values[f"mse_level_{k}"] = metrics.average(mse, level == k)
        return jnp.mean(loss), values
