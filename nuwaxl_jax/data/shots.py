"""`--mode=data --cut`: finds the cuts in every video and writes the shots between them as a manifest.

A shot is what lies between two cuts, so that no window drawn from it spans one. Cuts are found by PySceneDetect's
ContentDetector, the only use of that library: frame i begins a shot where its mean change from frame i-1 in hue,
saturation and value is at least `threshold`, of 255. Fades and dissolves have no such frame and are not cut. The
detector is given the frames that our own reader decodes, so that its numbers are ours.

Rows are as `intake.manifests` reads them: `first_frame` and `last_frame`, both included, and the captions, a row each
stretch of frames with one caption, in `frame` and `last`. The shots of a video share a split, the video's own. Cuts are
kept in `out` + '.parts' as they are found, so a run that was stopped goes on; another `min_seconds` needs no detection
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import hashlib
import json
import os
import pathlib
from typing import Any

import ml_collections
import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import clock
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey as survey_lib

THRESHOLD = 27.0  # the library's own default
MIN_SECONDS = 1.0

_SIZE = 96  # pixels a side, of the centred square in which cuts are looked for
_CHUNK = 64  # frames decoded at a time
_NO_FILE = "is joined of several files, or one of many in a file: no row can name it"


class ShotsError(ValueError):
    """One line: what cannot be cut, and the mend."""


def run(
    config: ml_collections.ConfigDict,
    out: str,
    *,
    threshold: float = THRESHOLD,
    min_seconds: float = MIN_SECONDS,
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Cuts all videos at `config.data.path` into shots.

    Args:
      config: reads `data.path` and `data.captions`.
      out: the .jsonl file to write; `out` + '.parts' is the folder that lets a stopped run go on.
      threshold: of a cut, 0 < .. <= 255; lower finds more.
      min_seconds: shorter shots are left out.
      say: takes the report's lines.
      progress: takes a line that replaces the one before.

    Returns:
      Counts: videos, left_out (videos), shots, short (left out), kept, captioned (of those kept), rows.

    Raises:
      ShotsError: scenedetect is missing, an argument is wrong, the parts are of other settings, or no shot is left.
      ValueError: the place cannot be understood, or no video can be read.
    """
    version = _library()[0]
    if not str(out).endswith(".jsonl"):
        raise ShotsError(f"--out is {out!r}; give a .jsonl file for the shots")
    if not 0 < threshold <= 255 or not 0 <= min_seconds < float("inf"):
        raise ShotsError(f"--threshold is {threshold}, --min_seconds {min_seconds}; give 0 < .. <= 255 and 0 <= ..")
    listing = places.read(config.data.path, config.data.captions)
    nameless = [entry for entry in listing.entries if entry.parts or entry.key]
    left_out = [*listing.left_out, *(records.LeftOut(e.name, "listed", _NO_FILE) for e in nameless)]
    entries = [entry for entry in listing.entries if not (entry.parts or entry.key)]
    survey = survey_lib.survey(entries, require_captions=False)
    left_out += survey.left_out
    parts = pathlib.Path(f"{out}.parts")
    _settle(parts, dict(detector="content", threshold=threshold, size=_SIZE, scenedetect=version))
    rows, shots, kept, captioned, cut_videos = [], 0, 0, 0, 0
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda video: _cuts(parts, video, threshold), survey.videos)
        for done, (video, cuts) in enumerate(zip(survey.videos, found), start=1):
            progress(f"cutting: {done} of {len(survey.videos)} videos")
            if isinstance(cuts, records.LeftOut):
                left_out.append(cuts)
                continue
            cut_videos += 1
            for shot in _shots(cuts, video.index.info.num_frames):
                shots += 1
                if _seconds(video.index, shot) < min_seconds - 1e-6:
                    continue
                more = list(_rows(video, shot, pathlib.Path(out)))
                kept, captioned, rows = kept + 1, captioned + ("text" in more[0]), rows + more
    counts = dict(videos=cut_videos, left_out=len(left_out), shots=shots, short=shots - kept, kept=kept)
    counts |= dict(captioned=captioned, rows=len(rows))
    if kept:
        files.write_bytes(
            out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogateescape")
        )
    say(
        f"{out}: {cut_videos} videos -> {shots} shots -> {kept} of at least {min_seconds:g} s "
        f"({counts['short']} shorter left out), {captioned} of them captioned"
    )
    for line in survey_lib.lines(left_out):
        say(line)
    if not cut_videos:
        raise ShotsError(
            f"data.path: no video at {config.data.path} can be cut; see the reasons, or --mode=data --check"
        )
    if not kept:
        raise ShotsError(f"--min_seconds: all {shots} shots are shorter than {min_seconds:g} s; lower it")
    return counts


