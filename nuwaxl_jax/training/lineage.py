"""The stages of a run and what each starts from: first parameters, the VAE and the latents' scale a denoiser sees."""

from collections.abc import Sequence
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import initial
from nuwaxl_jax.training import latents
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import perceptual
from nuwaxl_jax.training import step_folders
from nuwaxl_jax.training import tasks
from nuwaxl_jax.training import workdirs

LATENT_STATS_FILE = "latent_stats.json"
LATENT_STATS_CLIPS = 128
CLOSED = 0.5  # share of a latent channel's variance that is the posterior's own, above which it is spoken of


def stages(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The stages as they are run: with mtd.weights = per_level 'denoiser' is one stage a level."""
    out: list[str] = []
    for stage in config.train.stages:
        if stage == "denoiser" and config.mtd.weights == "per_level":
            out.extend(f"denoiser_{level}" for level in range(config.hierarchy.depth))
        else:
            out.append(stage)
    return tuple(out)


def section_of(stage: str) -> str:
    """The part of config.train that a stage reads."""
    return "denoiser" if stage.startswith("denoiser") else stage


def level_of(stage: str) -> int | None:
    """k of 'denoiser_<k>'; None for a stage of every level."""
    return int(stage.removeprefix("denoiser_")) if stage.startswith("denoiser_") else None


def vae_stage(workdir: str) -> str:
    """The stage whose VAE the denoiser uses: 'vae', 'image_vae' in a run without it, '' where neither was trained."""
    return next((s for s in ("vae", "image_vae") if checkpoint.latest_step(workdir, s) is not None), "")


def vae_of(config: ml_collections.ConfigDict, workdir: str) -> Any:
    """The finished VAE's parameters.

    Raises:
      ValueError: the run has none, and train.init_from is empty.
    """
    stage = vae_stage(workdir)
    if stage:
        return checkpoint.restore_ema(workdir, stage)
    if config.train.init_from:
        return initial.vae_of(config)
    problem = f"the denoiser needs a VAE and {workdir} has none"
    raise ValueError(f"train.stages: {problem}; put 'image_vae' and 'vae' before it, or set train.init_from")


def check_latents_stay(config: ml_collections.ConfigDict, workdir: str, stages: Sequence[str]) -> None:
    """Refuses to train a VAE on under a denoiser that was trained on its latents.

    A VAE that goes back behind a damaged checkpoint is made the same again, so that may be.

    Args:
      config: of the run.
      workdir: of the run.
      stages: those that are to be trained.

    Raises:
      ValueError: naming the field that has to stay.
    """
    denoisers = [s for s in workdirs.stages(workdir) if section_of(s) in ("image_denoiser", "denoiser")]
    denoiser = next((s for s in denoisers if checkpoint.latest_step(workdir, s) is not None), "")
    for stage in config_lib.VAE_STAGES:
        if not denoiser or stage not in stages:
            continue
        directory = checkpoint.stage_directory(workdir, stage)
        damaged = map(step_folders.number, step_folders.set_aside_before(directory))
        have, wanted = max([*step_folders.steps(directory), *damaged], default=0), config.train[stage].num_steps
        if have < wanted:
            field, mend = "train.stages", "leave it out"
            if have:
                field, mend = f"train.{stage}.num_steps", f"set it to {have}"
            raise ValueError(
                f"{field}: {stage} would go from step {have} to {wanted} under {denoiser}, which learnt its latents "
                f"as they are; {mend}, or use a new workdir, with this run's exported weights in train.init_from"
            )


def latent_stats(config: ml_collections.ConfigDict, workdir: str) -> dict[str, np.ndarray]:
    """{'latent_shift', 'latent_scale'}, float32 [c]: mean and 1 / std of each latent channel over training clips.

    With train.init_from they are that file's: its denoiser knows latents at that scale. Else they are measured once,
    over LATENT_STATS_CLIPS clips of the denoiser's own mixture of strides, and kept beside the VAE's checkpoints in
    latent_stats.json.
    """
    if config.train.init_from:
        return initial.latent_stats_of(config)
    stage = vae_stage(workdir)
    path = os.path.join(os.path.abspath(workdir), stage, LATENT_STATS_FILE)
    step = checkpoint.latest_step(workdir, stage)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
        if saved["step"] == step:
            return {name: np.asarray(saved[name], np.float32) for name in ("latent_shift", "latent_scale")}
    vae = vae_of(config, workdir)
    networks = networks_lib.build(config, config.train.denoiser.dtype)
    moments = jax.jit(lambda params, frames: latents.channel_moments(networks, params, frames))
    size = config.train.denoiser.batch_size
    iterator = pipeline.make_iterator(config, "train", "denoiser", seed=config.seed)
    try:
        sums = [moments(vae, next(iterator)["frames"]) for _ in range(max(1, LATENT_STATS_CLIPS // size))]
    finally:
        iterator.close()
    mean, square, noise = (np.mean(np.asarray(x, np.float64), axis=0) for x in zip(*jax.device_get(sums)))
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-12))
    stats = dict(latent_shift=mean.tolist(), latent_scale=(1.0 / deviation).tolist())
    if jax.process_index() == 0:
        files.write_json(path, dict(stats, step=step, clips=len(sums) * size), shared=True)
    metrics.say(f"{stage}: latent mean {np.round(mean, 3).tolist()}, std {np.round(deviation, 3).tolist()}")
    if said := closed_channels(noise / deviation**2):
        metrics.say(f"{stage}: {said}")
    return {name: np.asarray(value, np.float32) for name, value in stats.items()}


def closed_channels(noise: np.ndarray) -> str:
    """A line on the latent channels that say little; '' where there is none.

    Args:
      noise: [c], the posterior's part of each channel's variance.
    """
    closed = [f"{channel} ({100 * share:.0f} %)" for channel, share in enumerate(noise) if share > CLOSED]
    if not closed:
        return ""
    return (
        f"latent channels of {len(noise)} that are mostly the posterior's noise, which tells a denoiser nothing: "
        f"{', '.join(closed)}; a smaller config.vae.kl_weight keeps a VAE's channels open"
    )


def frozen_of(config: ml_collections.ConfigDict, workdir: str, stage: str) -> dict[str, Any]:
    """What a stage's loss reads beside its parameters: a denoiser's, the finished VAE and its latents' scale; a VAE's,
    LPIPS where it trains with it."""
    if section_of(stage) not in ("image_denoiser", "denoiser"):
        return perceptual.frozen(config)
    frozen = dict(vae=vae_of(config, workdir), **latent_stats(config, workdir))
    task = tasks.build(config, stage)
    if "masked" in task.fields:  # the clip of which no frame is given is the same grey for all
        side, length = config.data.frame_size, config.train[section_of(stage)].clip_length
        grey = jnp.zeros((1, length, side, side, 3))
        frozen["blank"] = jax.jit(lambda frozen: latents.moments(task.networks, frozen, grey)[0])(frozen)
    return frozen


def stage_before(workdir: str, stage: str) -> str:
    """The stage whose EMA this one starts from: its image stage, or the level above; '' if it was not trained."""
    level = level_of(stage)
    if level:
        before = f"denoiser_{level - 1}"
    else:
        before = {"vae": "image_vae", "denoiser": "image_denoiser"}.get(section_of(stage), "")
    return before if before and checkpoint.latest_step(workdir, before) is not None else ""


def is_pretrained(config: ml_collections.ConfigDict, workdir: str, stage: str) -> bool:
    """Whether some of the stage's layers were trained before it."""
    if stage_before(workdir, stage):
        return True
    return bool(config.train.init_from) and initial.has(config, section_of(stage))


def first_params(config: ml_collections.ConfigDict, workdir: str, stage: str) -> Any:
    """The EMA of the stage before, else the weights of train.init_from, else None."""
    before = stage_before(workdir, stage)
    if before:
        metrics.say(f"{stage}: starts from the EMA of {before}")
        return checkpoint.restore_ema(workdir, before)
    if config.train.init_from:
        return initial.params_of(config, stage, section_of(stage), level_of(stage) or 0)
    return None


def first_text(config: ml_collections.ConfigDict, workdir: str, stage: str) -> Any:
    """The text encoder of `first_params`. ValueError: nothing has trained one."""
    first = first_params(config, workdir, stage)
    if first is None:
        problem = "leaves the text encoder as it is, and nothing has trained one"
        raise ValueError(f"train.{section_of(stage)}.trainable: {problem}; train it too, or give it in train.init_from")
    return first["text"]
