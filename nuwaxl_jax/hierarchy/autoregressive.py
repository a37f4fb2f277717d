"""Generation by a sliding window: the strategies that diffusion over diffusion is compared with (`strategies`).

The networks of the finest level (stride 1) make the same F frames window after window; `hierarchy_2` makes keyframes
so, and then the gaps between them as a tree does. The last `overlap`
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
    plans: plan_lib.LevelPlan | Sequence[plan_lib.LevelPlan],
    key: jax.Array,
    prompt_index: np.ndarray,
    latent_shape: Sequence[int],
    *,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 0,
    microbatch: int | Sequence[int] = 1,
    handover: program.Handover | None = None,
    compiled: generate_lib.Compiled | None = None,
    progress: generate_lib.Progress | None = None,
    frames: frames_lib.FrameLatents | None = None,
) -> generate_lib.GenerateResult:
    """Makes V videos of F frames, window by window; levels whose segments do not wait for one another at once.

    Args:
      plans: from `strategies.plans` for F frames; one, or several.
      chunk: of windows, videos per device call; 0 is all.
      microbatch: videos a device makes at a time, one number or one a plan; more than there are videos per device is
        wasted work.
      compiled: from `compile_ahead` here; one program serves all windows.
      Others as in `generate.generate`; window w of video v has key fold_in(fold_in(fold_in(key, v), 0), w).

    Returns:
      As `generate.generate`; `timings` has one entry for all windows of a plan and `calls` counts them, times the
      chunks of videos.

    Raises:
      ValueError: if an argument does not fit the plan.
      FloatingPointError: if a window is not finite.
    """
    prompt_index = generate_lib.checked_prompts(prompt_index)
    plans = (plans,) if isinstance(plans, plan_lib.LevelPlan) else tuple(plans)
    sizes = (microbatch,) * len(plans) if isinstance(microbatch, int) else tuple(microbatch)
    generate_lib.check_covers(plans[-1], prompt_index.shape[1])
    mesh = program.default_mesh() if mesh is None else mesh
    params = program.place_params(params, mesh)
    frames = frames_lib.FrameLatents(len(prompt_index), plans, latent_shape) if frames is None else frames
    timings = []
    for plan, size in zip(plans, sizes, strict=True):
        ready = (compiled or {}).get(plan.level)
        shared = dict(mesh=mesh, chunk=chunk, microbatch=size, handover=handover, compiled=ready)
        make = _windows if plan.sequential else generate_lib.generate_level
        timings.append(make(sample_segments, params, plan, key, frames, prompt_index, progress=progress, **shared))
    return generate_lib.GenerateResult(frames.array[:, : prompt_index.shape[1]], timings, frames)


def _windows(
    sample_segments: program.SegmentsFn,
    params: Any,
    plan: plan_lib.LevelPlan,
    key: jax.Array,
    frames: frames_lib.FrameLatents,
    prompt_index: np.ndarray,
    *,
    progress: generate_lib.Progress | None,
    **shared: Any,
) -> dict[str, Any]:
    """The windows of a plan, of all videos at once; its entry of `GenerateResult.timings`."""
    to_make = sorted(  # (window, attempt, videos)
        (window, attempt, video[segment == window].tolist())
        for attempt, video, segment in frames.to_make(plan)
        for window in np.unique(segment).tolist()
    )
    timing = generate_lib.empty_timing(plan)
    for window, attempt, videos in to_make:
        chosen = dict(segments=[window], videos=videos, attempt=attempt)
        step = generate_lib.generate_level(sample_segments, params, plan, key, frames, prompt_index, **chosen, **shared)
        for name in ("segments", "calls", "rounds", "seconds", "compile_seconds"):
            step[name] += timing[name]
        timing = step
        if progress is not None:
            progress(plan.level, window + 1, plan.num_segments, timing["seconds"])
    return timing


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