def _library() -> tuple[str, Any, Any]:
    """(version, FrameTimecode, ContentDetector)."""
    try:
        import scenedetect  # an extra
        from scenedetect import detectors
    except ModuleNotFoundError as error:
        raise ShotsError("--cut needs the package scenedetect; pip install '.[shots]'") from error
    return scenedetect.__version__, scenedetect.FrameTimecode, detectors.ContentDetector


def _settle(parts: pathlib.Path, settings: dict[str, Any]) -> None:
    """Makes the folder of parts, or checks that it is of these settings."""
    parts.mkdir(parents=True, exist_ok=True)
    note = parts / "settings.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != settings:
        raise ShotsError(f"{parts}: holds cuts of other settings; remove it, or give another --out")
    files.write_json(note, settings)


def _cuts(parts: pathlib.Path, video: survey_lib.Video, threshold: float) -> list[int] | records.LeftOut:
    """The frames at which shots begin, without 0; read where they have been found before."""
    size, changed = video.index.stamp
    name = hashlib.sha256(f"{video.entry.name}\n{size}\n{changed}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    file = parts / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))["cuts"]
    try:
        cuts = detect(video, threshold)
    except (video_io.VideoError, OSError) as error:
        return records.LeftOut(video.entry.name, "undamaged", "damaged inside", " ".join(str(error).split()))
    files.write_json(file, dict(video=video.entry.name, cuts=cuts))
    return cuts


def detect(video: survey_lib.Video, threshold: float = THRESHOLD) -> list[int]:
    """The frames of a video that begin a shot, but for the first, in order.

    Raises:
      ShotsError: scenedetect is missing.
      VideoError: the video is damaged.
    """
    _, timecode, detector_class = _library()
    detector = detector_class(threshold=threshold, min_scene_len=1)
    cuts, number = [], 0
    with survey_lib.open_reader(video.entry, index=video.index) as reader:
        for chunk in reader.chunks(_CHUNK, _SIZE):
            for frame in chunk:
                # The rate serves nothing: shots are told apart by number, their length by our own times.
                found = detector.process_frame(timecode(number, 25.0), np.ascontiguousarray(frame[..., ::-1]))  # BGR
                cuts += [each.frame_num for each in found]
                number += 1
    return sorted(set(cuts) - {0})


def _shots(cuts: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """(first, last frame) of each shot of a video of `count` frames."""
    yield from ((first, after - 1) for first, after in zip([0, *cuts], [*cuts, count]))


def _seconds(index: video_io.VideoIndex, shot: tuple[int, int]) -> float:
    first, after = shot[0], shot[1] + 1
    return float((index.times[after] if after < len(index.times) else index.info.seconds) - index.times[first])


def _rows(video: survey_lib.Video, shot: tuple[int, int], out: pathlib.Path) -> Iterator[dict[str, Any]]:
    """A shot's rows: one for each stretch of frames with one caption, else one without."""
    entry, offset = video.entry, video.entry.span[0] if video.entry.span else 0
    name = entry.name.rpartition("#")[0] if entry.span else entry.name
    path, folder = os.path.abspath(entry.path), os.path.dirname(os.path.abspath(out))
    path = os.path.relpath(path, folder) if path.startswith(os.path.join(folder, "")) else path
    row = dict(path=path, id=name, first_frame=offset + shot[0], last_frame=offset + shot[1])
    row |= dict(episode=entry.episode or entry.name)
    row |= {field: value for field, value in (("fps", entry.fps), ("split", entry.split)) if value is not None}
    which = _captions(video)[shot[0] : shot[1] + 1]
    borders = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(which)]
    captioned = False
    for begin, end in zip(borders, borders[1:]):
        caption = entry.captions[which[begin]] if which[begin] >= 0 else None
        if caption is not None and caption.text:
            captioned = True
            frames = dict(frame=row["first_frame"] + begin, last=row["first_frame"] + end - 1)
            yield row | dict(text=caption.text) | frames | dict(caption_source=caption.source, clip=caption.clip)
    if not captioned:
        yield row


def _captions(video: survey_lib.Video) -> np.ndarray:
    """int [num_frames]: which of the video's captions holds at each frame, the last that does; -1: none."""
    times, which = video.index.times, np.full(video.index.info.num_frames, -1)
    late = times + clock.tolerance(times)  # at a border, past it
    for number, caption in enumerate(video.entry.captions):
        if caption.frame is None:
            which[(caption.start <= late) & (late < caption.end)] = number
        else:
            which[caption.frame : (caption.frame if caption.last is None else caption.last) + 1] = number
    return which
