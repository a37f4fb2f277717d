"""Parts of the tree alone: levels made by the networks, those above them taken from the truth."""

from __future__ import annotations

from typing import Sequence

import jax
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.hierarchy import frames as frames_lib
from nuwaxl_jax.hierarchy import generate
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import segments
from nuwaxl_jax.hierarchy import story as story_lib


def make_levels(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    truth: np.ndarray,
    captions: Sequence[str],
    key: jax.Array,
    first: int = 0,
    last: int | None = None,
) -> np.ndarray:
    """Levels `first` to `last` (the finest by default) of a video, under the config's sampler.

    Args:
      truth: latents [F, h, w, c]; frames of the level above `first` are taken from it.
      captions: of the F frames.
      key: of the noise.

    Returns:
      Latents [n, h, w, c] of the frames at level `last`'s stride, from frame 0 on.
    """
    tree = config.hierarchy
    plans = plan_lib.make_plan(len(truth), tree.segment_length, tree.depth)
    last = len(plans) - 1 if last is None else last
    prompts, index = story_lib.Story.from_captions(captions).frame_prompts(len(truth))
    made = frames_lib.FrameLatents(1, plans, truth.shape[1:])
    if first > 0:
        given = (made.frame_ids % plans[first - 1].stride == 0) & (made.frame_ids < len(truth))
        made.array[0, given], made.done[0, given] = truth[made.frame_ids[given]], True
    sample = segments.sampler_of(config, networks)
    params = segments.sampling_params(networks, bundle, prompts)
    mesh = partitioning.make_mesh()
    for plan in plans[first : last + 1]:
        generate.generate_level(
            sample, params, plan, key, made, index[None], mesh=mesh, chunk=tree.chunk, microbatch=tree.microbatch
        )
    kept = (made.frame_ids % plans[last].stride == 0) & (made.frame_ids < len(truth))
    return made.array[0, kept]
