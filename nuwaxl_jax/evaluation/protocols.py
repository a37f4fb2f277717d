"""Metrics of a set of videos against a set of real ones, each a record that says exactly what was measured.

  fvd_16          FVD of one block of 16 frames a video: every video gives one clip, drawn by its number.
  b_fvd_16        B-FVD-16 (arXiv:2303.12346, section 4): the video is cut into blocks of 16 frames. The paper averages
                  the "FVD of the clips", which is not defined for a single clip; ours is the FVD over videos at each
                  block's place, then the mean over places.
  b_fvd_16_pooled the same blocks in one pool, places mixed.
  fvd_spread_16   FVD of 16 frames spread over the whole video: its long range, which blocks do not see. Ours.
  avg_fid         Avg-FID: FID of the single frames of all videos. With FID's Inception; `frechet_stills` is the same
                  with another network, and no FID.
  clip_similarity mean cosine of frames and their own captions by CLIP.
  psnr, ssim, lpips, story_*: means over videos of what is found of each by itself: of a reconstruction and its
                  original, and of the story score.

A record holds `value`, `interval` (intervals.METHOD), `protocol` (what two results must have in common to be compared),
`subject` (what was measured: it may differ), `notes`, where the number is not what it seems, and `floor`, what the
same distance is of other real videos, where that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import hashlib
from typing import Any

import numpy as np

from nuwaxl_jax.evaluation import frechet
from nuwaxl_jax.evaluation import intervals
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import versions

MIN_VIDEOS = 2  # fewer have no covariance

Features = Sequence[Mapping[str, np.ndarray]]  # of each video, as `measures.Measures.read` gives them


def _fvd(real: np.ndarray, made: np.ndarray) -> float:
    """Of [videos, blocks, d], one block of each video, drawn by its number."""
    one = lambda clips: clips[np.arange(len(clips)), _drawn(len(clips), clips.shape[1])]
    return frechet.distance_of_samples(one(real), one(made))


def _drawn(videos: int, blocks: int) -> np.ndarray:
    return np.random.default_rng(16).integers(blocks, size=videos)


def by_place(real: np.ndarray, made: np.ndarray) -> list[float]:
    """The Frechet distance at each place, of features [videos, places, d]."""
    return [frechet.distance_of_samples(real[:, i], made[:, i]) for i in range(real.shape[1])]


def b_fvd(real: np.ndarray, made: np.ndarray) -> float:
    return float(np.mean(by_place(real, made)))


def pooled(real: np.ndarray, made: np.ndarray) -> float:
    """Of [videos, n, d], all in one set each."""
    return frechet.distance_of_samples(real.reshape(-1, real.shape[2]), made.reshape(-1, made.shape[2]))


def _note(videos: int, samples: int, width: int) -> list[str]:
    """Of the smaller set: how many videos, samples of all of them, features of a sample."""
    if videos > width:
        return []
    what = f"{samples} samples of {width} features: covariances are singular"
    if samples > width:
        what = f"{videos} videos, of which {samples} samples of {width} features depend on one another"
    return [
        f"{what}, and the distance is biased upwards; other real videos, measured likewise, say by how much (floor)."
        " Compare within this protocol only"
    ]


def records(
    real: Features,
    made: Features,
    frames: measures_lib.Frames,
    measures: measures_lib.Measures,
    *,
    paired: bool,
    data: Mapping[str, Any],
    subject: Mapping[str, Any],
    floor: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """name -> record, of every metric that the networks at hand and the number of frames allow.

    Args:
      real, made: features of each video.
      paired: the made videos tell the real ones' captions, in their order.
      frames: which frames they are of.
      data: what the real videos are.
      subject: what the made videos are.
      floor: records of other real videos against the same real ones.

    Raises:
      ValueError: fewer than two videos in a set.
    """
    for name, videos in (("real", real), ("made", made)):
        if len(videos) < MIN_VIDEOS:
            raise ValueError(f"{name} videos: {len(videos)} are too few for a distance; at least {MIN_VIDEOS}")
    common = {
        "version": versions.PROTOCOLS,
        "frames": frames.num_frames,
        "real": {**data, "videos": len(real), "digest": digest(real)},
        "videos": len(made),
        "captions": "those of the real videos" if paired else "others",
        "interval": intervals.METHOD,
    }
    gather = lambda videos, name: np.stack([video[name] for video in videos])
    out = {}

    def add(name: str, kind: str, statistic: Any, details: dict[str, Any], samples: int, more: Any = None) -> None:
        network = measures.clips if kind in ("clips", "spread") else measures.stills
        assert network is not None
        sets = gather(real, kind), gather(made, kind)
        out[name] = {
            "value": round(statistic(*sets), 6),
            "interval": intervals.rounded(intervals.of(statistic, *sets, paired=paired)),
            "protocol": common | network.protocol() | details,
            "subject": dict(subject),
            "notes": _note(number, number * samples, network.width)
            + ([] if network.standard else ["weights are not the standard ones"]),
        } | (more(*sets) if more else {})
        if floor and name in floor:
            of = floor[name]
            out[name]["floor"] = {"value": of["value"], "videos": of["protocol"]["videos"], **of["subject"]}

    x, number = frames.block, min(len(real), len(made))
    if "clips" in real[0]:
        blocks = {"block": x, "hop": x, "blocks": list(frames.blocks)}
        each = lambda real, made: {"by_block": [round(value, 4) for value in by_place(real, made)]}
        add(f"b_fvd_{x}", "clips", b_fvd, blocks, 1, each)
        add(f"b_fvd_{x}_pooled", "clips", pooled, blocks, len(frames.blocks))
        add(f"fvd_{x}", "clips", _fvd, blocks | {"drawn": "one block a video, default_rng(16)"}, 1)
    if "spread" in real[0]:
        add(f"fvd_spread_{x}", "spread", pooled, {"clip": list(frames.spread)}, 1)
    if "stills" in real[0]:
        name = "avg_fid" if measures.stills and measures.stills.fid else "frechet_stills"
        add(name, "stills", pooled, {"stills": list(frames.stills)}, len(frames.stills))
    return out


def similarity(
    made: Features,
    frames: measures_lib.Frames,
    measures: measures_lib.Measures,
    *,
    data: Mapping[str, Any],
    subject: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """{'clip_similarity': record}, {} without CLIP; arguments as of `records`, but `data`: what the captions are."""
    if measures.similarity is None:
        return {}
    cosines = np.stack([video["similarity"] for video in made])
    common = {"version": versions.PROTOCOLS, "frames": frames.num_frames, "videos": len(made)}
    common |= {"captions of": dict(data)}
    record = {
        "value": round(float(cosines.mean()), 6),
        "interval": intervals.rounded(intervals.of_mean(cosines.mean(1))),
        "protocol": common | measures.similarity.protocol() | {"stills": list(frames.stills)},
        "subject": dict(subject),
        "notes": [],
    }
    return {"clip_similarity": record}


def means(
    found: Mapping[str, Sequence[float | None]],
    protocol: Mapping[str, Any],
    subject: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """name -> record, of numbers of single videos; {} of what no video has.

    Args:
      found: name -> number of each video, None where a video has nothing that could be measured.
      protocol: of all of them: which videos, and what reads them.
      subject: what was measured.
    """
    out = {}
    for name, values in found.items():
        known = np.array([value for value in values if value is not None], np.float64)
        if not len(known):
            continue
        missing = len(values) - len(known)
        out[name] = {
            "value": round(float(known.mean()), 6),
            "interval": intervals.rounded(intervals.of_mean(known)),
            "protocol": {"version": versions.PROTOCOLS, "videos": len(values), "interval": intervals.METHOD}
            | dict(protocol),
            "subject": dict(subject),
            "notes": [f"not to be measured in {missing} of {len(values)} videos"] if missing else [],
        }
    return out


def digest(videos: Features) -> str:
    """SHA-256 of what was read of these videos, in their order."""
    seen = functools.reduce(lambda hashed, video: hashed + video["digest"].tobytes(), videos, b"")
    return hashlib.sha256(seen).hexdigest()
