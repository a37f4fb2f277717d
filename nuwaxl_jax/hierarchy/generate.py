"""Generation by diffusion over diffusion: one call a level (NUWA-XL, section 3.3).

Level after level, the frames that a level gives to the next are gathered on the host, every segment of
the level is made by one program (`hierarchy.program`) over the mesh, and the new frames are stored. Frames
that were given are never written again, so neighbours share their border frame bit for bit.
"""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nuwaxl_jax.hierarchy import frames as frames_lib
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import program

Progress = Callable[[int, int, int, float], None]  # (level, done segments, all segments, seconds)
Compiled = Mapping[int, program.CompiledLevel | concurrent.futures.Future]  # by LevelPlan.level


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateResult:
    """Finished videos.

    Attributes:
      latents: float32 [V, F, h, w, c], on the host; a view into `frames`.
      timings: one dict a level (or for all windows): `level`, `network_level`, `stride`, `segments` (of all
        videos), `calls` (device calls, one after another), `rounds` (microbatches, one after another),
        `seconds` (without compiling), `compile_seconds` (waited for the program; 0 if it was ready).
      frames: every frame made, also keyframes beyond F - 1: what `generate_level` needs to make a segment again.
    """

    latents: np.ndarray
    timings: list[dict[str, Any]]
    frames: frames_lib.FrameLatents

    @property
    def calls(self) -> int:
        """Device calls made one after another: levels for a tree in whole levels, windows for a sliding window."""
        return sum(timing["calls"] for timing in self.timings)


def generate(
    sample_segments: program.SegmentsFn,
    params: Any,
    plans: Sequence[plan_lib.LevelPlan],
    key: jax.Array,
    prompt_index: np.ndarray,
    latent_shape: Sequence[int],
    *,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 0,
    microbatch: int | Sequence[int] = 1,
    handover: program.Handover | None = None,
    compiled: Compiled | None = None,
    progress: Progress | None = None,
    frames: frames_lib.FrameLatents | None = None,
) -> GenerateResult:
    """Makes V videos of F frames, level by level.

    A segment depends on (key, video, level, segment) and its own inputs alone: `chunk`, the mesh's size and
    the number of videos do not change it by a bit; `microbatch` may, by rounding.

    Args:
      sample_segments: makes segments; see `program.SegmentsFn`.
      params: passed on to it; what a level reads is placed on the mesh for it, if not there yet.
      plans: from `plan.make_plan` for F frames.
      key: typed key.
      prompt_index: int32 [V, F]; each frame's row in the text states of params. Keyframes beyond F - 1 take
        the last frame's.
      latent_shape: (h, w, c).
      mesh: with axes 'data' and 'fsdp' that segments are spread over; None is one device.
      chunk: segments per device call, rounded up to whole microbatches of all devices; 0 makes a level
        in one call. Less bounds memory and gives progress within a level.
      microbatch: segments a device makes at a time; one number, or one for each level. A device always makes
        whole microbatches: a root of one segment costs as much as `microbatch` segments.
      handover: changes given latents before sampling; see `program.LevelSpec`.
      compiled: programs by level, or futures of them, from `compile_ahead`; levels not in it are compiled
        when reached.
      progress: called after each chunk.
      frames: to fill, and what it says is made is not made again; None starts empty.

    Raises:
      ValueError: if an argument does not fit the plans.
      FloatingPointError: if a segment is not finite; names it.
    """
    prompt_index = checked_prompts(prompt_index)
    check_covers(plans[-1], prompt_index.shape[1])
    mesh = program.default_mesh() if mesh is None else mesh
    frames = frames_lib.FrameLatents(len(prompt_index), plans, latent_shape) if frames is None else frames
    timings = [
        generate_level(
            sample_segments,
            params,
            plan,
            key,
            frames,
            prompt_index,
            mesh=mesh,
            chunk=chunk,
            microbatch=size,
            handover=handover,
            compiled=(compiled or {}).get(plan.level),
            progress=progress,
        )
        for plan, size in zip(plans, _microbatches(microbatch, plans))
    ]
    return GenerateResult(frames.array[:, : prompt_index.shape[1]], timings, frames)


