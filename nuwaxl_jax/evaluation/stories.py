"""Held-out toons stories told four ways: ground truth, VAE ceiling, NUWA-XL, and the sliding window.

Every way tells the same episodes of the test split by the same captions, and is read by the same `story_score`. What is
scored is kept at once, so an evaluation that was cut short goes on where it stopped. Several processes do each their
share, on their own devices, and read one another's results in the folder where they are kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import sys
import time
from typing import Any, Callable, Iterator, Sequence

import jax
import ml_collections
import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.data.toons import source as toons_source
from nuwaxl_jax.evaluation import image_metrics
from nuwaxl_jax.evaluation import story_score
from nuwaxl_jax.hierarchy import decode as decode_lib
from nuwaxl_jax.hierarchy import sample as sample_lib
from nuwaxl_jax.hierarchy import story as story_lib

GENERATORS = {"nuwa_xl": "diffusion_over_diffusion", "autoregressive": "autoregressive"}
WAYS = ("ground_truth", "vae_ceiling", *GENERATORS)
GROUP = 2  # stories generated together, the window's only parallelism; a constant, for their noise is drawn by group
_PAUSE = 0.2  # seconds from look to look at what other processes have done

# on_video(way, story, frames), for each video that is made.
OnVideo = Callable[[str, int, np.ndarray], None]


def is_mine(number: int) -> bool:
    """Whether this process does item `number`. They are dealt out in rounds, from another process on each time."""
    count = jax.process_count()
    return (number + number // count) % count == jax.process_index()


class Ledger:
    """Results of single stories, `<folder>/<hash of the protocol>/<way>_<story>.json`; of other things likewise."""

    def __init__(self, folder: str | os.PathLike, protocol: dict[str, Any]):
        text = json.dumps(protocol, sort_keys=True)
        self.folder = pathlib.Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.folder / "protocol.json", protocol, shared=True)

    def _path(self, way: str, story: int) -> pathlib.Path:
        return self.folder / f"{way}_{story:04d}.json"

    def read(self, way: str, story: int) -> dict[str, Any] | None:
        """The saved result, None where there is none."""
        path = self._path(way, story)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, way: str, story: int, result: dict[str, Any]) -> None:
        """Saves a result, whole or not at all."""
        files.write_json(self._path(way, story), result)

    def collect(self, way: str, count: int, stop: Callable[[], None]) -> list[dict[str, Any]]:
        """Results 0 .. count - 1, when all are there; `stop` is called while others make them, and may raise."""
        while not all(self._path(way, story).exists() for story in range(count)):
            stop()
            time.sleep(_PAUSE)
        return [self.read(way, story) for story in range(count)]


def held_out(config: ml_collections.ConfigDict, num_stories: int, num_frames: int) -> toons_source.ToonsSource:
    """The first `num_stories` episodes of the test split, long enough for `num_frames`."""
    return toons_source.ToonsSource(
        "test",
        frame_size=config.data.frame_size,
        num_episodes=num_stories,
        episode_frames=max(config.data.episode_frames, num_frames),
    )


def encode_video(
    networks: networks_lib.Networks, bundle: networks_lib.Params, frames: np.ndarray, batch: int = 4
) -> np.ndarray:
    """Scaled posterior means `[F, h, w, c]` of uint8 frames, in windows of L frames with shared borders.

    The windows are those of training. Of a border frame's two encodings the later window's is kept.
    """
    length = min(networks.segment_length, len(frames))
    last = len(frames) - length
    starts = np.append(np.arange(0, last, length - 1), last)
    encode = _encoder(networks)
    out = np.empty((len(frames), *networks.latent_shape), np.float32)
    vae = {k: bundle[k] for k in ("vae", "latent_shift", "latent_scale")}
    for i in range(0, len(starts), batch):
        rows = np.minimum(np.arange(i, i + batch), len(starts) - 1)
        encoded = np.asarray(encode(vae, frames[starts[rows][:, None] + np.arange(length)]))
        for start, window in zip(starts[rows], encoded):
            out[start : start + length] = window
    return out


@functools.lru_cache(maxsize=2)
def _encoder(networks: networks_lib.Networks) -> Callable[..., jax.Array]:
    @jax.jit
    def encode(vae: networks_lib.Params, frames: jax.Array) -> jax.Array:
        mean, _ = networks.encode(vae["vae"], frames)
        return (mean - vae["latent_shift"]) * vae["latent_scale"]

    return encode


def decode_video(
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    latents: np.ndarray,
    stop: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """uint8 `[F, H, W, 3]` of scaled latents; `stop` is called after each window, and may raise."""
    frames = decode_lib.decode_frames(networks, bundle, latents, progress=lambda *_: stop())
    return np.concatenate(list(frames))


def _generated(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    captions: Sequence[Sequence[str]],
    strategy: str,
    group: int,
    stop: Callable[[], None],
) -> tuple[np.ndarray, dict[str, Any]]:
    """(latents [V, F, h, w, c] of one group of stories, what each cost)."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.hierarchy.strategy = strategy
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
        config, networks, bundle, list(prompts), index, key=key, mesh=mesh, progress=False, stop=stop
    )
    return made.latents, {
        "seconds": sum(t["seconds"] for t in made.timings) / len(stories),
        "seconds_with_compiling": (time.perf_counter() - begin) / len(stories),
        "serial_denoiser_calls": made.denoiser_calls,
    }


