"""Which folder keeps the latents of a video being sampled, and what they follow from."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import shutil
from typing import Any, Sequence

import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.data.cache import identity
from nuwaxl_jax.hierarchy import frames as frames_lib
from nuwaxl_jax.hierarchy import ledger
from nuwaxl_jax.hierarchy import plan as plan_lib

_SECTIONS = ("text", "vae", "unet", "mtd", "diffusion", "sampler")
_TREE = ("segment_length", "depth", "strategy", "handover", "overlap")


def key_of(
    config: ml_collections.ConfigDict,
    bundle: networks_lib.Params,
    prompts: Sequence[str],
    prompt_index: np.ndarray,
    microbatch: Sequence[int],
) -> dict[str, Any]:
    """All that latents follow from, bit by bit, as JSON values.

    Chunks and the number of devices are not in it: they change no bit. The kind of device and jax's version are.
    """
    return dict(
        seed=config.seed,
        prompts=list(prompts),
        frames=hashlib.sha256(np.ascontiguousarray(prompt_index, np.int32).tobytes()).hexdigest(),
        config={name: config[name].to_dict() for name in _SECTIONS} | {"frame_size": config.data.frame_size},
        tree={name: config.hierarchy[name] for name in _TREE},
        microbatch=list(microbatch),
        weights=identity.of_tree(bundle),
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
    )


def open_folder(
    video: pathlib.Path, key: dict[str, Any], plans: Sequence[plan_lib.LevelPlan], latent_shape: Sequence[int]
) -> ledger.StoredLatents:
    """The latents of one video, in VIDEO.latents/<hash of the key>: unfinished ones of other keys are left alone."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return ledger.StoredLatents(_parent(video) / name, key, 1, plans, latent_shape)


def agree(
    stored: ledger.StoredLatents | None, plans: Sequence[plan_lib.LevelPlan], latent_shape: Sequence[int]
) -> frames_lib.FrameLatents:
    """The same latents on every host: the first one's as they are, a copy on the others (which pass None)."""
    if jax.process_count() == 1:
        return stored
    text = json.dumps(stored.state()).encode() if stored else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(size, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    state = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    array = stored.array if stored else frames_lib.FrameLatents(1, plans, latent_shape).array
    if state["made"]:
        array = np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(array)))
    return stored or ledger.ToldLatents(state, array, 1, plans, latent_shape)


def forget_others(video: pathlib.Path, kept: ledger.StoredLatents) -> None:
    """Removes the latents of videos whose file this one has replaced."""
    for other in _parent(video).iterdir():
        if other != kept.folder:
            shutil.rmtree(other, ignore_errors=True)


def _parent(video: pathlib.Path) -> pathlib.Path:
    return video.with_suffix(".latents")


def parse_redo(text: str) -> tuple[int, int]:
    """(level, segment) of 'LEVEL.SEGMENT'.

    Raises:
      ValueError: it is none.
    """
    if not re.fullmatch(r"\d+\.\d+", text):
        raise ValueError(f"--redo is {text!r}; give LEVEL.SEGMENT, as 1.7, counted from 0")
    level, segment = text.split(".")
    return int(level), int(segment)
