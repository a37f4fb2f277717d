"""Generation by a sliding window: the strategy that diffusion over diffusion is compared with.

The networks of the finest level (stride 1) make the same F frames window after window. The last `overlap`
frames of a window are given to the next as its first, and the mask says so; the first window has nothing
given. Windows wait for one another, so a call's batch is the videos: 226 frames take 15 calls of 16 frames
with an overlap of 1, where the tree takes 2 rounds.

A finest network that was only trained with both borders given has not seen these masks: training draws
them too with a small probability.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nuwaxl_jax.hierarchy import frames as frames_lib
from nuwaxl_jax.hierarchy import generate as generate_lib
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import program


def generate_autoregressive(
    sample_segments: program.SegmentsFn,
    params: Any,
    plan: plan_lib.LevelPlan,
    key: jax.Array,
    prompt_index: np.ndarray,
    latent_shape: Sequence[int],
    *,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 0,
    microbatch: int = 1,
    handover: program.Handover | None = None,
    compiled: generate_lib.Compiled | None = None,
    progress: generate_lib.Progress | None = None,
    frames: frames_lib.FrameLatents | None = None,
) -> generate_lib.GenerateResult:
    """Makes V videos of F frames, window by window.

    Args:
      plan: from `plan.autoregressive_plan` for F frames.
      chunk: videos per device call; 0 is all.
      microbatch: videos a device makes at a time; more than there are videos per device is wasted work.
      compiled: from `compile_ahead` here; one program serves all windows.
      Others as in `generate.generate`; window w of video v has key fold_in(fold_in(fold_in(key, v), 0), w).

    Returns:
      As `generate.generate`; `timings` has one entry for all windows and `calls` counts them, times the
      chunks of videos.

    Raises:
      ValueError: if an argument does not fit the plan.
      FloatingPointError: if a window is not finite.
    """
    prompt_index = generate_lib.checked_prompts(prompt_index)
    generate_lib.check_covers(plan, prompt_index.shape[1])
    mesh = program.default_mesh() if mesh is None else mesh
    params = program.place_params(params, mesh)
    frames = frames_lib.FrameLatents(len(prompt_index), [plan], latent_shape) if frames is None else frames
    to_make = sorted(  # (window, attempt, videos)
        (window, attempt, video[segment == window].tolist())
        for attempt, video, segment in frames.to_make(plan)
        for window in np.unique(segment).tolist()
    )
    timing = generate_lib.empty_timing(plan)
    for window, attempt, videos in to_make:
        step = generate_lib.generate_level(
            sample_segments,
            params,
            plan,
            key,
            frames,
            prompt_index,
            segments=[window],
            videos=videos,
            attempt=attempt,
            mesh=mesh,
            chunk=chunk,
            microbatch=microbatch,
            handover=handover,
            compiled=(compiled or {}).get(plan.level),
        )
        for name in ("segments", "calls", "rounds", "seconds", "compile_seconds"):
            step[name] += timing[name]
        timing = step
        if progress is not None:
            progress(plan.level, window + 1, plan.num_segments, timing["seconds"])
    return generate_lib.GenerateResult(frames.array[:, : prompt_index.shape[1]], [timing], frames)


def compile_ahead(
    sample_segments: program.SegmentsFn,
    params: Any,
    plan: plan_lib.LevelPlan,
    num_videos: int,
    latent_shape: Sequence[int],
    *,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 0,
    microbatch: int = 1,
    handover: program.Handover | None = None,
    key_impl: Any = None,
) -> dict[int, program.CompiledLevel]:
    """Compiles the windows' program for `generate_autoregressive(compiled=...)`; arguments as there."""
    spec = generate_lib.level_spec(
        sample_segments,
        plan,
        num_videos,
        latent_shape,
        mesh=program.default_mesh() if mesh is None else mesh,
        chunk=chunk,
        microbatch=microbatch,
        handover=handover,
        key_impl=key_impl,
    )
    return {plan.level: program.compile_level(spec, params)}
