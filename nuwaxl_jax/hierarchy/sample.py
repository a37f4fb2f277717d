"""`--mode=sample`: one story in, one long video out, with its storyboard and its metadata.

Steps: read the story; encode its different prompts once; plan the tree; compile every level's program in parallel;
generate level by level; decode in bounded windows straight into the mp4. Each output appears by atomic rename.

Latents are kept as they are made, in STORY.latents (`ledger`): the same command goes on where it was killed, to the
same bits, and --redo makes a segment again. SIGTERM and SIGINT end the run after a device call, with status 42.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any, Callable, Sequence, TextIO

import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax import profiling
from nuwaxl_jax import video_io
from nuwaxl_jax.hierarchy import autoregressive
from nuwaxl_jax.hierarchy import decode as decode_lib
from nuwaxl_jax.hierarchy import frames as frames_lib
from nuwaxl_jax.hierarchy import generate as generate_lib
from nuwaxl_jax.hierarchy import keeping
from nuwaxl_jax.hierarchy import notes
from nuwaxl_jax.hierarchy import plan as plan_lib
from nuwaxl_jax.hierarchy import program as program_lib
from nuwaxl_jax.hierarchy import segments as segments_lib
from nuwaxl_jax.hierarchy import story as story_lib
from nuwaxl_jax.hierarchy import storyboard
from nuwaxl_jax.hierarchy import strategies
from nuwaxl_jax.training import interrupts

FPS = 15


@dataclasses.dataclass(frozen=True)
class Generated:
    """Latents `[V, F, h, w, c]` (scaled), the plans they came from and timings per level.

    Attributes:
      denoiser_calls: made one after another here, for all V videos, with these devices and microbatches.
      serial_depth: those of one video that must follow one another on any machine (`segments.serial_depth`).
    """

    latents: np.ndarray
    plans: tuple[plan_lib.LevelPlan, ...]
    timings: list[dict[str, Any]]
    denoiser_calls: int
    serial_depth: int


class Progress:
    """One line a device call on `out`: what is done, and an estimate of what is left of all levels."""

    def __init__(
        self, plans: Sequence[plan_lib.LevelPlan], costs: Sequence[float], videos: int = 1, out: TextIO = sys.stderr
    ):
        self._work = [p.num_segments * videos * cost for p, cost in zip(plans, costs)]
        self._plans, self._out = plans, out
        self._start = time.perf_counter()
        self._spent = [0.0] * len(plans)

    def __call__(self, level: int, done: int, total: int, seconds: float) -> None:
        self._spent[level] = seconds
        finished = sum(self._work[:level]) + self._work[level] * done / total
        left = sum(self._spent) * (sum(self._work) - finished) / finished
        plan = self._plans[level]
        print(
            f"level {level + 1} of {len(self._plans)} (stride {plan.stride}): {done} of {total} segments, "
            f"{seconds:.1f} s; about {left:.0f} s of sampling left",
            file=self._out,
            flush=True,
        )


def make_plans(config: ml_collections.ConfigDict, num_frames: int) -> tuple[plan_lib.LevelPlan, ...]:
    """The levels of `num_frames` by the config's strategy."""
    tree = config.hierarchy
    return strategies.plans(tree.strategy, num_frames, tree.segment_length, tree.depth, tree.overlap)


def level_arguments(
    config: ml_collections.ConfigDict, networks: networks_lib.Networks, plans: Sequence[plan_lib.LevelPlan]
) -> dict[str, Any]:
    """Of `generate.level_spec`, as the config sets them: chunk, handover, microbatch (one a level of `plans`)."""
    tree = config.hierarchy
    return dict(
        chunk=tree.chunk,
        handover=segments_lib.make_pixel_handover(networks) if tree.handover == "pixel" else None,
        # Of the plan alone, never of devices or videos: equal microbatches are what makes equal bits.
        microbatch=[1 if p.sequential else min(tree.microbatch, p.num_segments) for p in plans],
    )


