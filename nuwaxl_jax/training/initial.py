"""The first parameters of a run that starts from a weight file (train.init_from): imported, or exported from a run.

Arrays that the file lacks (the layers that another config adds) are at their initialisation, and named.
"""

from typing import Any, Callable

from flax import traverse_util
import jax
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
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


def has(config: ml_collections.ConfigDict, section: str) -> bool:
    """Whether the file holds what a stage of that part of config.train trains; some hold a VAE alone."""
    if section in ("image_vae", "vae"):
        return True
    return bool(weights.load(config.train.init_from, only=("latent_", "denoisers/0/"))[0]["denoisers"])


def params_of(config: ml_collections.ConfigDict, stage: str, section: str, level: int = 0) -> Any:
    """The parameters that `stage` (of config.train.<section>; `level`: whose denoiser) starts from.

    None where the file has a VAE alone and the stage trains a denoiser.

    Raises:
      ValueError: an array of the file has another shape than the config's.
    """
    if not has(config, section):
        return None
    metrics.say(f"{stage}: starts from {config.train.init_from}")
    if section in ("image_vae", "vae"):
        return vae_of(config)
    bundle, _, _ = weights.load(config.train.init_from, only=("denoisers/",))
    tree = bundle["denoisers"][min(level, len(bundle["denoisers"]) - 1)]
    return _completed(tasks.build(config, stage).init, tree, config, stage)


def _completed(init: Callable[[jax.Array], Any], tree: Any, config: ml_collections.ConfigDict, stage: str) -> Any:
    """`init`'s tree with `tree`'s arrays where it has them."""
    key = jax.random.key(config.seed)
    wanted = traverse_util.flatten_dict(jax.eval_shape(init, key), sep="/")
    stored = traverse_util.flatten_dict(tree, sep="/")
    for name, leaf in wanted.items():
        if name in stored and stored[name].shape != leaf.shape:
            problem = f"{name} has shape {stored[name].shape}, this config makes {leaf.shape}"
            raise ValueError(f"train.init_from: {problem}; use the config that the weights carry")
    left = [name for name in stored if name not in wanted]
    new = [name for name in wanted if name not in stored]
    for names, what in ((new, "are not in the file and start new"), (left, "of the file have no place and are left")):
        if names:
            metrics.say(f"{stage}: {len(names)} arrays {what}: {', '.join(names[:4])}{' ..' if names[4:] else ''}")
    arrays = stored | (networks_lib.new_arrays(init, key, stored) if new else {})
    return traverse_util.unflatten_dict({name: arrays[name] for name in wanted}, sep="/")
