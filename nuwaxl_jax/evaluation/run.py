"""`--mode=eval`: what a trained model is worth on held-out videos, as one JSON record with its protocol.

Writes <workdir>/eval/eval.json, of the first story a strip of frames of every way of telling it, and where the world is
toons curves.png. What is found of single videos is kept in <workdir>/eval/scores as it comes: the same command goes on
after an interruption, and several hosts do each a share; the first writes the record.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
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
from nuwaxl_jax import provenance
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.evaluation import curves
from nuwaxl_jax.evaluation import denoising
from nuwaxl_jax.evaluation import held_out
from nuwaxl_jax.evaluation import ledger as ledger_lib
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import protocols
from nuwaxl_jax.evaluation import stories
from nuwaxl_jax.evaluation import versions
from nuwaxl_jax.training import interrupts

SHOWN = ("scene", "colour", "shape", "size", "count", "exact", "identity", "border_ratio")
FIDELITY = ("psnr", "ssim", "lpips")
STORY = "story_"  # begins the names of the story score's metrics
_COUNTS = ("num_frames", "num_shots", "num_characters", "curve")  # of a score, and no scores


def table(record: dict[str, Any]) -> str:
    """The scores as text, a row a way of telling."""
    told, lines = record["stories"], []
    if any("summary" in told[way] for way in told):
        means = {way: told[way]["summary"]["mean"] for way in told}
        lines += _columns(SHOWN, {way: [_number(mean.get(name)) for name in SHOWN] for way, mean in means.items()})
    measured = record["metrics"] | {stories.OTHER: record["others"]}
    names = list(dict.fromkeys(name for row in measured.values() for name in row))
    names = [name for name in names if name not in FIDELITY and not name.startswith(STORY)]  # which have lines
    if names:
        values = lambda row: [_number(row.get(name, {}).get("value")) for name in names]
        lines += _columns(names, {way: values(row) for way, row in measured.items()})
    if "vae_ceiling" in told:
        vae = told["vae_ceiling"]
        lpips = f", LPIPS {vae['lpips']:.4f}" if "lpips" in vae else ""
        lines.append(f"VAE: PSNR {vae['psnr']:.2f} dB, SSIM {vae['ssim']:.4f}{lpips}")
    errors = record["denoising"]
    lines.append("denoising error at t =" + "".join(f"{t:>9}" for t in errors["timesteps"]))
    for level, row in errors["levels"].items():
        lines.append(f"  tree level {level}        " + "".join(f"{e:>9.4f}" for e in row))
    return "\n".join(lines)


def _columns(names: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    widths = [max(14, len(name) + 2) for name in names]
    lines = [f"{'':16}" + "".join(f"{name:>{width}}" for name, width in zip(names, widths))]
    return lines + [
        f"{way:16}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths)) for way, cells in rows.items()
    ]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"


@dataclasses.dataclass(frozen=True)
class Scope:
    """How much is evaluated.

    Attributes:
      told: held-out videos that are told. frames: of each; 0 = the full tree.
      others: real videos that are measured beside them; -1 = as many as are told.
      ways: of telling, of `stories.WAYS`.
      block, blocks, stills: as of `measures.choose`.
    """

    told: int = 20
    frames: int = 0
    others: int = -1
    ways: Sequence[str] = stories.USUAL
    block: int = 16
    blocks: int = 16
    stills: int = 16


def _measures(scope: Scope, measures: measures_lib.Measures | None) -> measures_lib.Measures | None:
    """Those to use; says what is missing."""
    if measures is None:
        return None
    if scope.told < protocols.MIN_VIDEOS:
        print(f"distances need at least {protocols.MIN_VIDEOS} stories; nothing is measured", file=sys.stderr)
        return None
    for note in measures.notes():
        print(f"note: {note}", file=sys.stderr)
    return measures if measures.protocol() else None


def _check(scope: Scope, bundle: networks_lib.Params) -> None:
    """Refuses ways that cannot be told."""
    unknown = sorted(set(scope.ways) - set(stories.WAYS))
    if unknown or "ground_truth" not in scope.ways:
        problem = f"{unknown[0]} is unknown" if unknown else "ground_truth is missing, by which all are measured"
        raise ValueError(f"--ways: {problem}; choose of {', '.join(stories.WAYS)}")
    if not bundle["denoisers"] and any(way in stories.GENERATORS for way in scope.ways):
        raise ValueError("--weights: holds a VAE alone; use --ways=ground_truth,vae_ceiling")


def _protocol(config: ml_collections.ConfigDict, card: dict[str, Any], real: dict[str, Any]) -> dict[str, Any]:
    """All that the results follow from; `real`: of the real videos and what is read of them."""
    return {
        "seed": config.seed,
        "weights": card,
        **{name: config[name].to_dict() for name in ("sampler", "hierarchy", *denoising.MODEL)},
        "precision": "float32",
        "parameters": "exponential moving average",
        **real,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def run(
    config: ml_collections.ConfigDict,
    bundle: networks_lib.Params,
    card: dict[str, Any],
    workdir: str,
    *,
    scope: Scope,
    measures: measures_lib.Measures | None,
    real_scores: str = "",
) -> dict[str, Any]:
    """Evaluates a bundle; returns the record it wrote (of several processes the first).

    real_scores: folder for what is found of real videos, which evaluations may share; '' = with everything else.

    Raises:
      SystemExit: 42, interrupted; the same call goes on.
      ValueError: too few held-out videos, or an unknown way.
    """
    _check(scope, bundle)
    card = card | {"arrays_sha256": weights_lib.digest_of(bundle)}
    num_frames = scope.frames or config_lib.window_frames(config)
    measures = _measures(scope, measures)
    others = 0 if measures is None else scope.told if scope.others < 0 else scope.others
    which = measures_lib.choose(num_frames, scope.block, scope.blocks, scope.stills)
    videos = held_out.HeldOut(config, scope.told + others, num_frames)
    networks = networks_lib.build(config)
    out = pathlib.Path(workdir) / "eval"
    out.mkdir(parents=True, exist_ok=True)
    real = {
        "frames": num_frames,
        "data": videos.identity(),
        "segment_length": config.hierarchy.segment_length,
        "measures": measures.protocol() if measures else {},
        "read": dataclasses.asdict(which) if measures else {},
        "versions": versions.ALL,
    }
    protocol = hosts.of_first(_protocol(config, card, real))
    ledger = ledger_lib.Ledger(out / "scores", protocol)
    errors = ledger_lib.Ledger(out / "scores", {"denoising": hosts.of_first(denoising.identity(config, card))})
    kept = ledger_lib.Ledger(real_scores or out / "scores", {"real": real, "stories": scope.told})

    def keep_strip(way: str, story: int, frames: np.ndarray) -> None:
        if story == 0:
            shown = [frames[i] for i in np.linspace(0, len(frames) - 1, 16).astype(int)]
            Image.fromarray(np.concatenate(shown, axis=1)).save(job.ledger_of(way).folder / f"{way}_strip.png")

    line = f"{out}: interrupted; the same command goes on with what is kept in {ledger.folder}"
    with interrupts.apart(line, "stopping after this device call; stories scored are kept") as stop:
        of = dict(stories=scope.told, others=others, measures=measures, which=which, ledger=ledger, real=kept)
        job = stories.Job(config, networks, bundle, videos, **of, on_video=keep_strip, stop=stop)
        told = stories.tell(job, scope.ways)
        levels = range(config.hierarchy.depth if bundle["denoisers"] else 0)
        for level in levels:
            if ledger_lib.is_mine(level) and errors.read("denoising", level) is None:
                found = denoising.of_level(config, networks, bundle, level, stop=stop)
                errors.write("denoising", level, {"errors": found})
        denoised = errors.collect("denoising", len(levels), stop)
    beside = _others(job)
    record = {
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code": provenance.code(),
        "protocol": protocol | {"stories": scope.told, "others": others},
        "notes": measures.notes() if measures else [],
        "metrics": _metrics(job, scope.ways, protocol, beside),
        "others": beside,
        "denoising": {
            "timesteps": list(denoising.timesteps(config)),
            "levels": {str(level): kept["errors"] for level, kept in enumerate(denoised)},
            "clips": denoising.NUM_CLIPS,
        },
        "stories": told,
    }
    if jax.process_index() == 0:
        strips = [job.ledger_of(way).folder / f"{way}_strip.png" for way in told]
        _write(out, strips, record)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the first host has written the evaluation")
    return record


def _metrics(job: stories.Job, ways: Sequence[str], protocol: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """way -> metric -> record, all against the told stories' own videos."""
    data, out = job.videos.protocol(job.stories), {}
    arrays = lambda way: [job.ledger_of(way).arrays(way, i) for i in range(job.stories)]
    real = arrays("ground_truth") if job.measures else []
    what = ("weights", "seed", "sampler", "hierarchy", *denoising.MODEL, "precision", "parameters")
    model = {name: protocol[name] for name in what}
    for way in ways:
        subject = {"way": way, "code": provenance.code()} | (model if way != "ground_truth" else {})
        out[way] = _of_single_videos(job, way, data, subject)
        if job.measures is None:
            continue
        made = real if way == "ground_truth" else arrays(way)
        out[way] |= protocols.similarity(made, job.which, job.measures, data=data, subject=subject)
        if way != "ground_truth":
            common = dict(data=data, subject=subject, floor=others)
            out[way] |= protocols.records(real, made, job.which, job.measures, paired=True, **common)
    return out


