"""How many parameters each part of a config has, and how many of them no image stage or public weight brings."""

from __future__ import annotations

import math
import re
from typing import Any

from flax import traverse_util
import jax
import ml_collections

from nuwaxl_jax.cost import programs
from nuwaxl_jax.training import tasks

# Part -> (the stage that trains it, where its tree lies in that stage's parameters).
_PARTS = {"T-KLVAE": ("vae", ""), "MTD U-Net": ("denoiser", "unet/"), "text encoder": ("denoiser", "text/")}


def table(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """One {'part', 'networks', 'image', 'new'} a part; built by shape, nothing is allocated.

    Counts are of one network; 'networks' says how many of it there are (one denoiser a level with
    `mtd.weights=per_level`). 'new': layers that learn at the full rate (`tasks.Task.new_layers`), 'image': all others.
    """
    networks = programs.networks_of(config)
    inits = {"vae": networks.init_vae, "denoiser": networks.init_denoiser}
    rows = []
    for part, (stage, place) in _PARTS.items():
        leaves = traverse_util.flatten_dict(jax.eval_shape(inits[stage], jax.random.key(0)), sep="/")
        pattern = tasks.new_layers(config, stage)
        counts = {"image": 0, "new": 0}
        for name, leaf in leaves.items():
            if name.startswith(place):
                counts["new" if re.search(pattern, name) else "image"] += math.prod(leaf.shape)
        several = stage == "denoiser" and config.mtd.weights == "per_level"
        rows.append(dict(part=part, networks=config.hierarchy.depth if several else 1, **counts))
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """The table as lines."""
    lines = [f"{'parameters':<14}{'image part':>15}{'new':>15}{'networks':>10}"]
    lines += [f"{row['part']:<14}{row['image']:>15,}{row['new']:>15,}{row['networks']:>10}" for row in rows]
    return "\n".join(lines)
