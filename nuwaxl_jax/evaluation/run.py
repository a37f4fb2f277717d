"""`--mode=eval`: what a trained model is worth on held-out toons stories, as one JSON record with its protocol.

Writes <workdir>/eval/eval.json, curves.png and, of the first story, a strip of frames of every way of telling it. The
scores of single stories are kept in <workdir>/eval/scores as they come: the same command goes on after an interruption,
and several hosts do each a share; the first writes the record.
"""

from __future__ import annotations

import datetime
import os
import pathlib
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np
from PIL import Image

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import hosts
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.evaluation import curves
from nuwaxl_jax.evaluation import denoising
from nuwaxl_jax.evaluation import stories
from nuwaxl_jax.training import interrupts

SHOWN = ("scene", "colour", "shape", "size", "count", "exact", "identity", "border_ratio")


def table(record: dict[str, Any]) -> str:
    """The scores as text, a row a way of telling."""
    ways = list(record["stories"])
    lines = [f"{'':16}" + "".join(f"{name:>14}" for name in SHOWN)]
    for way in ways:
        mean = record["stories"][way]["summary"]["mean"]
        lines.append(f"{way:16}" + "".join(f"{_number(mean.get(name)):>14}" for name in SHOWN))
    vae = record["stories"]["vae_ceiling"]
    lines.append(f"VAE: PSNR {vae['psnr']:.2f} dB, SSIM {vae['ssim']:.4f}")
    errors = record["denoising"]
    lines.append("denoising error at t =" + "".join(f"{t:>9}" for t in errors["timesteps"]))
    for level, row in errors["levels"].items():
        lines.append(f"  tree level {level}        " + "".join(f"{e:>9.4f}" for e in row))
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"


def run(
    config: ml_collections.ConfigDict,
    bundle: networks_lib.Params,
    card: dict[str, Any],
    workdir: str,
    *,
    num_stories: int,
    num_frames: int = 0,
) -> dict[str, Any]:
    """Evaluates a bundle; returns the record it wrote (of several processes the first).

    Raises:
      SystemExit: 42, interrupted; the same call goes on.
      ValueError: the config's data is not toons, which alone has a ground truth to read.
    """
    if config.data.source != "toons":
        raise ValueError(
            f"data.source: the story score reads toons alone, not {config.data.source!r}; use a toons model"
        )
    num_frames = num_frames or config_lib.window_frames(config)
    networks = networks_lib.build(config)
    out = pathlib.Path(workdir) / "eval"
    out.mkdir(parents=True, exist_ok=True)
    protocol = {
        "frames": num_frames,
        "split": "test",
        "seed": config.seed,
        "weights": card,
        "sampler": config.sampler.to_dict(),
        "hierarchy": config.hierarchy.to_dict(),
        "precision": "float32",
        "parameters": "exponential moving average",
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
    }
    protocol = hosts.of_first(protocol)
    ledger = stories.Ledger(out / "scores", protocol)

    def keep_strip(way: str, story: int, frames: np.ndarray) -> None:
        if story == 0:
            shown = [frames[i] for i in np.linspace(0, len(frames) - 1, 16).astype(int)]
            Image.fromarray(np.concatenate(shown, axis=1)).save(ledger.folder / f"{way}_strip.png")

    line = f"{out}: interrupted; the same command goes on with what is kept in {ledger.folder}"
    with interrupts.apart(line, "stopping after this device call; stories scored are kept") as stop:
        sizes = dict(num_stories=num_stories, num_frames=num_frames)
        told = stories.tell(config, networks, bundle, **sizes, ledger=ledger, on_video=keep_strip, stop=stop)
        for level in range(config.hierarchy.depth):
            if stories.is_mine(level) and ledger.read("denoising", level) is None:
                errors = denoising.of_level(config, networks, bundle, level, stop=stop)
                ledger.write("denoising", level, {"errors": errors})
        denoised = ledger.collect("denoising", config.hierarchy.depth, stop)
    record = {
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "protocol": protocol | {"stories": num_stories},
        "denoising": {
            "timesteps": list(denoising.timesteps(config)),
            "levels": {str(level): kept["errors"] for level, kept in enumerate(denoised)},
            "clips": denoising.NUM_CLIPS,
        },
        "stories": told,
    }
    if jax.process_index() == 0:
        _write(out, ledger.folder, record)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the first host has written the evaluation")
    return record


def _write(out: pathlib.Path, kept: pathlib.Path, record: dict[str, Any]) -> None:
    """The files of an evaluation; strips of frames are in `kept`."""
    told = record["stories"]
    files.write_json(out / "eval.json", record)
    sheet = np.concatenate([np.asarray(Image.open(kept / f"{way}_strip.png")) for way in told], axis=0)
    Image.fromarray(sheet).save(out / "story0.png")
    curves.draw({way: told[way]["summary"]["curve"] for way in told}, record["protocol"]["frames"]).save(
        out / "curves.png"
    )
    print(table(record))
    print(f"{out}/eval.json, curves.png, story0.png (rows: {', '.join(told)})", file=sys.stderr)
