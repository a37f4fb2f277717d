"""What differs between training the T-KLVAE (NUWA-XL, section 3.1) and the MTD denoiser (section 3.2).

A task has `stage`, `fields` (what it reads of a batch), `no_decay` (a pattern of paths that weight decay leaves
alone), `new_layers` (a pattern of paths that no stage before it trained), `init(key) -> params` and

    loss(params, frozen, batch, keys) -> (mean loss, dict of metrics.Average)

with one key an example, so that nothing random depends on how a batch is cut. A task may have an `objective` that
trains more than the parameters (`vae_objective`, `steps`).
"""

import re
from typing import Any, Protocol

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.training import denoiser_task
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import vae_objective
from nuwaxl_jax.training import vae_task

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


def new_layers(config: ml_collections.ConfigDict, section: str) -> str:
    """Pattern of the paths of `config.train.<section>` that neither an image stage nor public weights bring."""
    if section == "vae":
        return vae_task.VAETask.new_layers
    if section != "denoiser":
        return ""
    own, on_images = [], config.train.image_denoiser.trainable
    if "image_denoiser" not in config.train.stages:  # Stable Diffusion v1 has no transformer where no prompt goes in
        levels = (k for k, prompt in enumerate(config.unet.prompt_levels) if not prompt)
        own = [rf"(down|up){level}_\d+/transformer" for level in levels]
    elif on_images and not config.train.init_from and not _text_learns(config, on_images):
        own = ["^text/"]  # the image stage has left it as it was made
    return "|".join((denoiser_task.DenoiserTask.new_layers, *own))


def cached(config: ml_collections.ConfigDict, section: str) -> tuple[str, ...]:
    """What config.data.cache keeps for the denoiser of config.train.<section>: latents; the text's states as well where
    the text encoder was trained before and learns no more."""
    if not config.data.cache or section not in ("image_denoiser", "denoiser"):
        return ()
    trained = config.train.init_from or (section == "denoiser" and "image_denoiser" in config.train.stages)
    pattern = optim.learning_pattern(config.train[section].trainable, new_layers(config, section))
    if not trained or not pattern:
        return ("latents",)
    return ("latents",) if _text_learns(config, pattern) else ("latents", "text")


def _text_learns(config: ml_collections.ConfigDict, pattern: str) -> bool:
    """Whether some of the text encoder's paths hold `pattern`."""
    encoder, tokens = networks_lib.build(config).text_encoder, jnp.zeros((1, config.text.max_tokens), jnp.int32)
    text = jax.eval_shape(lambda key: encoder.init(key, tokens)["params"], jax.random.key(0))
    return any(re.search(pattern, "text/" + "/".join(path)) for path in traverse_util.flatten_dict(text))


def build(config: ml_collections.ConfigDict, stage: str) -> Task:
    """The task of a stage: 'image_vae', 'vae', 'image_denoiser', 'denoiser' or 'denoiser_<level>'."""
    section = stage if stage in config.train else "denoiser"
    networks = networks_lib.build(config, config.train[section].dtype)
    if section in ("image_vae", "vae"):
        return vae_task.VAETask(
            networks,
            temporal=section == "vae",
            recon=config.vae.loss,
            kl_weight=config.vae.kl_weight,
            objective=vae_objective.build(config, section),
            stage=stage,
        )
    process = config.diffusion
    if section == "image_denoiser":
        return denoiser_task.ImageDenoiserTask(
            networks,
            weighting=process.weighting,
            min_snr_gamma=process.min_snr_gamma,
            caption_dropout=process.caption_dropout,
            cached=cached(config, section),
        )
    return denoiser_task.DenoiserTask(
        networks,
        depth=config.hierarchy.depth,
        handover=config.hierarchy.handover,
        loss_on_given=process.loss_on_given,
        weighting=process.weighting,
        min_snr_gamma=process.min_snr_gamma,
        caption_dropout=process.caption_dropout,
        unconditional_prob=process.unconditional_prob,
        first_only_prob=process.first_only_prob,
        first_frames=process.first_frames,
        time_shift=process.time_shift,
        cond_noise=process.cond_noise,
        per_frame=config.text.per_frame,
        cached=cached(config, section),
        stage=stage,
        new_layers=new_layers(config, section),
    )
