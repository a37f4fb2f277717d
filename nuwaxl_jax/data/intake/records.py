"""One video of a data set as its owner describes it, before any file is opened."""

from __future__ import annotations

import dataclasses
import math
import pathlib

from nuwaxl_jax import frames_io
from nuwaxl_jax.data import characters

MAX_CHARACTERS = 10_000  # of a caption; no tokenizer here reads as far


class IntakeError(ValueError):
    """A data set that cannot be understood as a whole: one line, which file, what is wrong, the mend."""


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption for the frames at start <= time < end, in seconds; or for frame `frame`, or `frame` to `last`.

    Attributes:
      text: of it.
      start, end: seconds from the first frame; `end` is not included.
      frame: number in the file of the one frame, or of the first; None: seconds count.
      last: number of the last frame, included; None: `frame` alone.
      source: who wrote it: 'human' or 'machine'.
      clip: the annotated clip it comes from, by its owner's name; '' where there is none.
    """

    text: str
    start: float = 0.0
    end: float = math.inf
    frame: int | None = None
    last: int | None = None
    source: str = "human"
    clip: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One video.

    Attributes:
      name: tells it from all others; its hash decides its split.
      path: a video file, a folder of numbered images, or an array of frames (.npy); of a joined video its first part.
      captions: in ascending order of precedence; frames and seconds count from the beginning of this video.
      fps: frames a second where the file does not say it (images); None: unknown.
      split: 'train', 'valid' or 'test' where the owner says so; None: by a hash.
      episode: what it is a part of; videos of one episode are in one split. '': it stands alone.
      parts: the files that it is joined of, see `frames_io.FrameSequence`; () where `path` is all of it.
      key: which of the videos in a file that holds many, 'train/17'; '' where the file is one.
      span: numbers of the first and the last frame, included, of what it is of its file; None: the whole.
      whole_captions: captions whose frames and seconds count from the beginning of the file of which it is a span;
        `spans.apply` turns them into captions, which come after these.
    """

    name: str
    path: pathlib.Path
    captions: tuple[Caption, ...] = ()
    fps: float | None = None
    split: str | None = None
    episode: str = ""
    parts: tuple[frames_io.Part, ...] = ()
    key: str = ""
    span: tuple[int, int] | None = None
    whole_captions: tuple[Caption, ...] = ()


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A video, or a line of a manifest, that is not used.

    Attributes:
      name: which.
      step: of the funnel that it did not pass: 'listed', 'readable', 'long enough', 'captioned'; or 'caption', captions
        that belong to no video or frame; 'joined', a clip that stands alone; 'unused', what lies beside.
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
      layout: 'folder', 'manifest', 'lists', 'flintstones', 'flintstones_hd', 'arldm' or 'pictures'.
      entries: ordered by name.
      left_out: at the steps 'listed', 'caption', 'joined' and 'unused'.
    """

    place: pathlib.Path
    layout: str
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...] = ()


def clean(text: str) -> str:
    """One line without surrounding blanks, at most MAX_CHARACTERS; half a character becomes U+FFFD."""
    return characters.whole(" ".join(text.split())[:MAX_CHARACTERS].rstrip())


def printable(text: str) -> str:
    """Text that UTF-8 holds: what is none of it, as in file names that are no UTF-8, becomes \\udce9 or the like."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
