"""A folder of real videos as a source of episodes: one file, one episode.

Captions of `a/clip.mp4`, the later winning where they overlap in time:

    a/clip.txt        the whole file is one caption for the whole video
    captions.jsonl    in the top folder: {"video": "a/clip.mp4", "start": 1.5, "end": 4, "text": "..."} a line
    a/clip.jsonl      the same without "video"

`start` (from 0, included) and `end` (excluded) are seconds; without them a line
holds from the beginning, or to the end. Frames that no line covers have the
empty caption, which is the null prompt.

A file's split follows from a hash of its name alone, so adding files moves no
other. Files that cannot be read, are too short or have no caption are left out,
and one line says how many went at each step.
"""

import collections
from concurrent import futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import threading
from typing import Any

import numpy as np

from nuwaxl_jax import video_io

SPLITS = ("train", "valid", "test")

_OPEN_READERS = 8  # a thread
_SCAN_THREADS = 4
_NAMED_FILES = 5  # of those left out, in the report


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption for the frames at start <= time < end, in seconds."""

    text: str
    start: float = 0.0
    end: float = math.inf


@dataclasses.dataclass(frozen=True)
class Video:
    """An episode: where it is, how it is read, what is said about it."""

    path: str
    index: video_io.VideoIndex
    captions: tuple[Caption, ...]


def split_of(name: str, eval_fraction: float) -> str:
    """The split of a file by its name, relative to the folder, with '/': 'train', 'valid' or 'test'."""
    place = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "big") / 2.0**64
    return "test" if place < eval_fraction else "valid" if place < 2 * eval_fraction else "train"


def find_videos(folder: pathlib.Path) -> list[str]:
    """Names of the video files below `folder`, relative and sorted; hidden files and folders are skipped."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(video_io.VIDEO_SUFFIXES) and not name.startswith("."):
                found.append((pathlib.Path(place) / name).relative_to(folder).as_posix())
    return sorted(found)