def generate_level(
    sample_segments: program.SegmentsFn,
    params: Any,
    plan: plan_lib.LevelPlan,
    key: jax.Array,
    frames: frames_lib.FrameLatents,
    prompt_index: np.ndarray,
    *,
    segments: Sequence[int] | None = None,
    videos: Sequence[int] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 0,
    microbatch: int = 1,
    handover: program.Handover | None = None,
    compiled: program.CompiledLevel | concurrent.futures.Future | None = None,
    progress: Progress | None = None,
    attempt: int = 0,
) -> dict[str, Any]:
    """Makes segments of one level and writes their new frames into `frames`; arguments as in `generate`.

    Args:
      frames: holds the given frames; may hold older latents of the new ones, which are replaced.
      segments: which, in any order; None makes all that `frames.to_make` tells.
      videos: of which videos, in any order; None is all.
      attempt: of these segments, where they are named; see `frames.attempt_key`.

    Returns:
      The level's entry of `GenerateResult.timings`.
    """
    mesh = program.default_mesh() if mesh is None else mesh
    whole = segments is None and videos is None
    groups = frames.to_make(plan) if whole else [(attempt, *_items(plan, frames.num_videos, videos, segments))]
    total = sum(len(video) for _, video, _ in groups)
    prompt_index = checked_prompts(prompt_index, frames.num_videos)
    if not total:
        return empty_timing(plan)
    start = time.perf_counter()
    spec = level_spec(
        sample_segments,
        plan,
        frames.num_videos * plan.num_segments if whole else total,  # one program, however much is left to make
        frames.latent_shape,
        mesh=mesh,
        chunk=chunk,
        microbatch=microbatch,
        handover=handover,
        key_impl=_checked_key_impl(key),
    )
    level_fn = _ready(compiled, spec, params)
    compile_seconds = time.perf_counter() - start
    params = level_fn.place(params)

    start = time.perf_counter()
    chunks = [
        (number, video[i : i + spec.capacity], segment[i : i + spec.capacity])
        for number, video, segment in groups
        for i in range(0, len(video), spec.capacity)
    ]
    pending, finished = None, 0
    for one in [*chunks, None]:
        dispatched = None
        if one is not None:
            number, video, segment = one
            items = _inputs(plan, frames, prompt_index, video, segment)
            dispatched = one, level_fn(params, frames_lib.attempt_key(key, number), plan.level, items)
        if pending is not None:  # fetched while the devices make the next chunk
            (number, video, segment), out = pending
            _store(plan, frames, video, segment, level_fn.fetch(out, len(video)))
            frames.note(plan, video, segment, number)
            finished += len(video)
            if progress is not None:
                progress(plan.level, finished, total, time.perf_counter() - start)
        pending = dispatched
    sizes = [len(video) for _, video, _ in chunks]
    return _timing(plan, total, sizes, spec.batch, time.perf_counter() - start, compile_seconds)


