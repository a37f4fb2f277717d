"""Looks at every frame of a data set before a run does: what is used, what is not and why, and what looks wrong.

    found -> readable -> of at least n frames -> captioned -> undamaged -> kept

Damage inside a file shows only when it is decoded with the decoder's error marks on, so every frame is decoded once, at
a small size. Of what decodes, these are told, and used all the same:

    hardly changes       no frame differs from the first by more than 1 of 255 levels on average
    nearly one colour    no frame's pixels have a standard deviation above 2 levels
    repeats frames       over 40 % of the frames equal the one before: a slower video in a faster container
    shows the same       as another video: eight frames, each reduced to 64 gradients, differ in at most 15 % of bits
    variable frame rate  the longest pause between frames is over twice the median
    odd frame rate       below 5 or above 121 frames a second
    caption too long     cut after 10,000 characters
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import os
from typing import Any

import ml_collections
import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax import video_io
from nuwaxl_jax.data import clips
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey as survey_lib

_SIZE = 32  # pixels a side, to which frames are decoded here
_HASH_FRAMES, _HASH_SIDE = 8, 8
_SAME_BITS = 0.15  # clips of other scenes differ in about half
_STILL_LEVELS, _FLAT_LEVELS = 1.0, 2.0
_REPEATED = 0.4
_COMPARED = 20_000  # videos among which the same one is looked for


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something odd about a video that is used all the same."""

    name: str
    kind: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Look:
    """What decoding a video told."""

    name: str
    findings: tuple[Finding, ...] = ()
    damage: str = ""
    signature: np.ndarray | None = None  # bool [_HASH_FRAMES * 64]; None: too plain to tell apart


def _gradients(frame: np.ndarray) -> np.ndarray:
    """bool [64] of a frame, uint8 [_SIZE, _SIZE, 3]: whether brightness rises from cell to cell, left to right."""
    grey = frame.astype(np.float32).mean(-1)
    rows = grey.reshape(_HASH_SIDE, -1, _SIZE).mean(1)
    edges = np.linspace(0, _SIZE, _HASH_SIDE + 2).astype(int)
    cells = np.stack([rows[:, a:b].mean(1) for a, b in zip(edges, edges[1:])], axis=1)  # [8, 9]
    return (np.diff(cells, axis=1) > 0).reshape(-1)


def look_at(video: survey_lib.Video, limits: video_io.Limits = video_io.Limits()) -> Look:
    """Decodes every frame of a video, a chunk at a time."""
    name, count = video.entry.name, video.index.info.num_frames
    wanted = set(np.linspace(0, count - 1, _HASH_FRAMES).astype(int).tolist())
    first = before = None
    change = spread = repeated = 0.0
    bits, number = {}, 0
    try:
        with survey_lib.open_reader(video.entry, limits, video.index) as reader:
            for chunk in reader.chunks(size=_SIZE):
                first = chunk[0].astype(np.float32) if first is None else first
                change = max(change, np.abs(chunk - first).mean((1, 2, 3)).max())
                spread = max(spread, chunk.std((1, 2, 3)).max())
                row = chunk if before is None else np.concatenate([before, chunk])
                repeated += np.count_nonzero((row[1:] == row[:-1]).all((1, 2, 3)))
                before = chunk[-1:]
                for i, frame in enumerate(chunk, start=number):
                    if i in wanted:
                        bits[i] = _gradients(frame)
                number += len(chunk)
    except (video_io.VideoError, OSError) as error:
        return Look(name, damage=" ".join(str(error).split()))
    findings = list(_of_frames(name, change, spread, repeated / max(1, count - 1))) + list(_of_times(video))
    if any(len(caption.text) >= records.MAX_CHARACTERS - 1 for caption in video.entry.captions):
        findings.append(Finding(name, "caption too long"))
    plain = change <= _STILL_LEVELS or spread <= _FLAT_LEVELS
    index = np.linspace(0, count - 1, _HASH_FRAMES).astype(int).tolist()
    return Look(name, tuple(findings), signature=None if plain else np.concatenate([bits[i] for i in index]))


def _of_frames(name: str, change: float, spread: float, repeated: float):
    if spread <= _FLAT_LEVELS:
        yield Finding(name, "nearly one colour", f"standard deviation {spread:.1f} of 255")
    elif change <= _STILL_LEVELS:
        yield Finding(name, "hardly changes", f"{change:.1f} of 255 levels from the first frame")
    elif repeated > _REPEATED:
        yield Finding(name, "repeats frames", f"{100 * repeated:.0f} % equal the one before")


def _of_times(video: survey_lib.Video):
    name, fps = video.entry.name, video.index.info.fps
    pauses = np.diff(video.index.times)
    if len(pauses) > 1 and pauses.max() > 2 * np.median(pauses):
        detail = f"{pauses.max():.3g} s between two frames, {np.median(pauses):.3g} s as a rule"
        yield Finding(name, "variable frame rate", detail)
    if not 5 <= fps <= 121:
        yield Finding(name, "odd frame rate", f"{fps:g} frames a second")


