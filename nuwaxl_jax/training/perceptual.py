"""Which LPIPS a run trains with: the file, its hash, and the label of a run that goes on without.

A run that asks for LPIPS (vae.perceptual_weight above 0) and names no weights trains without it. It says so once on
stderr, and `vae.lpips_sha256` becomes "none" in its config: so in <workdir>/config.json, in every checkpoint and in
exported weights, whose card has `lpips` too. Each line of its metrics holds `lpips_none`. With weights the field
becomes their hash. So nobody takes a run of one kind for the other, and none is resumed as the other.

The file is made from the `lpips` package, once:

    safetensors.torch.save_model(lpips.LPIPS(net="vgg"), "lpips_vgg.safetensors")
"""

from __future__ import annotations

import json
import os
from typing import Any

import ml_collections

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.importing import tensors
from nuwaxl_jax.models import lpips
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import metrics

NONE = config_lib.LPIPS_NONE


def _read(path: str) -> tuple[dict[str, Any], str]:
    """(the parameters of `lpips.LPIPS` in the file, its SHA-256).

    Raises:
      ConfigError: no such file, a pickle, a damaged file, or other tensors.
    """
    if not os.path.isfile(path):
        raise config_lib.ConfigError(
            f"config.vae.lpips_weights: {path} does not exist; give a .safetensors file of the state of "
            "lpips.LPIPS(net='vgg'), or leave it empty to train without"
        )
    try:
        opened = tensors.Tensors(path)
        return lpips.params_of(opened), opened.digest()[os.path.basename(path)]
    except ValueError as error:  # WeightsError is one
        raise config_lib.ConfigError(f"config.vae.lpips_weights: {error}") from error


def _saved(workdir: str) -> str:
    """The label in the workdir's config, '' without one."""
    try:
        with open(os.path.join(workdir, checkpoint.CONFIG_FILE), encoding="utf-8") as file:
            return json.load(file)["vae"]["lpips_sha256"]
    except (OSError, ValueError, KeyError):
        return ""


def resolve(config: ml_collections.ConfigDict, workdir: str) -> ml_collections.ConfigDict:
    """`config` with vae.lpips_sha256 as found; itself where no LPIPS is asked for. Says so where it is missing.

    Where no VAE is left to train the weights are not needed, and the label is the one the workdir has.

    Raises:
      ConfigError: a file that cannot be used, or whose hash is not the config's.
    """
    vae = config.vae
    if vae.perceptual_weight == 0:
        return config
    if not any(
        (checkpoint.latest_step(workdir, stage) or 0) < config.train[stage].num_steps
        for stage in config_lib.VAE_STAGES
        if stage in config.train.stages
    ):
        return _labelled(config, vae.lpips_sha256 or _saved(workdir))
    found = _read(vae.lpips_weights)[1] if vae.lpips_weights else NONE
    if vae.lpips_sha256 not in ("", found):
        what = f"{vae.lpips_weights} has {found}" if vae.lpips_weights else "vae.lpips_weights is empty"
        raise config_lib.ConfigError(
            f"config.vae.lpips_sha256: asks for {vae.lpips_sha256}, and {what}; give the file with that hash, or "
            "clear the field"
        )
    if found == NONE:
        metrics.warn(
            f"lpips: none. vae.perceptual_weight is {vae.perceptual_weight} but vae.lpips_weights is empty: the VAE "
            f"trains without LPIPS, and the run is labelled vae.lpips_sha256 = {NONE!r}"
        )
    return _labelled(config, found)


def _labelled(config: ml_collections.ConfigDict, found: str) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.vae.lpips_sha256 = found
    return config


def frozen(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """{'lpips': parameters} for a VAE's loss, {} where it has none."""
    vae = config.vae
    return {"lpips": _read(vae.lpips_weights)[0]} if vae.perceptual_weight > 0 and vae.lpips_weights else {}


def label(config: ml_collections.ConfigDict) -> dict[str, str]:
    """For the card of a run's weights: {'lpips': hash or 'none'}, {} where its VAE never asked for LPIPS."""
    vae = config.vae
    return {"lpips": vae.lpips_sha256} if vae.perceptual_weight > 0 and vae.lpips_sha256 else {}