def generate(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    prompts: Sequence[str],
    prompt_index: np.ndarray,
    *,
    key: jax.Array | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = True,
    frames: frames_lib.FrameLatents | None = None,
    stop: Callable[[], None] = lambda: None,
    tracer: profiling.Tracer = profiling.Tracer(None, ""),
) -> Generated:
    """Latents of V videos by the config's strategy.

    Args:
      prompts: different prompts; prompt_index: int32 `[V, F]`, each frame's row among them.
      key: of the noise; None is `config.seed`'s.
      frames: to fill; what is made of them already is not made again. None starts empty.
      stop: called after each device call, and may raise.
      tracer: of the device calls, counted from 1.
    """
    key = jax.random.key(config.seed) if key is None else key
    videos, num_frames = prompt_index.shape
    plans = make_plans(config, num_frames)
    params = segments_lib.sampling_params(networks, bundle, prompts)
    if jax.process_count() > 1:
        params = jax.device_get(params)  # from here on over all hosts' devices
    sample_segments = segments_lib.sampler_of(config, networks, plans)
    calls = [segments_lib.denoiser_calls(config, p.network_level, plans) for p in plans]
    line = Progress(plans, calls, videos) if progress else lambda *_: None
    if progress and mesh is not None:
        _explain(config, plans, videos, mesh)

    report = _reporter(line, tracer, stop)
    shared = level_arguments(config, networks, plans) | dict(mesh=mesh)
    if plans[0].sequential:
        tracer.before(1)
        result = autoregressive.generate_autoregressive(
            sample_segments,
            params,
            plans,
            key,
            prompt_index,
            networks.latent_shape,
            progress=report,
            frames=frames,
            **shared,
        )
    else:
        left = [plan for plan in plans if frames is None or frames.to_make(plan)]
        sizes = [shared["microbatch"][plans.index(plan)] for plan in left]
        ahead = generate_lib.compile_ahead(
            sample_segments, params, left, videos, networks.latent_shape, **shared | dict(microbatch=sizes)
        )
        tracer.before(1)
        result = generate_lib.generate(
            sample_segments,
            params,
            plans,
            key,
            prompt_index,
            networks.latent_shape,
            compiled=ahead,
            progress=report,
            frames=frames,
            **shared,
        )
    here = sum(t["rounds"] * c for t, c in zip(result.timings, calls))
    return Generated(result.latents, plans, result.timings, here, segments_lib.serial_depth(config, plans))


def _reporter(line: Callable[..., None], tracer: profiling.Tracer, stop: Callable[[], None]) -> Callable[..., None]:
    """What is to be called after each device call."""
    finished = itertools.count(1)

    def report(*done: Any) -> None:
        line(*done)
        number = next(finished)
        if said := tracer.after(number):
            print(said, file=sys.stderr)
        tracer.before(number + 1)
        stop()

    return report


def _explain(config: ml_collections.ConfigDict, plans: Sequence[plan_lib.LevelPlan], videos: int, mesh: Any) -> None:
    """Says of the largest level where it leaves devices without segments of their own."""
    largest = max(plans, key=lambda plan: plan.num_segments)
    if not largest.sequential:
        size = min(config.hierarchy.microbatch, largest.num_segments)
        idle = program_lib.idle_devices(videos * largest.num_segments, program_lib.segment_shards(mesh), size)
        if idle:
            print(f"level {largest.level}: {idle}", file=sys.stderr, flush=True)


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "numpy", "av")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def metadata(config, story, card, generated: Generated, seconds: dict[str, float], num_frames: int) -> dict[str, Any]:
    """What made the video: enough to make it again, and to compare its numbers with others'."""
    return {
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "story": json.loads(story.to_json()),
        "seed": config.seed,
        "frames": num_frames,
        "fps": FPS,
        "weights": card,
        "config": config.to_dict(),
        "protocol": {
            "strategy": config.hierarchy.strategy,
            "handover": config.hierarchy.handover,
            "sampler": config.sampler.to_dict(),
            "levels": [
                dict(stride=p.stride, segments=p.num_segments, network_level=p.network_level) for p in generated.plans
            ],
            "parameters": "exponential moving average",
            "precision": "float32",
            "serial_denoiser_calls": generated.serial_depth,
        },
        "denoiser_calls_here": generated.denoiser_calls,
        "timings": {"levels": generated.timings, **{k: round(v, 3) for k, v in seconds.items()}},
        "machine": {"backend": jax.default_backend(), "devices": jax.device_count(), "cores": os.cpu_count()},
        "versions": _versions(),
    }


