"""One video of a data set as its owner describes it, before any file is opened."""

from __future__ import annotations

import dataclasses
import math
import pathlib

MAX_CHARACTERS = 10_000  # of a caption; no tokenizer here reads as far


class IntakeError(ValueError):
    """A data set that cannot be understood as a whole: one line, which file, what is wrong, the mend."""


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption for the frames at start <= time < end, in seconds; or for frame number `frame` alone."""

    text: str
    start: float = 0.0
    end: float = math.inf
    frame: int | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One video.

    Attributes:
      name: tells it from all others; its hash decides its split.
      path: a video file, a folder of numbered images, or an array of frames (.npy).
      captions: in ascending order of precedence.
      fps: frames a second where the file does not say it (images); None: unknown.
      split: 'train', 'valid' or 'test' where the owner says so; None: by the name's hash.
    """

    name: str
    path: pathlib.Path
    captions: tuple[Caption, ...] = ()
    fps: float | None = None
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A video, or a line of a manifest, that is not used.

    Attributes:
      name: which.
      step: of the funnel that it did not pass: 'listed', 'readable', 'long enough', 'captioned'; or 'caption', a
        caption that belongs to no video.
      reason: a short phrase, the same for equal reasons.
      detail: what is particular to this one.
    """

    name: str
    step: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Listing:
    """All that a place holds.

    Attributes:
      place: the folder or the manifest.
      layout: 'folder', 'manifest', 'lists' or 'flintstones'.
      entries: ordered by name.
      left_out: at the step 'listed'.
    """

    place: pathlib.Path
    layout: str
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...] = ()


def clean(text: str) -> str:
    """One line without surrounding blanks, at most MAX_CHARACTERS."""
    return " ".join(text.split())[:MAX_CHARACTERS].rstrip()
