"""Held-out stories told in several ways: ground truth, VAE ceiling, NUWA-XL, and what it is compared with.

Every way tells the same videos of the test split by the same captions, is read by the same `story_score` where the
world is toons, and by the same feature networks. What is scored is kept at once. Several processes do each their share,
on their own devices.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import sys
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.evaluation import codec
from nuwaxl_jax.evaluation import held_out as held_out_lib
from nuwaxl_jax.evaluation import image_metrics
from nuwaxl_jax.evaluation import ledger as ledger_lib
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import story_score
from nuwaxl_jax.hierarchy import sample as sample_lib
from nuwaxl_jax.hierarchy import story as story_lib
from nuwaxl_jax.hierarchy import strategies

REAL = ("ground_truth", "vae_ceiling")
# Way -> what of the config makes it; all by the same networks.
GENERATORS: Mapping[str, Mapping[str, Any]] = {
    "nuwa_xl": {"hierarchy.strategy": "diffusion_over_diffusion"},
    "autoregressive": {"hierarchy.strategy": "autoregressive"},
    "hierarchy_2": {"hierarchy.strategy": "hierarchy_2"},
    "independent": {"hierarchy.strategy": "independent"},
    "side_by_side": {"hierarchy.strategy": "side_by_side"},
}
WAYS = (*REAL, *GENERATORS)
USUAL = (*REAL, "nuwa_xl", "autoregressive")
OTHER = "other_real"  # videos of other stories, measured like the ways: what a distance of real videos is
GROUP = 2  # stories generated together, the window's only parallelism; a constant, for their noise is drawn by group

# on_video(way, story, frames), for each video that is made.
OnVideo = Callable[[str, int, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is evaluated, and how.

    Attributes:
      config, networks, bundle: the model.
      videos: real ones; the first `stories` are told, the next `others` are measured beside them.
      measures, which: feature networks (None: nothing is measured), and the frames that they read.
      ledger: where results are kept. real: the same of what no model has touched, which evaluations may share.
      on_video: called for each video that is made here, not for those that the ledger knows.
      stop: called after each device call and each story, and may raise.
    """

    config: ml_collections.ConfigDict
    networks: networks_lib.Networks
    bundle: networks_lib.Params
    videos: held_out_lib.HeldOut
    stories: int
    others: int
    measures: measures_lib.Measures | None
    which: measures_lib.Frames
    ledger: ledger_lib.Ledger
    real: ledger_lib.Ledger
    on_video: OnVideo = lambda way, story, frames: None
    stop: Callable[[], None] = lambda: None

    @property
    def index(self) -> np.ndarray:
        """All frames of a video."""
        return np.arange(self.videos.num_frames)

    def ledger_of(self, way: str) -> ledger_lib.Ledger:
        """Where a way's results are."""
        return self.real if way in ("ground_truth", OTHER) else self.ledger

    def features(self, frames: np.ndarray, captions: Sequence[str]) -> dict[str, np.ndarray] | None:
        """What the networks read of a video; None where nothing is measured."""
        return None if self.measures is None else self.measures.read(frames, captions, self.which)


