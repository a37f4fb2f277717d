"""Encoding a stage's examples once (`--mode=data --cache`), and training from what was kept.

The T-KLVAE looks at a whole clip, so latents belong to clips, not to frames: kept are the first N examples that the
stage would draw, at the mixture of strides it would draw them with. Training from them takes the same examples in the
same order as from frames; when they are used up it goes through them again, shuffled. Kept are moments, so the
posterior is sampled anew each time; caption dropout and the choice of given frames are drawn in the step as ever.

A cache is bound to its key: hashes of the VAE's (and the text encoder's) parameters and of the videos and captions, and
every setting that an example follows from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import io
import math
import os
import time
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import reading
from nuwaxl_jax.data.cache import elements
from nuwaxl_jax.data.cache import identity
from nuwaxl_jax.data.cache import store
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import latents
from nuwaxl_jax.training import lineage
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import tasks

# Fields of config.data that no example follows from; the videos and captions themselves are hashed.
_FREE = ("path", "captions", "cache", "max_bad", "num_workers", "num_threads", "prefetch", "num_eval_episodes")
_BATCH = 8  # clips encoded at a time, a device at least one
_PROMPTS = 16  # encoded at a time
_NUM_HEADS = 4  # text.num_heads of a cache whose key names none


def seed_of(config: ml_collections.ConfigDict, stage: str) -> int:
    """Each stage's own seed of data order and noise."""
    return (config.seed + zlib.crc32(stage.encode())) % 2**31


def _data_of(config: ml_collections.ConfigDict, stage: str) -> ml_collections.ConfigDict:
    """The config whose examples a stage draws: of one level alone for 'denoiser_<level>'."""
    level = lineage.level_of(stage)
    if level is None:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.level_weights = tuple(float(k == level) for k in range(config.hierarchy.depth))
    return config


def iterator(config: ml_collections.ConfigDict, workdir: str, stage: str) -> pipeline.ClipIterator:
    """The training data of a stage for this process: from frames, or from config.data.cache.

    Raises:
      ValueError: data that cannot be used; a cache that is missing, incomplete or of something else.
    """
    section = lineage.section_of(stage)
    examples = None
    if tasks.cached(config, section):
        folder = store.Folder.open(os.path.join(config.data.cache, stage), key_of(config, workdir, stage))
        examples = store.Examples(folder)
        metrics.say(f"{stage}: {len(examples)} examples from {folder.path}, {folder.size() / 1e6:.0f} MB")
    return pipeline.make_iterator(
        _data_of(config, stage),
        "train",
        section,
        seed=seed_of(config, stage),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cached=examples,
    )


def look_ahead(config: ml_collections.ConfigDict, stages: Sequence[str]) -> None:
    """Asks whether videos are long enough for stages that are trained later, so that the first does not run in vain.
    The first process alone says for which levels they are.

    Raises:
      ValueError: data of which a denoiser would never see one of its levels.
    """
    with contextlib.redirect_stdout(io.StringIO()) if jax.process_index() else contextlib.nullcontext():
        for stage in stages:
            section = lineage.section_of(stage)
            if section == "denoiser" and not tasks.cached(config, section):
                pipeline.make_items(_data_of(config, stage), "train", section, seed=seed_of(config, stage))


def key_of(
    config: ml_collections.ConfigDict, workdir: str, stage: str, source: Any = None, text: Any = None
) -> dict[str, Any]:
    """What a stage's cache follows from, as a JSON dict.

    Args:
      config: of the run.
      workdir: holds the VAE, if it was trained there.
      stage: a denoiser's.
      source: the training videos; None opens them. Where there is nothing at data.path, the cache's own word is taken
        for them.
      text: the text encoder's parameters; None reads them where they are needed.
    """
    section = lineage.section_of(stage)
    data = _data_of(config, stage).data.to_dict()
    fields = tasks.cached(config, section)
    if "text" in fields and text is None:
        text = lineage.first_text(config, workdir, stage)
    key = dict(
        stage=stage,
        seed=seed_of(config, stage),
        fields=list(fields),
        data={name: value for name, value in data.items() if name not in _FREE},
        hierarchy={name: config.hierarchy[name] for name in ("segment_length", "depth", "handover")},
        text=_text(config, kept="text" in fields),
        clip_length=config.train[section].clip_length,
        dtype=config.train[section].dtype,
        frame_layers={name: config.vae[name] for name in ("temporal", "temporal_padding")},
        vae=identity.of_tree(lineage.vae_of(config, workdir)),
        text_encoder=identity.of_tree(text) if "text" in fields else "",
    )
    return dict(key, videos=_videos(config, stage, source))