def _write_video(path, networks, bundle, latents, keep: set[int], on_progress) -> dict[int, np.ndarray]:
    """Decodes into the mp4; returns the frames whose numbers are in `keep`."""
    kept: dict[int, np.ndarray] = {}

    def stream():
        first = 0
        for frames in decode_lib.decode_frames(networks, bundle, latents, progress=on_progress):
            for number in keep.intersection(range(first, first + len(frames))):
                kept[number] = frames[number - first].copy()
            first += len(frames)
            yield frames

    video_io.write_mp4(path, stream(), FPS, fragmented=True)
    return kept


def _check_noise(config: ml_collections.ConfigDict, plans: Sequence[plan_lib.LevelPlan], level: int) -> None:
    """Refuses to make segments again that have no noise to differ by."""
    sampler = config.sampler
    if level >= len(plans) or sampler.method == "ddpm" or sampler.eta > 0:
        return
    windows = strategies.knows_no_future(config.hierarchy.strategy, plans, config.hierarchy.depth)
    if (sampler.window_temperature if windows else sampler.temperature[plans[level].network_level]) == 0:
        field = "window_temperature" if windows else "temperature"
        problem = f"sampler.{field} is 0 at level {level}, where segments follow from their borders without noise"
        raise ValueError(f"--redo: {problem}; redo a segment of a level above")


def _latents(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    prompts: Sequence[str],
    prompt_index: np.ndarray,
    plans: Sequence[plan_lib.LevelPlan],
    path: pathlib.Path,
    redo: str,
    say: Callable[[str], None],
) -> frames_lib.FrameLatents:
    """The video's latents as an earlier run has left them; the first host keeps them."""
    if jax.process_index():
        return keeping.agree(None, plans, networks.latent_shape)
    chosen = keeping.parse_redo(redo) if redo else None
    sizes = level_arguments(config, networks, plans)["microbatch"]
    key = keeping.key_of(config, bundle, prompts, prompt_index, sizes)
    frames = keeping.open_folder(path, key, plans, networks.latent_shape)
    if sum(frames.found):
        found = ", ".join(f"{n} of {plan.num_segments}" for n, plan in zip(frames.found, plans))
        say(f"{frames.folder}: segments made before, by level: {found}; the others are made now")
    if frames.damaged:
        say(f"{frames.folder}: {frames.damaged} segments are not as they were written and are made again")
    if chosen:
        _check_noise(config, plans, chosen[0])
        say(f"--redo={redo}: {frames.redo(*chosen)} segments are made again")
    return keeping.agree(frames, plans, networks.latent_shape)


