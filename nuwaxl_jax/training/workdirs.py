"""The folder of a run: where its stages keep their checkpoints, and the config that it belongs to.

<workdir>/config.json                 the resolved config
<workdir>/<stage>/checkpoints/<step>/ see `step_folders`
"""

import glob
import json
import os
from typing import Any

import jax

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax.training import metrics

CONFIG_FILE = "config.json"
_FOLDER = "checkpoints"


def stage_directory(workdir: str, stage: str) -> str:
    """Where the checkpoints of a stage lie."""
    return os.path.join(os.path.abspath(workdir), stage, _FOLDER)


def stages(workdir: str) -> list[str]:
    """The stages that have checkpoints or had some, by the age of their folders; creates nothing."""
    if not os.path.isdir(workdir):
        return []
    with os.scandir(workdir) as entries:
        found = [entry.name for entry in entries if os.path.isdir(stage_directory(workdir, entry.name))]
    return sorted(found, key=lambda stage: os.stat(stage_directory(workdir, stage)).st_mtime)


# Fields that may differ from those the workdir was made with: they change how long, how often, how fast, where or in
# how much memory, or concern sampling alone.
_FREE_FIELDS = ("num_steps", "log_every", "eval_every", "sample_every", "checkpoint_every", "max_skipped")
_FREE_FIELDS += ("keep", "keep_every", "keep_hours", "keep_best", "best_metric")
_FREE_PREFIXES = (
    "name",
    "train.stages",
    "mesh.",
    "sampler.",
    "vae.lpips_weights",
    "vae.remat",
    "unet.remat",
    "text.vocabulary",
    "train.init_from",
    "eval.",
    "data.cache",
    "data.max_bad",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch",
    "data.num_eval_episodes",
    "hierarchy.chunk",
    "hierarchy.microbatch",
    "hierarchy.overlap",
    "hierarchy.strategy",
)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def _is_free(name: str, values: dict[str, Any]) -> bool:
    if name.endswith(".accumulate"):  # the order of sums alone; but with a discriminator lambda is of each micro-batch
        return not values.get("vae.gan_weight") or name.split(".")[1] not in config_lib.VAE_STAGES
    return name.rsplit(".", 1)[-1] in _FREE_FIELDS or name.startswith(_FREE_PREFIXES)


def _has_trained(workdir: str) -> bool:
    """Whether any stage has written anything to go on from; else a config that was mistaken may be mended."""
    return any(glob.iglob(os.path.join(glob.escape(os.path.abspath(workdir)), "*", "checkpoints", "*")))


def claim_workdir(workdir: str, config_json: str) -> None:
    """Writes <workdir>/config.json, unless the one there is of another experiment that has begun to train.

    Args:
      workdir: made where it does not exist.
      config_json: the resolved config as JSON.

    Raises:
      ValueError: listing each field that differs, those of cadence, length, speed and memory apart.
    """
    path = os.path.join(os.path.abspath(workdir), CONFIG_FILE)
    given = json.loads(config_json)
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as file:
                saved = json.loads(text := file.read())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); restore it, or choose a new workdir.") from error
        new = _flat(given)
        # A field younger than the workdir has the value that was used before it existed.
        since = {name: value for name, value in _flat(config_lib.completed(text)).items() if name in new}
        old = {**since, **_flat(saved)}
        missing = "(absent)"
        wrong = [
            f"{name} {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
            for name in sorted({*old, *new})
            if old.get(name, missing) != new.get(name, missing) and not _is_free(name, new)
        ]
        if wrong and _has_trained(workdir):
            raise ValueError(
                f"{workdir} was made with another config: " + "; ".join(wrong) + "; use those values or a new workdir."
            )
        if saved == given:
            return
    if jax.process_index() == 0:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_json(path, given)
        metrics.say(f"config: {path}")
