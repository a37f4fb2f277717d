"""What a stage would refuse when it starts, asked of all before the first is trained: hours may lie between."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh
import ml_collections

from nuwaxl_jax import partitioning
from nuwaxl_jax.diffusion import losses
from nuwaxl_jax.training import caching
from nuwaxl_jax.training import lineage
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import tasks


def check(config: ml_collections.ConfigDict, workdir: str, stages: Sequence[str], mesh: Mesh) -> None:
    """Computes nothing and writes nothing.

    Args:
      config: validated.
      workdir: of the run.
      stages: those that are to be trained, in their order.
      mesh: of all devices.

    Raises:
      ValueError: one line that names the field. A mesh whose processes would share rows of a batch, or that does not
        divide one; a VAE that a trained denoiser rests on; a learning rate or a loss that cannot be made; a pattern of
        what learns that is in no path; videos too short for a level of the tree.
    """
    partitioning.check_rows_of_processes(partitioning.processes_of(mesh))
    lineage.check_latents_stay(config, workdir, stages)
    for stage in stages:
        _check_stage(config, stage, mesh)
    caching.look_ahead(config, stages[1:])  # the first one's iterator asks at once


def _check_stage(config: ml_collections.ConfigDict, stage: str, mesh: Mesh) -> None:
    section = lineage.section_of(stage)
    settings, task = config.train[section], tasks.build(config, stage)
    micro = settings.batch_size // settings.accumulate
    partitioning.batch_size_divides(mesh, micro, f"train.{section}.batch_size / accumulate")
    params = jax.eval_shape(task.init, jax.random.key(0)) if settings.trainable else None
    part = f"train.{section}"
    try:
        optim.make_schedule(**optim.curve(settings))
        if settings.trainable:
            optim.learns(params, optim.learning_pattern(settings.trainable, task.new_layers))
        part = "diffusion"
        if section in ("image_denoiser", "denoiser"):
            losses.loss_weights(task.networks.diffusion, task.weighting, task.min_snr_gamma)
    except ValueError as error:  # they know the field's name alone
        raise ValueError(f"{part}.{error}") from error
