"""The first parameters of a run that starts from a weight file (train.init_from): imported, or exported from a run.

Arrays that the file lacks (the layers that another config adds) are at their initialisation, and named.
"""

from typing import Any

import jax
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax import weights
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import tasks


def vae_of(config: ml_collections.ConfigDict) -> Any:
    """The file's T-KLVAE, completed."""
    networks = networks_lib.build(config)
    bundle, _, _ = weights.load(config.train.init_from, only=("vae/",))
    return _completed(networks.init_vae, bundle["vae"], config, "vae")


def latent_stats_of(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """The file's {'latent_shift', 'latent_scale'}, float32 [c]."""
    bundle, _, _ = weights.load(config.train.init_from, only=("latent_",))
    return {name: bundle[name] for name in ("latent_shift", "latent_scale")}


def params_of(config: ml_collections.ConfigDict, stage: str, section: str) -> Any:
    """The parameters that `stage` (of config.train.<section>) starts from.

    Raises:
      ValueError: an array of the file has another shape than the config's.
    """
    metrics.say(f"{stage}: starts from {config.train.init_from}")
    if section in ("image_vae", "vae"):
        return vae_of(config)
    bundle, _, _ = weights.load(config.train.init_from, only=("denoisers/",))
    level = int(stage.removeprefix("denoiser_")) if stage.startswith("denoiser_") else 0
    tree = bundle["denoisers"][min(level, len(bundle["denoisers"]) - 1)]
    return _completed(tasks.build(config, stage).init, tree, config, stage)


def _completed(init: Any, tree: Any, config: ml_collections.ConfigDict, stage: str) -> Any:
    """`init`'s tree with `tree`'s arrays where it has them."""
    key = jax.random.key(config.seed)
    wanted = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, key))
    shapes = {partitioning.path_name(path): leaf.shape for path, leaf in wanted}
    stored = {partitioning.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for name, shape in shapes.items():
        if name in stored and stored[name].shape != shape:
            problem = f"{name} has shape {stored[name].shape}, this config makes {shape}"
            raise ValueError(f"train.init_from: {problem}; use the config that the weights carry")
    left = [name for name in stored if name not in shapes]
    new = [name for name in shapes if name not in stored]
    for names, what in ((new, "are not in the file and start new"), (left, "of the file have no place and are left")):
        if names:
            metrics.say(f"{stage}: {len(names)} arrays {what}: {', '.join(names[:4])}{' ..' if names[4:] else ''}")

    def rest(key):
        made = jax.tree_util.tree_leaves_with_path(init(key))
        return {partitioning.path_name(path): leaf for path, leaf in made if partitioning.path_name(path) in new}

    arrays = stored | (jax.device_get(jax.jit(rest)(key)) if new else {})
    structure = jax.tree.structure(jax.eval_shape(init, key))
    return jax.tree.unflatten(structure, [arrays[name] for name in shapes])