def read_captions(path: pathlib.Path) -> list[tuple[str | None, Caption]]:
    """The lines of a jsonl file: (its "video" or None, the caption).

    Raises:
      ValueError: naming the file, the line and the field.
    """
    entries = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entries.append(_parse_line(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return entries


def _parse_line(entry: Any) -> tuple[str | None, Caption]:
    if not isinstance(entry, dict):
        raise ValueError('each line must be an object such as {"start": 0, "end": 2.5, "text": "..."}.')
    if not isinstance(entry.get("text"), str):
        raise ValueError(f'the field "text" is missing or no string; there are {sorted(entry)}.')
    video, start, end = entry.get("video"), entry.get("start", 0.0), entry.get("end", math.inf)
    seconds = all(isinstance(at, (int, float)) and not isinstance(at, bool) for at in (start, end))
    if not seconds or not 0 <= start < end:
        raise ValueError(f'"start" = {start!r} and "end" = {end!r} must be seconds with 0 <= start < end.')
    if video is not None and not isinstance(video, str):
        raise ValueError(f'"video" = {video!r} must be the name of a file.')
    return video, Caption(" ".join(entry["text"].split()), float(start), float(end))


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8.") from error


class FolderSource:
    """Episodes from a folder of videos; see `nuwaxl_jax.data.sources` and the module's docstring.

    Attributes:
      videos: the Video of each episode, ordered by name.
      funnel: how many files were found, readable, long enough, captioned and kept.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        split: str,
        frame_size: int,
        min_frames: int = 1,
        eval_fraction: float = 0.1,
        require_captions: bool = True,
        limits: video_io.Limits = video_io.Limits(),
    ):
        """Finds, indexes and checks the files of one split; every file is read once, but not decoded.

        Args:
          path: the folder; searched with its subfolders.
          split: 'train', 'valid' or 'test'.
          frame_size: height and width of the frames, pixels: the centred square, scaled.
          min_frames: shorter videos are left out.
          eval_fraction: share of files in 'valid', and as many in 'test'. Where a split would get no file, all files
            are in every split.
          require_captions: leave out videos without any caption.
          limits: of what is accepted as a video.

        Raises:
          FileNotFoundError: no such folder.
          ValueError: no file is left, or a caption file is malformed.
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; choose one of {SPLITS}.")
        if frame_size < 1 or not 0 <= eval_fraction < 0.5:
            raise ValueError(f"frame_size is {frame_size}, eval_fraction {eval_fraction}; give >= 1 and 0 <= .. < 0.5.")
        folder = pathlib.Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"data.path: {folder} is no folder.")
        self._frame_size, self._limits = frame_size, limits
        self._local = threading.local()
        names = find_videos(folder)
        chosen = [name for name in names if split_of(name, eval_fraction) == split]
        if names and len({split_of(name, eval_fraction) for name in names}) < len(SPLITS):
            print(f"{folder}: too few videos to split by name: all {len(names)} are in train, valid and test alike.")
            chosen = names
        captions = _gather_captions(folder, names)
        with futures.ThreadPoolExecutor(_SCAN_THREADS) as pool:
            indices = list(pool.map(lambda name: _index(folder / name, limits), chosen))
        readable = [(name, index) for name, index in zip(chosen, indices) if isinstance(index, video_io.VideoIndex)]
        long_enough = [(name, index) for name, index in readable if index.info.num_frames >= min_frames]
        captioned = [(name, index) for name, index in long_enough if captions[name]]
        kept = captioned if require_captions else long_enough
        self.videos = tuple(Video(str(folder / name), index, captions[name]) for name, index in kept)
        self.funnel = {
            "found": len(chosen),
            "readable": len(readable),
            f"of at least {min_frames} frames": len(long_enough),
            "captioned": len(captioned),
            "kept": len(kept),
        }
        report = f"{folder} [{split}]: " + " -> ".join(f"{count} {step}" for step, count in self.funnel.items())
        print(report)
        for error in [index for index in indices if isinstance(index, str)][:_NAMED_FILES]:
            print(f"  left out: {error}")
        if not kept:
            raise ValueError(
                f"no video is left. {report}. Give {'/'.join(suffix[1:] for suffix in video_io.VIDEO_SUFFIXES)} files, "
                "with a caption for clip.mp4 in clip.txt or captions.jsonl."
            )

    def __len__(self) -> int:
        return len(self.videos)

    def num_frames(self, i: int) -> int:
        """Number of frames of video `i`."""
        return self.videos[i].index.info.num_frames

    def fps(self, i: int) -> float:
        """Mean frames a second of video `i`."""
        return self.videos[i].index.info.fps

    def frames(self, i: int, index: np.ndarray) -> np.ndarray:
        """Frames `index` (int [n]) of video `i`: uint8 [n, frame_size, frame_size, 3].

        Raises:
          VideoError: naming the damaged file.
        """
        return self._reader(i).read(index, self._frame_size)

    def captions(self, i: int, index: np.ndarray) -> list[str]:
        """The caption of each frame of `index` (int [n]); '' where there is none."""
        video = self.videos[i]
        times = video.index.times[np.asarray(index)]
        texts = [""] * len(times)
        for caption in video.captions:
            for row in np.flatnonzero((caption.start <= times) & (times < caption.end)).tolist():
                texts[row] = caption.text
        return texts

    def _reader(self, i: int) -> video_io.VideoReader:
        """This thread's reader of video `i`; the least recently used are closed."""
        readers = self._local.__dict__.setdefault("readers", collections.OrderedDict())
        if i not in readers:
            video = self.videos[i]
            readers[i] = video_io.VideoReader(video.path, self._limits, video.index)
            if len(readers) > _OPEN_READERS:
                readers.popitem(last=False)[1].close()
        readers.move_to_end(i)
        return readers[i]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._local = threading.local()


def _index(path: pathlib.Path, limits: video_io.Limits) -> video_io.VideoIndex | str:
    """The file's index, or why there is none."""
    try:
        with video_io.VideoReader(path, limits) as reader:
            return reader.index
    except (video_io.VideoError, OSError) as error:
        return str(error)


def _gather_captions(folder: pathlib.Path, names: list[str]) -> dict[str, tuple[Caption, ...]]:
    """The captions of each video, in ascending order of precedence."""
    captions = {name: [] for name in names}
    for name in names:
        text_file = (folder / name).with_suffix(".txt")
        if text_file.is_file():
            text = " ".join(_read_text(text_file).split())
            if text:
                captions[name].append(Caption(text))
    shared = folder / "captions.jsonl"
    if shared.is_file():
        strangers = set()
        for number, (video, caption) in enumerate(read_captions(shared), start=1):
            if video is None:
                raise ValueError(f'{shared}: entry {number} has no field "video" that names its file.')
            if video in captions:
                captions[video].append(caption)
            else:
                strangers.add(video)
        if strangers:
            print(f"{shared}: {len(strangers)} named videos do not exist, such as {min(strangers)!r}.")
    for name in names:
        own = (folder / name).with_suffix(".jsonl")
        if own.is_file() and own != shared:
            captions[name].extend(caption for _, caption in read_captions(own))
    return {name: tuple(entries) for name, entries in captions.items()}
