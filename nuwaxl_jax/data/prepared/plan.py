"""What is to be made: which frames of which videos lie in which shard, and how to tell that this is still the same.

A shard is at most some thousand frames: several short videos, or a part of a long one. Its content follows from the
videos and the settings alone, so shards can be made in any order, by anyone, and be thrown away when half made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
import dataclasses
import hashlib
import os
from typing import Any

import numpy as np

from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import clock
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey as survey_lib
from nuwaxl_jax.data.prepared import format as format_lib

# Frames of a shard, which are what a killed run may have to make again: so many that a set has 64, within bounds. The
# larger is 130 MB of PNG at 128 pixels a side.
_LEAST_FRAMES, _MOST_FRAMES, _SHARDS = 256, 4096, 64
_NOT_ENTERED = (".avi", ".gif")  # decoded from the start whatever is wanted: not divided, however long


@dataclasses.dataclass(frozen=True)
class Piece:
    """Frames start, ..., stop - 1 of video number `video`."""

    video: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Unit:
    """A shard to be made: whole videos, or one part of one video (`part`)."""

    name: str
    split: str
    pieces: tuple[Piece, ...]
    part: bool = False

    @property
    def frames(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is to be made.

    Attributes:
      place: where the videos are.
      layout: see `records.Listing`.
      settings: of the set.
      videos: those that can be read.
      splits: 'train', 'valid' or 'test' of each.
      shared: the videos are too few to divide: all are kept as 'train', and serve for every split.
      units: in the order of their records.
      left_out: what cannot be used, of the listing and the survey.
      funnel: counts by step.
      limits: of what is accepted as a video.
      part_frames: most frames of a shard, as asked for; 0: by their number.
    """

    place: str
    layout: str
    settings: format_lib.Settings
    videos: tuple[survey_lib.Video, ...]
    splits: tuple[str, ...]
    shared: bool
    units: tuple[Unit, ...]
    left_out: tuple[records.LeftOut, ...]
    funnel: dict[str, int]
    limits: video_io.Limits
    part_frames: int = 0

    def length(self, video: int) -> int:
        """Frames of a video as the set has them."""
        return survey_lib.length(self.videos[video].index, self.settings.fps)

    def rate(self, video: int) -> float:
        """Frames a second of a video as the set has them."""
        return self.settings.fps or self.videos[video].index.info.fps

    def numbers(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """(frame numbers in the file, seconds) of a piece's frames; as `VideoSource` takes them."""
        index, times = np.arange(piece.start, piece.stop), self.videos[piece.video].index.times
        if not self.settings.fps:
            return index, times[index]
        seconds = index / self.settings.fps
        return clock.shown(times, seconds), seconds

    def sources(self) -> dict[str, Any]:
        """What the set follows from: settings, and a mark of each video's file, captions and split."""
        marks = {}
        for video, split in zip(self.videos, self.splits, strict=True):
            marks[video.entry.name] = _mark(video, split)
        return dict(settings=self.settings.record() | {"shard_frames": self.part_frames}, videos=marks)


def make(
    place: str | os.PathLike,
    settings: format_lib.Settings,
    *,
    captions: str = "",
    part_frames: int = 0,
    limits: video_io.Limits = video_io.Limits(),
    progress: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Looks at all videos of a place, as `places.read` finds them, and divides them.

    Videos without captions and short ones are kept: who reads the set leaves them out where they cannot be used.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: no video can be read, or the place cannot be understood.
    """
    listing = places.read(place, captions)
    total = len(listing.entries)
    survey = survey_lib.survey(
        listing.entries,
        fps=settings.fps,
        require_captions=False,
        limits=limits,
        progress=lambda done: progress(f"reading: {done} of {total} videos"),
    )
    left_out = (*listing.left_out, *survey.left_out)
    if not survey.videos:
        reasons = " ".join(survey_lib.lines(left_out)).strip() or "none found"
        raise ValueError(f"data.path: no video at {place} can be read ({reasons}); see --mode=data --check")
    split_of = {}
    for split in survey_lib.SPLITS:
        for entry in survey_lib.of_split(listing.entries, split, settings.eval_fraction) or ():
            split_of[entry.name] = split
    splits = tuple(split_of.get(video.entry.name, "train") for video in survey.videos)
    lengths = [survey_lib.length(video.index, settings.fps) for video in survey.videos]
    most = part_frames or shard_frames(sum(lengths))
    whole = {i for i, video in enumerate(survey.videos) if video.path.lower().endswith(_NOT_ENTERED)}
    return Plan(
        place=os.fspath(place),
        layout=listing.layout,
        settings=settings,
        videos=survey.videos,
        splits=splits,
        shared=not split_of,
        units=tuple(_units(lengths, splits, most, whole)),
        left_out=left_out,
        funnel={"found": total, "readable": survey.funnel["readable"]},
        limits=limits,
        part_frames=part_frames,
    )


def shard_frames(total: int) -> int:
    """Most frames of a shard of a set of so many."""
    return min(_MOST_FRAMES, max(_LEAST_FRAMES, total // _SHARDS))


def _units(lengths: Sequence[int], splits: Sequence[str], most: int, whole: Set[int] = frozenset()) -> list[Unit]:
    """Shards of at most `most` frames of videos of these lengths, but for those in `whole`."""
    units: list[Unit] = []
    for split in survey_lib.SPLITS:
        packs: list[tuple[tuple[Piece, ...], bool]] = []
        packed: list[Piece] = []
        for video in (number for number, its in enumerate(splits) if its == split):
            length = lengths[video]
            if packed and sum(piece.stop for piece in packed) + length > most:
                packs.append((tuple(packed), False))
                packed = []
            if length <= most or video in whole:
                packed.append(Piece(video, 0, length))
                continue
            packs += [((Piece(video, at, min(at + most, length)),), True) for at in range(0, length, most)]
        packs += [(tuple(packed), False)] if packed else []
        units += [Unit(f"{split}-{number:06d}", split, *pack) for number, pack in enumerate(packs)]
    return units


def _mark(video: survey_lib.Video, split: str) -> str:
    entry, info = video.entry, video.index.info
    places_alone = ("path", "parts", "captions")
    its = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry) if f.name not in places_alone}
    parts = [(part.path.name, part.first, part.count) for part in entry.parts]
    text = f"{its!r}\n{parts!r}\n{entry.captions!r}\n{video.index.stamp!r}\n{info.num_frames}\n{info.fps!r}\n{split}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How what is asked for differs from what a folder was made from; '' where it does not."""
    for name, value in now["settings"].items():
        if was["settings"].get(name) != value:
            field = f"data.{name}" if name in ("frame_size", "fps", "eval_fraction") else name
            return f"{field} is {value}, it was made with {was['settings'].get(name)}"
    before, after = was["videos"], now["videos"]
    found = {
        "added": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and before[name] != after[name]],
    }
    told = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ..' * (len(names) > 3)})"
        for what, names in found.items()
        if names
    ]
    return f"the videos or their captions have changed since: {'; '.join(told)}" if told else ""