def _config_of(job: Job, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config of a way."""
    config = job.config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(dict(overrides))
    return config


def joins_of(job: Job, way: str) -> Sequence[range] | None:
    """Where a way's segments meet, for `story_score`; None of videos that no segments made."""
    if way not in GENERATORS:
        return None
    plans = sample_lib.make_plans(_config_of(job, GENERATORS[way]), job.videos.num_frames)
    return strategies.joins(plans, job.videos.num_frames)


def _generated(
    job: Job, captions: Sequence[Sequence[str]], overrides: Mapping[str, Any], group: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """(latents [V, F, h, w, c] of one group of stories, what each cost)."""
    config = _config_of(job, overrides)
    stories = [story_lib.Story.from_captions(c) for c in captions]
    prompts: dict[str, int] = {}
    index = np.empty((len(stories), len(captions[0])), np.int32)
    for v, story in enumerate(stories):
        own, at = story.frame_prompts(len(captions[v]))
        index[v] = np.array([prompts.setdefault(p, len(prompts)) for p in own], np.int32)[at]
    alone = jax.process_count() == 1  # else each process works by itself
    mesh = partitioning.make_mesh(**config.mesh.to_dict() if alone else {}, devices=jax.local_devices())
    key = jax.random.fold_in(jax.random.key(config.seed), group)
    begin = time.perf_counter()
    made = sample_lib.generate(
        config, job.networks, job.bundle, list(prompts), index, key=key, mesh=mesh, progress=False, stop=job.stop
    )
    return made.latents, {
        "seconds": sum(t["seconds"] for t in made.timings) / len(stories),
        "seconds_with_compiling": (time.perf_counter() - begin) / len(stories),
        "serial_denoiser_calls": made.serial_depth,
    }


def _tell_group(
    way: str, members: range, job: Job, captions: Sequence[Sequence[str]]
) -> Iterator[tuple[int, np.ndarray, dict[str, Any]]]:
    """(story, frames, what is known of it beside the score) of each member."""
    if way in GENERATORS:
        latents, cost = _generated(job, captions, GENERATORS[way], members.start // GROUP)
        for story, z in zip(members, latents):
            yield story, codec.decode_video(job.networks, job.bundle, z, job.stop), {"cost": cost}
        return
    for story in members:
        frames = job.videos.frames(story, job.index)
        if way == "ground_truth":
            yield story, frames, {}
            continue
        latents = codec.encode_video(job.networks, job.bundle, frames)
        made = codec.decode_video(job.networks, job.bundle, latents, job.stop)
        yield story, made, _fidelity(frames, made, job.measures)


def _fidelity(real: np.ndarray, made: np.ndarray, measures: measures_lib.Measures | None) -> dict[str, float]:
    """Means over the frames: PSNR in dB, SSIM, and LPIPS where its weights are at hand."""
    out = {name: float(getattr(image_metrics, name)(real, made).mean()) for name in ("psnr", "ssim")}
    if measures is not None and measures.perceptual is not None:
        out["lpips"] = float(measures.perceptual(real, made).mean())
    return out


def tell(job: Job, ways: Sequence[str] = USUAL) -> dict[str, Any]:
    """Scores of the ways over the stories, a group of stories after the other, this process's share of them.

    Returns:
      {way: {'summary' and 'stories' (toons alone), and medians of 'cost' or means of 'psnr', 'ssim' and 'lpips'}}; on
      every process, when all have done their share. What the networks read is in the ledger.
    """
    for group, first in enumerate(range(0, job.stories, GROUP)):
        members = range(first, min(first + GROUP, job.stories))
        captions = [job.videos.captions(i, job.index) for i in members]
        for way in ways:
            kind = [w for w in ways if (w in GENERATORS) == (way in GENERATORS)]  # dealt out apart: cost differs
            mine = ledger_lib.is_mine(group * len(kind) + kind.index(way))
            if mine and None in [job.ledger_of(way).read(way, i) for i in members]:
                for story, frames, extra in _tell_group(way, members, job, captions):
                    _keep(way, story, frames, captions[story - first], extra, job)
    for i in range(job.others):
        if ledger_lib.is_mine(i) and job.real.read(OTHER, i) is None:
            number = job.stories + i
            frames, captions = (read(number, job.index) for read in (job.videos.frames, job.videos.captions))
            job.real.write(OTHER, i, {}, job.features(frames, captions))
            job.stop()
    return {way: _joined(job.ledger_of(way).collect(way, job.stories, job.stop)) for way in ways}


def _keep(way: str, story: int, frames: np.ndarray, captions: Sequence[str], result: dict[str, Any], job: Job) -> None:
    """Scores one video, and writes down what came out."""
    if job.config.data.source == "toons":
        of = dict(segment_length=job.config.hierarchy.segment_length, joins=joins_of(job, way))
        result = result | {"score": story_score.story_score(frames, captions, **of)}
    job.on_video(way, story, frames)
    job.ledger_of(way).write(way, story, result, job.features(frames, captions))
    shown = result.get("score", result)
    shown = {k: round(v, 4) for k, v in shown.items() if isinstance(v, float)}
    print(f"{way}, story {story + 1} of {job.stories}: {shown}", file=sys.stderr, flush=True)
    job.stop()


def _joined(results: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if "score" in results[0]:
        scores = [result["score"] for result in results]
        out = {"summary": story_score.summarise(scores), "stories": scores}
    for name in ("psnr", "ssim", "lpips"):
        if name in results[0]:
            out[name] = round(float(np.mean([result[name] for result in results])), 4)
    if "cost" in results[0]:
        costs = [result["cost"] for result in results]
        out["cost"] = {name: float(np.median([cost[name] for cost in costs])) for name in costs[0]}
    return out