def run(
    config: ml_collections.ConfigDict,
    bundle: networks_lib.Params,
    card: dict[str, Any],
    story_path: str,
    out_dir: str,
    num_frames: int = 0,
    redo: str = "",
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    profile: profiling.Window | None = None,
) -> pathlib.Path:
    """Makes STORY.mp4, STORY.png and STORY.json in `out_dir`; returns the mp4's path.

    Args:
      num_frames: F; 0 is the full tree, (L - 1)^M + 1.
      redo: 'LEVEL.SEGMENT' to make again with other noise, and all that follows from it; '' none.
      profile: device calls of this run to trace, into STORY.profile.

    Raises:
      ValueError, FileNotFoundError: one line; nothing has been written.
      SystemExit: 42, interrupted; the same command goes on.
    """
    with interrupts.catch("stopping after this device call; its latents are kept") as interrupt:
        tracer = profiling.Tracer(profile, os.path.join(out_dir, f"{pathlib.Path(story_path).stem}.profile"))
        with contextlib.closing(tracer):
            return _run(config, bundle, card, story_path, out_dir, num_frames, redo, say, interrupt, tracer)


def _run(
    config: ml_collections.ConfigDict,
    bundle: networks_lib.Params,
    card: dict[str, Any],
    story_path: str,
    out_dir: str,
    num_frames: int,
    redo: str,
    say: Callable[[str], None],
    interrupt: interrupts.Interrupt,
    tracer: profiling.Tracer,
) -> pathlib.Path:
    """`run`."""
    begin, first = time.perf_counter(), jax.process_index() == 0
    say = say if first else lambda line: None
    story = story_lib.Story.load(story_path)
    num_frames = num_frames or config_lib.window_frames(config)
    plans = make_plans(config, num_frames)  # refuses a frame count that does not fit before anything is written
    networks = networks_lib.build(config)
    prompts, index = story.frame_prompts(num_frames)
    target = pathlib.Path(out_dir)
    if first:
        target.mkdir(parents=True, exist_ok=True)
    path = target / f"{pathlib.Path(story_path).stem}.mp4"
    say(
        f"{num_frames} frames of {config.data.frame_size}x{config.data.frame_size}, {len(prompts)} prompts, "
        f"{sum(p.num_segments for p in plans)} segments in {len(plans)} levels; compiling"
    )
    for note in notes.of_video(config, plans, story.prompts):
        say(f"{story_path}: {note}")
    mesh = partitioning.make_mesh(**config.mesh.to_dict())
    frames = _latents(config, networks, bundle, prompts, index, plans, path, redo, say)
    leaving = f"{path}: interrupted; the same command goes on"
    stop = functools.partial(interrupt.leave, leaving, say)
    watched = dict(progress=first, stop=stop, tracer=tracer)
    generated = generate(config, networks, bundle, prompts, index[None], mesh=mesh, frames=frames, **watched)
    sampled = time.perf_counter()

    rows = storyboard.rows_of(plans, num_frames)
    keep = {int(f) for _, frames in rows for f in frames}
    last = [sampled]

    def on_decode(done: int, total: int, seconds: float) -> None:
        stop_decoding()
        if done == total or time.perf_counter() - last[0] > 3:
            last[0] = time.perf_counter()
            say(
                f"decoding: {done} of {total} frames, {seconds:.1f} s; "
                f"about {seconds * (total - done) / done:.0f} s left"
            )

    with interrupts.apart(leaving, say=say, interrupt=interrupt) as stop_decoding:  # the other hosts have nothing to do
        kept = _write_video(path, networks, bundle, generated.latents[0], keep, on_decode) if first else {}
    if not first:
        multihost_utils.sync_global_devices("the first host has written the video")
        return path
    board = storyboard.draw(kept, rows, [prompts[i] for i in index])
    storyboard.save_png(path.with_suffix(".png"), board)
    end = time.perf_counter()
    seconds = {"sampling_seconds": sampled - begin, "decoding_seconds": end - sampled, "total_seconds": end - begin}
    frames.finish()
    keeping.forget_others(path, frames)
    files.write_json(path.with_suffix(".json"), metadata(config, story, card, generated, seconds, num_frames))
    say(
        f"{path} with its .png and .json: {end - begin:.1f} s ({sampled - begin:.1f} s to sample, compiling included; "
        f"{end - sampled:.1f} s to decode and encode)"
    )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the first host has written the video")
    return path
