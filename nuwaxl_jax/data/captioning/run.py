"""`--mode=data --caption`: captions for frames at a stride of every video, into one captions.jsonl.

Each video's captions are written as soon as they are made, into a folder beside the result, so a run that was stopped
goes on with the next video, and other filters or overrides need no captioning again.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any, Callable

import ml_collections
import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax import video_io
from nuwaxl_jax.data.captioning import captioners
from nuwaxl_jax.data.captioning import filters
from nuwaxl_jax.data.intake import clock
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey as survey_lib

SIZE = 384  # pixels of the short side; what GIT and BLIP look at

_BATCH = 16  # frames handed over at a time


def run(
    config: ml_collections.ConfigDict,
    captioner: captioners.Captioner,
    out: str,
    *,
    stride: float = 1.0,
    overrides: str = "",
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Captions all videos at `config.data.path`.

    Args:
      config: reads `data`.
      captioner: who captions.
      out: the .jsonl file to write; `out` + '.parts' is the folder that lets a stopped run go on.
      stride: seconds from captioned frame to captioned frame.
      overrides: a jsonl file of captions written by hand, applied last; '' for none.

    Returns:
      Counts: videos, unreadable, frames, filtered (by reason), overridden, kept.

    Raises:
      CaptioningError: the captioner failed, or the parts are of other settings.
      ValueError: no video can be read.
    """
    listing = places.read(config.data.path, config.data.captions)
    survey = survey_lib.survey(listing.entries, require_captions=False)
    if not survey.videos:
        raise ValueError(f"data.path: no video at {config.data.path} can be read; see --mode=data --check")
    parts = pathlib.Path(f"{out}.parts")
    _settle(parts, dict(model=captioner.model, revision=captioner.revision, stride=stride, size=SIZE))
    lines, left_out = [], [*survey.left_out]
    for done, video in enumerate(survey.videos, start=1):
        try:
            lines += _part(parts, video, captioner, stride)
        except video_io.VideoError as error:
            left_out.append(records.LeftOut(video.entry.name, "undamaged", "damaged inside", str(error)))
        progress(f"captioning: {done} of {len(survey.videos)} videos")
    frames = len(lines)
    lines, gone = filters.apply(lines)
    used = 0
    if overrides:
        lines, used = filters.overrule(lines, overrides)
    files.write_bytes(
        out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "surrogateescape")
    )
    counts = dict(
        videos=len(survey.videos),
        left_out=len(left_out),
        frames=frames,
        filtered=dict(gone),
        overridden=used,
        kept=len(lines),
    )
    went = ", ".join(f"{count} {reason}" for reason, count in gone.most_common()) or "none"
    made = f"{frames} frames of {len(survey.videos)} videos captioned"
    say(f"{out}: {made}; left out: {went}; by hand: {used}; {len(lines)} kept")
    for line in survey_lib.lines(left_out):
        say(line)
    return counts


def _settle(parts: pathlib.Path, settings: dict[str, Any]) -> None:
    """Makes the folder of parts, or checks that it is of these settings."""
    parts.mkdir(parents=True, exist_ok=True)
    note = parts / "settings.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != settings:
        raise captioners.CaptioningError(f"{parts}: holds captions of other settings; remove it, or give another --out")
    files.write_json(note, settings)


def _part(
    parts: pathlib.Path, video: survey_lib.Video, captioner: captioners.Captioner, stride: float
) -> list[filters.Line]:
    """The lines of one video, read where they have been made before."""
    size, changed = video.index.stamp
    said = video.entry.captions if captioner.source == "human" else ()  # then the result follows from these too
    name = hashlib.sha256(
        f"{video.entry.name}\n{size}\n{changed}\n{said}".encode("utf-8", "surrogateescape")
    ).hexdigest()[:24]
    file = parts / f"{name}.jsonl"
    if file.exists():
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    times = video.index.times
    numbers = np.unique(clock.shown(times, np.arange(0.0, times[-1] + clock.tolerance(times), stride)))
    lines = []
    with survey_lib.open_reader(video.entry, index=video.index) as reader:
        for start in range(0, len(numbers), _BATCH):
            batch = numbers[start : start + _BATCH].tolist()
            made = captioner(reader.read(np.asarray(batch), SIZE), video, batch)
            for number, caption in zip(batch, made, strict=True):
                lines.append(
                    dict(
                        video=video.entry.name,
                        frame=number,
                        text=records.clean(caption.text),
                        caption_source=captioner.source,
                        model=captioner.model,
                        revision=captioner.revision,
                        score=caption.score,
                    )
                )
    files.write_bytes(
        file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "surrogateescape")
    )
    return lines
