"""Held-out toons stories told four ways: ground truth, VAE ceiling, NUWA-XL, and the sliding window.

Every way tells the same episodes of the test split by the same captions, and is read by the same `story_score`.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Any, Callable, Iterator

import jax
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.data.toons import source as toons_source
from nuwaxl_jax.evaluation import image_metrics
from nuwaxl_jax.evaluation import story_score
from nuwaxl_jax.hierarchy import decode as decode_lib
from nuwaxl_jax.hierarchy import sample as sample_lib
from nuwaxl_jax.hierarchy import story as story_lib

GENERATORS = {"nuwa_xl": "diffusion_over_diffusion", "autoregressive": "autoregressive"}


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


def decode_video(networks: networks_lib.Networks, bundle: networks_lib.Params, latents: np.ndarray) -> np.ndarray:
    """uint8 `[F, H, W, 3]` of scaled latents."""
    return np.concatenate(list(decode_lib.decode_frames(networks, bundle, latents)))


def _generated(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    captions: list[list[str]],
    strategy: str,
) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
    """(videos, what they cost). Story v has the noise of video v of `config.seed`."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.hierarchy.strategy = strategy
    stories = [story_lib.Story.from_captions(c) for c in captions]
    prompts: dict[str, int] = {}
    index = np.empty((len(stories), len(captions[0])), np.int32)
    for v, story in enumerate(stories):
        own, at = story.frame_prompts(len(captions[v]))
        index[v] = np.array([prompts.setdefault(p, len(prompts)) for p in own], np.int32)[at]
    mesh = partitioning.make_mesh(**config.mesh.to_dict())
    made = sample_lib.generate(config, networks, bundle, list(prompts), index, mesh=mesh)
    cost = {
        "seconds": sum(t["seconds"] for t in made.timings) / len(stories),
        "compile_seconds": sum(t["compile_seconds"] for t in made.timings),
        "serial_denoiser_calls": made.denoiser_calls,
    }
    return (decode_video(networks, bundle, latents) for latents in made.latents), cost


def tell(
    config: ml_collections.ConfigDict,
    networks: networks_lib.Networks,
    bundle: networks_lib.Params,
    *,
    num_stories: int,
    num_frames: int,
    on_video: Callable[[str, int, np.ndarray], None] = lambda way, story, frames: None,
) -> dict[str, Any]:
    """Scores of every way over the stories.

    Returns:
      {way: {'summary', 'stories': [score, ...], 'cost'}} for 'ground_truth', 'vae_ceiling', 'nuwa_xl' and
      'autoregressive'; the VAE's also has 'psnr' and 'ssim', means over all frames.
    """
    source = held_out(config, num_stories, num_frames)
    index = np.arange(num_frames)
    captions = [source.captions(i, index) for i in range(num_stories)]
    scores: dict[str, list[dict]] = {w: [] for w in ("ground_truth", "vae_ceiling", *GENERATORS)}
    out: dict[str, Any] = {way: {} for way in scores}

    def add(way: str, story: int, frames: np.ndarray) -> None:
        score = story_score.story_score(frames, captions[story], segment_length=config.hierarchy.segment_length)
        scores[way].append(score)
        on_video(way, story, frames)
        shown = {k: round(v, 4) for k, v in score.items() if isinstance(v, float)}
        print(f"{way}, story {story + 1} of {num_stories}: {shown}", file=sys.stderr, flush=True)

    fidelity: list[tuple[float, float]] = []
    for story in range(num_stories):
        frames = source.frames(story, index)
        add("ground_truth", story, frames)
        made = decode_video(networks, bundle, encode_video(networks, bundle, frames))
        add("vae_ceiling", story, made)
        fidelity.append((image_metrics.psnr(frames, made).mean(), image_metrics.ssim(frames, made).mean()))
    out["vae_ceiling"] |= dict(zip(("psnr", "ssim"), np.mean(fidelity, axis=0).round(4).tolist()))
    for way, strategy in GENERATORS.items():
        begin = time.perf_counter()
        videos, cost = _generated(config, networks, bundle, captions, strategy)
        for story, frames in enumerate(videos):
            add(way, story, frames)
        out[way]["cost"] = cost | {"total_seconds": time.perf_counter() - begin}
    for way, rows in scores.items():
        out[way] |= {"summary": story_score.summarise(rows), "stories": rows}
    return out