def _timing(
    plan: plan_lib.LevelPlan, segments: int, chunks: list[int], batch: int, seconds: float, compile_seconds: float
) -> dict[str, Any]:
    """An entry of `GenerateResult.timings`."""
    return {
        "level": plan.level,
        "network_level": plan.network_level,
        "stride": plan.stride,
        "segments": segments,
        "calls": len(chunks),
        "rounds": sum(-(-size // batch) for size in chunks),
        "seconds": seconds,
        "compile_seconds": compile_seconds,
    }


def empty_timing(plan: plan_lib.LevelPlan) -> dict[str, Any]:
    """The entry of a level of which nothing is left to make."""
    return _timing(plan, 0, [], 1, 0.0, 0.0)


def level_spec(
    sample_segments: program.SegmentsFn,
    plan: plan_lib.LevelPlan,
    num_items: int,
    latent_shape: Sequence[int],
    *,
    mesh: jax.sharding.Mesh,
    chunk: int = 0,
    microbatch: int = 1,
    handover: program.Handover | None = None,
    key_impl: Any = None,
) -> program.LevelSpec:
    """The program that `generate_level` uses for `num_items` segments (of all videos) of a level.

    Raises:
      ValueError: if chunk or microbatch is out of range or the mesh lacks an axis.
    """
    if chunk < 0:
        raise ValueError(f"chunk must be 0 (a level in one call) or more segments, got {chunk}")
    if microbatch < 1:
        raise ValueError(f"microbatch must be at least 1, got {microbatch}")
    batch = program.segment_shards(mesh) * microbatch
    return program.LevelSpec(
        sample_segments=sample_segments,
        network_level=plan.network_level,
        rounds=-(-min(chunk or num_items, num_items) // batch),
        microbatch=microbatch,
        segment_length=plan.segment_length,
        latent_shape=tuple(latent_shape),
        mesh=mesh,
        handover=handover,
        key_impl=jax.random.key_impl(jax.random.key(0)) if key_impl is None else key_impl,
    )


def compile_ahead(
    sample_segments: program.SegmentsFn,
    params: Any,
    plans: Sequence[plan_lib.LevelPlan],
    num_videos: int,
    latent_shape: Sequence[int],
    *,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 0,
    microbatch: int | Sequence[int] = 1,
    handover: program.Handover | None = None,
    key_impl: Any = None,
) -> dict[int, concurrent.futures.Future]:
    """Starts compiling every level's program, each in a thread, and returns at once.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
      num_videos: V.
      key_impl: `jax.random.key_impl(key)`; None is JAX's default.
      Others as in `generate`, which must get the same ones.

    Returns:
      For `generate(compiled=...)`; a future raises what its compilation raised.
    """
    mesh = program.default_mesh() if mesh is None else mesh
    specs = {
        plan.level: level_spec(
            sample_segments,
            plan,
            num_videos * plan.num_segments,
            latent_shape,
            mesh=mesh,
            chunk=chunk,
            microbatch=size,
            handover=handover,
            key_impl=key_impl,
        )
        for plan, size in zip(plans, _microbatches(microbatch, plans))
    }
    pool = concurrent.futures.ThreadPoolExecutor(max(1, len(specs)))  # of a video that is made, none is left
    futures = {level: pool.submit(program.compile_level, spec, params) for level, spec in specs.items()}
    pool.shutdown(wait=False)
    return futures


def _ready(compiled, spec: program.LevelSpec, params: Any) -> program.CompiledLevel:
    if compiled is None:
        return program.compile_level(spec, params)
    if isinstance(compiled, concurrent.futures.Future):
        compiled = compiled.result()
    if compiled.spec != spec:
        names = [f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) != getattr(compiled.spec, f.name)]
        raise ValueError(f"compiled: the program was compiled for another {', '.join(names)}; compile it with this one")
    return compiled


def _items(plan, num_videos: int, videos, segments) -> tuple[np.ndarray, np.ndarray]:
    """Every segment of every video, video-major: int32 [n], int32 [n]."""
    chosen = []
    for name, ids, count in (("videos", videos, num_videos), ("segments", segments, plan.num_segments)):
        ids = np.arange(count, dtype=np.int32) if ids is None else np.asarray(ids, np.int32)
        if ids.ndim != 1 or not ids.size or ids.min() < 0 or ids.max() >= count:
            raise ValueError(f"{name} must be a list of numbers from 0 to {count - 1}, got {ids.tolist()}")
        chosen.append(ids)
    return np.repeat(chosen[0], len(chosen[1])), np.tile(chosen[1], len(chosen[0]))


def _inputs(plan, frames, prompt_index, video, segment) -> dict[str, np.ndarray]:
    frame, given = plan.frame_index[segment], plan.given[segment]  # [n, L]
    return {
        "video": video,
        "segment": segment,
        "prompt": prompt_index[video[:, None], np.minimum(frame, prompt_index.shape[1] - 1)],  # [n, L]
        "given": given,
        "cond": frames.read(video, frame, given),  # [n, L, h, w, c]
    }


def _store(plan, frames, video, segment, latents) -> None:
    finite = np.isfinite(latents).all(axis=(1, 2, 3, 4))
    if not finite.all():
        i = int(np.argmin(finite))
        raise FloatingPointError(
            f"level {plan.level}, segment {segment[i]} of video {video[i]} is not finite: "
            "check the weights, lower the guidance or sample in float32"
        )
    frames.write(video, plan.frame_index[segment], ~plan.given[segment], latents)


def _microbatches(microbatch, plans) -> list[int]:
    sizes = [int(microbatch)] * len(plans) if np.ndim(microbatch) == 0 else [int(size) for size in microbatch]
    if len(sizes) != len(plans):
        raise ValueError(f"microbatch has {len(sizes)} entries for {len(plans)} levels: give one, or one a level")
    return sizes


def _checked_key_impl(key: jax.Array) -> Any:
    if not (isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise ValueError(f"key must be one typed key, from jax.random.key(seed), got {key!r}")
    return jax.random.key_impl(key)


def checked_prompts(prompt_index: np.ndarray, num_videos: int | None = None) -> np.ndarray:
    prompt_index = np.asarray(prompt_index)
    if prompt_index.ndim != 2 or prompt_index.dtype.kind not in "iu" or not prompt_index.size:
        raise ValueError(
            f"prompt_index must be integers [videos, frames], got {prompt_index.dtype} {list(prompt_index.shape)}"
        )
    if num_videos is not None and len(prompt_index) != num_videos:
        raise ValueError(f"prompt_index is for {len(prompt_index)} videos, frames for {num_videos}: give a row each")
    return prompt_index.astype(np.int32)


def check_covers(plan: plan_lib.LevelPlan, num_frames: int) -> None:
    """Checks that the finest level's last segment, and none before it, has frame F - 1, new or given."""
    last, before = plan.frame_index[-1], plan.frame_index[:-1].max(initial=-1)
    if plan.stride != 1 or last[-1] < num_frames - 1 or before >= num_frames - 1:
        raise ValueError(
            f"plans end at stride {plan.stride}, frame {last[-1]}, but prompt_index has {num_frames} frames: "
            "plan for as many frames as there are prompts"
        )