def same(looks: Sequence[Look]) -> list[Finding]:
    """Videos that show what one before them shows."""
    told = [look for look in looks if look.signature is not None][:_COMPARED]
    if not told:
        return []
    signs = np.stack([look.signature for look in told]).astype(np.float32) * 2 - 1  # [V, bits]
    out = []
    for i in range(1, len(told)):
        differing = (1 - signs[:i] @ signs[i] / signs.shape[1]) / 2
        nearest = int(np.argmin(differing))
        if differing[nearest] <= _SAME_BITS:
            detail = f"as {told[nearest].name}, {100 * differing[nearest]:.0f} % of the bits differ"
            out.append(Finding(told[i].name, "shows the same", detail))
    return out


def check(
    config: ml_collections.ConfigDict,
    *,
    decode: bool = True,
    out: str = "",
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Reports on all videos at `config.data.path`, of every split.

    Args:
      config: reads `data` and `hierarchy`.
      decode: False looks at captions, containers and packets alone.
      out: a .json file for the report; '' writes none.
      say: takes the report's lines.
      progress: takes a line that replaces the one before.

    Returns:
      The report: path, layout, funnel, left_out, findings, levels (how many videos each level can be drawn from),
      splits, frames, hours.

    Raises:
      ValueError: no video is left; the report has been given and written before.
    """
    path, data = config.data.path, config.data
    listing = places.read(path, data.captions)
    total = len(listing.entries)
    survey = survey_lib.survey(
        listing.entries,
        min_frames=config.hierarchy.segment_length,
        fps=data.fps,
        progress=lambda done: progress(f"reading: {done} of {total} videos"),
    )
    looks: list[Look] = []
    if decode:
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for look in pool.map(look_at, survey.videos):
                looks.append(look)
                progress(f"decoding: {len(looks)} of {len(survey.videos)} videos")
    report = _report(config, listing, survey, looks, decode)
    if out:
        files.write_json(out, report)
    for line in _text(report):
        say(line)
    if not report["funnel"]["kept"]:
        raise ValueError(f"data.path: no video at {data.path} is left of {report['funnel']['found']}; see the reasons")
    return report


def _report(
    config: ml_collections.ConfigDict,
    listing: records.Listing,
    survey: survey_lib.Survey,
    looks: Sequence[Look],
    decode: bool,
) -> dict[str, Any]:
    damaged = [records.LeftOut(look.name, "undamaged", "damaged inside", look.damage) for look in looks if look.damage]
    gone = {each.name for each in damaged}
    kept = [video for video in survey.videos if video.entry.name not in gone]
    left_out = [*listing.left_out, *survey.left_out, *damaged]
    unlisted = sum(each.step == "listed" for each in listing.left_out)
    funnel = {"found": survey.funnel["found"] + unlisted} | {k: v for k, v in survey.funnel.items() if k != "found"}
    funnel |= ({"undamaged": len(kept)} if decode else {}) | {"kept": len(kept)}
    funnel["kept"] = funnel.pop("kept")  # last
    lengths = np.array([survey_lib.length(video.index, config.data.fps) for video in kept], np.int64)
    hierarchy = config.hierarchy
    sampler = clips.ClipSampler(
        hierarchy.segment_length, hierarchy.depth, hierarchy.segment_length, tuple(config.data.level_weights)
    )
    split_of = {}
    for split in survey_lib.SPLITS:
        for entry in survey_lib.of_split(listing.entries, split, config.data.eval_fraction) or ():
            split_of[entry.name] = split
    splits = [split_of.get(video.entry.name) for video in kept]
    findings = [finding for look in looks for finding in look.findings] + same([k for k in looks if not k.damage])
    return dict(
        path=str(config.data.path),
        layout=listing.layout,
        decoded=decode,
        funnel=funnel,
        left_out=[dataclasses.asdict(each) for each in left_out],
        findings=[dataclasses.asdict(each) for each in findings],
        levels={str(level): count for level, count in clips.level_coverage(sampler, lengths).items()},
        splits={name: splits.count(name) if split_of else len(kept) for name in survey_lib.SPLITS},
        frames=int(lengths.sum()),
        hours=float(sum(video.index.info.seconds for video in kept)) / 3600,
    )


def _text(report: dict[str, Any]) -> list[str]:
    """The report for reading."""
    lines = [
        f"{report['path']} ({report['layout']}): "
        + " -> ".join(f"{count} {step}" for step, count in report["funnel"].items())
    ]
    lines += survey_lib.lines(records.LeftOut(**each) for each in report["left_out"])
    kinds: dict[str, list[str]] = {}
    for finding in report["findings"]:
        detail = f" ({finding['detail']})" if finding["detail"] else ""
        kinds.setdefault(finding["kind"], []).append(finding["name"] + detail)
    for kind, named in kinds.items():
        line = f"  {len(named)} to look at, {kind}: {'; '.join(named[:3])}{'; ..' if len(named) > 3 else ''}"
        lines.append(records.printable(line))
    lines.append(
        f"  {report['frames']:,} frames, {report['hours']:.2f} h; "
        + ", ".join(f"{name} {count}" for name, count in report["splits"].items())
        + "; long enough for "
        + ", ".join(f"level {level}: {count}" for level, count in report["levels"].items())
    )
    return lines
