"""How the arms of a study are told and read: one protocol for all of them, and the row of what came out."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any

import numpy as np

from nuwaxl_jax import files

BLOCKS = STILLS = 8  # of a video, spread evenly over it
PROTOCOL = (
    f"Read of each video are {BLOCKS} blocks of 16 frames, 16 frames over all of it and {STILLS} single frames,\n"
    "spread evenly, both ends with them; arms tell with their moving averages."
)


def flags(frames: int, stories: int, ways: Sequence[str], real: pathlib.Path, others: int) -> list[str]:
    """Of `--mode=eval`.

    Args:
      frames, stories: what is told. ways: of telling.
      real: folder that all arms share for what is found of real videos.
      others: real videos that are measured beside them.
    """
    return [
        *(f"--frames={frames}", f"--stories={stories}", f"--others={others}", f"--ways={','.join(ways)}"),
        *(f"--blocks={BLOCKS}", f"--stills={STILLS}", f"--real_scores={real}"),
        "--config.hierarchy.chunk=5",  # one micro-batch a call: the same programs at every length
    ]


def row(way: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of an arm's record: story scores, metrics, 'denoising_<level>', 'psnr', 'ssim', 'seconds', 'calls'.

    'curve' has the story over the frames; 'weights' and 'code' say what was told by what.
    """
    told = record["stories"].get(way, {})
    out = dict(told.get("summary", {}).get("mean", {}))
    measured = record["metrics"].get(way) or record["metrics"].get("vae_ceiling") or {}
    out |= {name: metric["value"] for name, metric in measured.items() if not name.startswith("story_")}
    for level, errors in record["denoising"]["levels"].items():
        out[f"denoising_{level}"] = round(float(np.mean(errors)), 5)
    if "cost" in told:
        out |= {"seconds": told["cost"]["seconds"], "calls": told["cost"]["serial_denoiser_calls"]}
    curve = told.get("summary", {}).get("curve", {})
    out["curve"] = {name: curve[name] for name in ("frame", "exact", "scene", "position") if name in curve}
    out |= {"weights": record["protocol"]["weights"]["arrays_sha256"], "code": record["code"]}
    return {name: value for name, value in out.items() if value is not None}


def protocol(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Metric -> protocol, of a record's metrics by way; the story score's are in the key of what is told."""
    found = {name: record["protocol"] for of in metrics.values() for name, record in of.items()}
    return {name: protocol for name, protocol in found.items() if not name.startswith("story_")}


def keep_protocol(file: pathlib.Path, frames: str, now: Mapping[str, Any]) -> None:
    """Keeps how videos of so many frames are read, for all arms of a study.

    Raises:
      SystemExit: rows of that length are of another protocol.
    """
    kept = json.loads(file.read_text()) if file.is_file() else {}
    before = kept.get(frames, {})
    for name in sorted(set(before) & set(now)):
        other = sorted(key for key in {*before[name], *now[name]} if before[name].get(key) != now[name].get(key))
        if other:
            raise SystemExit(
                f"{file}: {name} of {frames} frames has been read with another {other[0]}; rows that are read otherwise"
                " do not compare: move results.json and protocols.json away, or give another --work"
            )
    if now.keys() - before.keys():
        files.write_json(file, kept | {frames: before | dict(now)})


def floor(record: Mapping[str, Any]) -> dict[str, Any]:
    """The distances of other real stories in a record."""
    return {name: metric["value"] for name, metric in record["others"].items()} | {"code": record["code"]}