def _tell_group(
    way: str,
    members: range,
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    captions: Sequence[Sequence[str]],
    truth: Callable[[int], np.ndarray],
    stop: Callable[[], None],
) -> Iterator[tuple[int, np.ndarray, dict[str, Any]]]:
    """(story, frames, what is known of it beside the score) of each member."""
    if way in GENERATORS:
        group = members.start // GROUP
        latents, cost = _generated(config, networks, bundle, captions, GENERATORS[way], group, stop)
        for story, z in zip(members, latents):
            yield story, decode_video(networks, bundle, z, stop), {"cost": cost}
        return
    for story in members:
        frames = truth(story)
        if way == "ground_truth":
            yield story, frames, {}
            continue
        made = decode_video(networks, bundle, encode_video(networks, bundle, frames), stop)
        fidelity = {name: float(getattr(image_metrics, name)(frames, made).mean()) for name in ("psnr", "ssim")}
        yield story, made, fidelity


def tell(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    *,
    num_stories: int,
    num_frames: int,
    ledger: Ledger,
    on_video: OnVideo = lambda way, story, frames: None,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Scores of every way over the stories, a group of stories after the other, this process's share of them.

    Args:
      ledger: results of earlier, interrupted evaluations and of other processes are read from it and new ones kept.
      on_video: called for each video that is made here, not for those that the ledger knows.
      stop: called after each device call and each story, and may raise.

    Returns:
      {way: {'summary', 'stories': [score, ...], and medians of 'cost' or means of 'psnr' and 'ssim'}} for
      'ground_truth', 'vae_ceiling', 'nuwa_xl' and 'autoregressive'; on every process, when all have done their share.
    """
    source = held_out(config, num_stories, num_frames)
    index = np.arange(num_frames)
    read = functools.partial(source.frames, index=index)
    for group, first in enumerate(range(0, num_stories, GROUP)):
        members = range(first, min(first + GROUP, num_stories))
        captions = [source.captions(i, index) for i in members]
        for way in WAYS:
            kind = tuple(GENERATORS) if way in GENERATORS else WAYS[: -len(GENERATORS)]  # dealt out apart: cost differs
            if not is_mine(group * len(kind) + kind.index(way)) or None not in [ledger.read(way, i) for i in members]:
                continue
            for story, frames, extra in _tell_group(way, members, config, networks, bundle, captions, read, stop):
                score = story_score.story_score(
                    frames, captions[story - first], segment_length=config.hierarchy.segment_length
                )
                on_video(way, story, frames)
                ledger.write(way, story, {"score": score} | extra)
                shown = {k: round(v, 4) for k, v in score.items() if isinstance(v, float)}
                print(f"{way}, story {story + 1} of {num_stories}: {shown}", file=sys.stderr, flush=True)
                stop()
    return {way: _joined(ledger.collect(way, num_stories, stop)) for way in WAYS}


def _joined(results: list[dict[str, Any]]) -> dict[str, Any]:
    scores = [result["score"] for result in results]
    out: dict[str, Any] = {"summary": story_score.summarise(scores), "stories": scores}
    for name in ("psnr", "ssim"):
        if name in results[0]:
            out[name] = round(float(np.mean([result[name] for result in results])), 4)
    if "cost" in results[0]:
        costs = [result["cost"] for result in results]
        out["cost"] = {name: float(np.median([cost[name] for cost in costs])) for name in costs[0]}
    return out