def _text(config: ml_collections.ConfigDict, kept: bool) -> dict[str, Any]:
    """What tokens follow from and, where they are kept, the text's states; beside the text encoder's parameters.

    What was added later is absent where it is as it was for all before: their caches stay valid.
    """
    key = {name: config.text[name] for name in ("tokenizer", "vocab_size", "max_tokens")}
    if key["tokenizer"] == "clip_bpe":
        key["vocabulary"] = identity.of_vocabulary(config.text.vocabulary)
    if kept and config.text.num_heads != _NUM_HEADS:  # no parameter's shape tells
        key["num_heads"] = config.text.num_heads
    return key


def _videos(config: ml_collections.ConfigDict, stage: str, source: Any) -> str:
    """Hash of the training videos and captions; the one that the cache has noted where the videos are not here."""
    if source is None and config.data.source != "toons" and config.data.path and not os.path.exists(config.data.path):
        noted = store.noted_key(os.path.join(config.data.cache, stage)).get("videos")
        if noted:
            metrics.say(f"{stage}: nothing at {config.data.path}, so the cache's videos are taken as those meant")
            return noted
    return identity.of_source(pipeline.make_source(config, "train") if source is None else source)


class _Prompts:
    """States of token rows; a prompt seen before is not encoded again."""

    def __init__(self, networks: networks_lib.Networks, text_params: Any):
        self._states = jax.jit(networks.text_states)
        self._params = text_params
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """int32 [B, l, N] to [B, l, N, D]."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        if len(self._known) > 1024:
            self._known.clear()
        new = list({row.tobytes(): row for row in rows if row.tobytes() not in self._known}.values())
        for start in range(0, len(new), _PROMPTS):
            part = new[start : start + _PROMPTS]
            filled = np.stack(part + part[:1] * (_PROMPTS - len(part)))
            for row, states in zip(part, np.asarray(self._states(self._params, filled))):
                self._known[row.tobytes()] = states
        return np.stack([self._known[row.tobytes()] for row in rows]).reshape(*tokens.shape, -1)


def _encoder(networks: networks_lib.Networks, fields: tuple[str, ...], image: bool) -> Callable[..., Any]:
    """(frozen, frames uint8 [B, l, H, W, 3]) -> {'moments', 'masked' if wanted}, see `elements`."""

    def encode(frozen: Any, frames: jax.Array) -> dict[str, jax.Array]:
        video = networks_lib.to_float(frames)
        if image:  # clips of one frame
            moments = latents.moments(networks, frozen, video.reshape(-1, 1, *video.shape[2:]))
            return {"moments": moments.reshape(*video.shape[:2], *moments.shape[2:])}
        out = {"moments": latents.moments(networks, frozen, video)}
        if "masked" in fields:
            made = [
                latents.moments(networks, frozen, latents.masked(video, jnp.broadcast_to(mask, video.shape[:2])))
                for mask in latents.border_masks(video.shape[1])
            ]
            out["masked"] = jnp.stack(made, axis=1)  # [B, 2, l, h, w, 2 c]
        return out

    return jax.jit(encode)


def run(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    count: int,
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
    """Encodes the first `count` examples of every denoiser stage into config.data.cache; what is there is kept.

    Any number of processes may run this at once, on one machine or on many that see the folder: they share the work.
    Those of one job (`hosts`) end together.

    Args:
      config: validated; data.cache names the folder.
      workdir: of the run, with its finished VAE; not read where train.init_from brings one.
      count: examples, rounded up to whole files.

    Returns:
      Examples of each stage.

    Raises:
      CacheError: the folder is of something else, or cannot be written.
      ValueError: no VAE, or no data.
      SystemExit: 42, interrupted; the same call goes on.
    """
    made = {}
    for stage in lineage.stages(config):
        section = lineage.section_of(stage)
        if tasks.cached(config, section):
            made[stage] = _run_stage(config, workdir, stage, count, say, progress)
    if not made:
        raise ValueError("train.stages: has no denoiser, so there is nothing to encode; add image_denoiser or denoiser")
    return made


def _run_stage(
    config: ml_collections.ConfigDict,
    workdir: str,
    stage: str,
    count: int,
    say: Callable[[str], None],
    progress: Callable[[str], None],
) -> int:
    section = lineage.section_of(stage)
    task = tasks.build(config, stage)
    frozen = lineage.frozen_of(config, workdir, stage)
    text = lineage.first_text(config, workdir, stage) if "text" in task.cached else None
    items = pipeline.make_items(_data_of(config, stage), "train", section, seed=seed_of(config, stage))
    key = key_of(config, workdir, stage, items.source, text)
    folder = store.Folder.create(os.path.join(config.data.cache, stage), key, count)
    missing = folder.missing()
    kept = folder.num_shards - len(missing)
    say(f"{stage}: {folder.count} examples wanted in {folder.path}, {kept * store.SHARD} are there")
    size = math.lcm(_BATCH, jax.local_device_count())
    size, devices = (size, None) if store.SHARD % size == 0 else (_BATCH, 1)
    mesh = partitioning.make_mesh(devices=jax.local_devices()[:devices])
    encode = _encoder(task.networks, task.fields, image=section == "image_denoiser")
    prompts = _Prompts(task.networks, text) if text is not None else None
    frozen = jax.device_put(frozen, partitioning.replicate(mesh))
    bad = reading.BadFiles(items.source, config.data.max_bad)
    start, begun = time.monotonic(), 0
    offset = jax.process_index() * len(missing) // jax.process_count()
    line = f"{stage}: interrupted; the same command goes on with the files that are missing in {folder.path}"
    with interrupts.apart(line, "stopping after these clips; complete files are kept", say) as stop:
        for wait in (None, stop):  # first what nobody works at, then what others have left
            for number in [*missing[offset:], *missing[:offset]]:
                stop()
                with folder.claim(number, wait) as mine:
                    if not mine:
                        continue
                    batches = pipeline.read_range(config, items, size, number * store.SHARD, store.SHARD, bad)
                    folder.write(number, _records(batches, encode, frozen, mesh, prompts, stop))
                begun += 1
                rate = begun * store.SHARD / (time.monotonic() - start)
                left = len(folder.missing()) * store.SHARD
                progress(f"{stage}: {rate:.1f} examples/s, {left} to go, {left / rate:.0f} s")
    took = time.monotonic() - start
    say(f"{stage}: {begun * store.SHARD} examples encoded in {took:.1f} s; {folder.size() / 1e6:.1f} MB in all")
    return folder.count


def _records(
    batches: Iterator[pipeline.Batch],
    encode: Callable[..., Any],
    frozen: Any,
    mesh: jax.sharding.Mesh,
    prompts: _Prompts | None,
    stop: Callable[[], None],
) -> Iterator[store.Element]:
    """What is kept of each example of the batches; `stop` is called before each batch, and may raise."""
    for batch in batches:
        stop()
        on_device = partitioning.put_batch({"frames": batch["frames"]}, mesh)
        made = jax.device_get(encode(frozen, on_device["frames"]))
        states = prompts(batch["tokens"]) if prompts else [None] * len(batch["tokens"])
        masked = made.get("masked", [None] * len(batch["tokens"]))
        for i in range(len(batch["tokens"])):
            element = {name: batch[name][i] for name in ("tokens", "level", "episode", "start")}
            yield elements.kept(element, made["moments"][i], masked[i], states[i])