def _of_single_videos(job: stories.Job, way: str, data: dict[str, Any], subject: dict[str, Any]) -> dict[str, Any]:
    """metric -> record, of the story score and of reconstructions."""
    results = [job.ledger_of(way).read(way, i) for i in range(job.stories)]
    common = {"frames": job.videos.num_frames, "real": data}
    scores = [result.get("score", {}) for result in results]
    told = {f"{STORY}{name}": [score[name] for score in scores] for name in scores[0] if name not in _COUNTS}
    reader = {"read by": "evaluation/story_score.py", "version of scores": versions.STORY_SCORE}
    reader |= {"segment_length": job.config.hierarchy.segment_length}
    out = protocols.means(told, common | reader, subject)
    for name in (name for name in FIDELITY if name in results[0]):
        by = job.measures.perceptual.protocol() if name == "lpips" else {"read by": "evaluation/image_metrics.py"}
        out |= protocols.means({name: [result[name] for result in results]}, common | by, subject)
    return out


def _others(job: stories.Job) -> dict[str, Any]:
    """metric -> record, of videos of other stories: what these distances are between real videos."""
    if job.measures is None or job.others < protocols.MIN_VIDEOS:
        return {}
    job.real.collect(stories.OTHER, job.others, job.stop)
    real, made = (
        [job.real.arrays(way, i) for i in range(count)]
        for way, count in (("ground_truth", job.stories), (stories.OTHER, job.others))
    )
    common = dict(data=job.videos.protocol(job.stories), subject={"way": stories.OTHER})
    return protocols.records(real, made, job.which, job.measures, paired=False, **common)


def _write(out: pathlib.Path, strips: Sequence[pathlib.Path], record: dict[str, Any]) -> None:
    """The files of an evaluation, of strips of frames, one a way."""
    told = record["stories"]
    files.write_json(out / "eval.json", record)
    sheet = np.concatenate([np.asarray(Image.open(strip)) for strip in strips], axis=0)
    Image.fromarray(sheet).save(out / "story0.png")
    made = "eval.json, story0.png"
    if all("summary" in told[way] for way in told):
        lines = {way: told[way]["summary"]["curve"] for way in told}
        curves.draw(lines, record["protocol"]["frames"]).save(out / "curves.png")
        made += ", curves.png"
    for note in sorted({note for row in record["metrics"].values() for one in row.values() for note in one["notes"]}):
        print(f"note: {note}", file=sys.stderr)
    print(table(record))
    print(f"{out}/{made} (rows of the picture: {', '.join(told)})", file=sys.stderr)
