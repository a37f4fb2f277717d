"""A trained workdir as the bundle that sampling reads: the moving averages of every stage and the latents' scale."""

from __future__ import annotations

import os
from typing import Any

import ml_collections

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import weights
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import lineage
from nuwaxl_jax.training import perceptual


def is_trained(workdir: str) -> bool:
    """Whether `workdir` holds a checkpoint of a denoiser."""
    path = os.path.join(workdir, checkpoint.CONFIG_FILE)
    return os.path.isfile(path) and any(
        checkpoint.latest_step(workdir, stage) is not None
        for stage in lineage.stages(read_config(workdir))
        if lineage.section_of(stage) == "denoiser"
    )


def read_config(workdir: str) -> ml_collections.ConfigDict:
    """The resolved config that the workdir was trained with; runs no code."""
    path = os.path.join(workdir, checkpoint.CONFIG_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"workdir: {path} does not exist; train there first, or give --weights")
    with open(path, encoding="utf-8") as file:
        return config_lib.from_json(file.read())


def bundle_from_workdir(workdir: str) -> tuple[dict[str, Any], ml_collections.ConfigDict, dict[str, Any]]:
    """(bundle, config, card) of the newest checkpoints.

    The config keeps no places of what they were made with (data.path stays: evaluation reads there); the card has the
    SHA-256 of train.init_from's file, if that is there.

    Raises:
      ValueError, FileNotFoundError, CheckpointError: a stage has no usable checkpoint.
    """
    config = read_config(workdir)
    denoisers = [stage for stage in lineage.stages(config) if lineage.section_of(stage) == "denoiser"]
    if not denoisers:
        problem = f"the run in {workdir} has no denoiser, only {', '.join(lineage.stages(config))}"
        raise ValueError(f"train.stages: {problem}; train one, with train.init_from or in the same run")
    frozen = lineage.frozen_of(config, workdir, denoisers[0])
    bundle = dict(frozen, denoisers=tuple(checkpoint.restore_ema(workdir, stage) for stage in denoisers))
    trained = [*filter(None, [lineage.vae_stage(workdir)]), *denoisers]
    card = {"name": config.name, "steps": {stage: checkpoint.latest_step(workdir, stage) for stage in trained}}
    card |= perceptual.label(config)
    if os.path.isfile(config.train.init_from):
        card["started_from"] = weights.digest(config.train.init_from)
    # Places on this machine say nothing elsewhere; hashes, LPIPS's among them, say which files these were.
    config.vae.lpips_weights = config.train.init_from = config.data.cache = ""
    return bundle, config, card
