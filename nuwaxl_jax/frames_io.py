"""Folders of numbered images, arrays of frames (.npy), sequences of either: the interface of `video_io.VideoReader`."""

from __future__ import annotations

import abc
import collections
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL import ImageOps

from nuwaxl_jax import video_io

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_NUMBERED = re.compile(r"(\d+)\.[a-z]+$", re.IGNORECASE)
_DEFAULT_FPS = 25.0
_OPEN_ARRAYS = 4  # a sequence


@dataclasses.dataclass(frozen=True)
class Part:
    """A file in a video that is joined of several.

    Attributes:
      path: an array of frames (.npy), or one image.
      first: number of its first frame in the whole.
      count: frames that it holds.
    """

    path: pathlib.Path
    first: int
    count: int


def _images(names: Iterable[str]) -> list[str]:
    """The images among the names, by number."""
    found = []
    for name in names:
        match = _NUMBERED.search(name)
        if match and name.lower().endswith(SUFFIXES) and not name.startswith("."):
            found.append((int(match.group(1)), name))
    return [name for _, name in sorted(found)]


def is_frame_folder(names: Iterable[str]) -> bool:
    """Whether files of these names are the frames of a video: at least two images whose names end in numbers."""
    return len(_images(names)) >= 2


def cropped(image: Image.Image, size: int) -> Image.Image:
    """The short side scaled to `size`, the centred square kept."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


class Frames(contextlib.AbstractContextManager, abc.ABC):
    """What these readers share: frames by number, whose times follow from a rate; `index` and `info`."""

    def __init__(
        self,
        path: str | os.PathLike,
        limits: video_io.Limits = video_io.Limits(),
        index: video_io.VideoIndex | None = None,
        fps: float | None = None,
    ):
        """Opens it.

        Args:
          path: the folder or the file.
          limits: of what is accepted as a video.
          index: of it, known from before.
          fps: frames a second; None is 25.

        Raises:
          VideoError: no frames that can be read, changed since it was indexed, or over a limit.
          FileNotFoundError: nothing is there.
        """
        self.path = os.fspath(path)
        stamp = self._open()
        if index is None:
            count, height, width = self._shape(limits)
            times, rate = self._clock(count, fps)
            video_io.check_limits(self.path, limits, pixels=height * width, seconds=count / rate, frames=count)
            info = video_io.VideoInfo(count, rate, width, height, count / rate)
            index = video_io.VideoIndex(info, times, None, None, stamp)
        elif index.stamp != stamp:
            raise video_io.VideoError(f"{self.path}: has changed since it was indexed; start again.")
        self.index, self.info = index, index.info

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, index: np.ndarray, size: int | None = None) -> np.ndarray:
        """Frames `index` (int [n], any order): uint8 [n, H, W, 3], RGB; `size` as `VideoReader.read`.

        Raises:
          VideoError: an image that cannot be read, or that has another size than the first.
          IndexError: outside 0..num_frames-1.
        """
        index = np.asarray(index)
        if index.size and not 0 <= index.min() <= index.max() < self.info.num_frames:
            raise IndexError(f"{self.path}: frames {index.min()}..{index.max()} of {self.info.num_frames}.")
        shape = (size, size) if size is not None else (self.info.height, self.info.width)
        frames = np.empty((len(index), *shape, 3), np.uint8)
        for row, number in enumerate(index.tolist()):
            image = self._image(number)
            frames[row] = np.asarray(image if size is None else cropped(image, size))
        return frames

    def chunks(self, num: int = 64, size: int | None = None) -> Iterator[np.ndarray]:
        """All frames in order, uint8 [<= num, H, W, 3] at a time."""
        for start in range(0, self.info.num_frames, num):
            yield self.read(np.arange(start, min(start + num, self.info.num_frames)), size)

    def _clock(self, count: int, fps: float | None) -> tuple[np.ndarray, float]:
        """(seconds from the first frame, float64 [count]; frames a second)."""
        rate = fps or _DEFAULT_FPS
        return np.arange(count) / rate, rate

    def _same_size(self, image: Image.Image, name: str) -> Image.Image:
        """The image; raises VideoError where it has not the size of the first."""
        if image.size != (self.info.width, self.info.height):
            size_of = f"{image.width}x{image.height}, the first image {self.info.width}x{self.info.height}"
            raise video_io.VideoError(f"{name}: is {size_of}; give images of one size.")
        return image

    @abc.abstractmethod
    def _open(self) -> tuple[int, int]:
        """Finds the frames; what changes when they do."""

    @abc.abstractmethod
    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        """Frames, height, width."""

    @abc.abstractmethod
    def _image(self, number: int) -> Image.Image:
        """One frame, upright, RGB."""


class FrameFolder(Frames):
    """Random access to the images of a folder, with its `index` and `info`. Not thread-safe."""

    def _open(self) -> tuple[int, int]:
        self._names = _images(os.listdir(self.path))
        if len(self._names) < 2:
            raise video_io.VideoError(f"{self.path}: holds no numbered images.")
        return _stamp(os.path.join(self.path, name) for name in self._names)

    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        first = load_image(os.path.join(self.path, self._names[0]), limits.max_pixels)
        return len(self._names), first.height, first.width

    def _image(self, number: int) -> Image.Image:
        path = os.path.join(self.path, self._names[number])
        return self._same_size(load_image(path, self.info.width * self.info.height), path)


class FrameArray(Frames):
    """Random access to the frames of a .npy file, uint8 [F, H, W, 3], read from the disk as they are asked for."""

    def _open(self) -> tuple[int, int]:
        status = os.stat(self.path)
        self._frames = load_array(self.path)
        return status.st_size, status.st_mtime_ns

    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        del limits
        return self._frames.shape[:3]

    def _image(self, number: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._frames[number]))


class FrameSequence(Frames):
    """Random access across several files: a frame that two parts hold is taken from the first. Not thread-safe."""

    def __init__(
        self,
        parts: Sequence[Part],
        limits: video_io.Limits = video_io.Limits(),
        index: video_io.VideoIndex | None = None,
        fps: float | None = None,
    ):
        """Opens it; parts are ordered by `first` from 0 on, and none begins after the end of those before.

        Raises:
          ValueError: they are not.
          VideoError, FileNotFoundError: as `Frames`; a part has not the frames that it should, or another size.
        """
        self._parts: list[Part] = []
        self._starts, end = [], 0  # of each, the first frame that is taken from it
        for part in parts:
            if part.first > end or part.first < (self._parts[-1].first if self._parts else 0) or part.count < 1:
                raise ValueError(f"{part.path}: frames from {part.first} on do not follow those up to {end - 1}.")
            if part.first + part.count > end:
                self._parts.append(part)
                self._starts.append(end)
                end = part.first + part.count
        if not self._parts:
            raise ValueError("no parts; give at least one.")
        self._count = end
        self._arrays: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        super().__init__(self._parts[0].path, limits, index, fps)

    def close(self) -> None:
        """Lets go of the arrays."""
        self._arrays.clear()

    def _open(self) -> tuple[int, int]:
        return _stamp(part.path for part in self._parts)

    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        if not _is_array(self._parts[0]):
            first = load_image(self._parts[0].path, limits.max_pixels)
            return self._count, first.height, first.width
        _, height, width, _ = load_array(self._parts[0].path).shape
        for part in self._parts:  # headers alone; nothing is kept open
            if _is_array(part) and (shape := load_array(part.path).shape) != (part.count, height, width, 3):
                raise video_io.VideoError(f"{part.path}: holds {shape}, not {(part.count, height, width, 3)}.")
        return self._count, height, width

    def _image(self, number: int) -> Image.Image:
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        part = self._parts[which]
        if not _is_array(part):
            return self._same_size(load_image(part.path, self.info.width * self.info.height), os.fspath(part.path))
        if which not in self._arrays:
            self._arrays[which] = load_array(part.path)
            if len(self._arrays) > _OPEN_ARRAYS:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(which)
        return Image.fromarray(np.ascontiguousarray(self._arrays[which][number - part.first]))


def _stamp(paths: Iterable[str | os.PathLike]) -> tuple[int, int]:
    """Sizes and modification times of files as two numbers; a folder's own time tells nothing of its files."""
    states = [video_io.stamp(path) for path in paths]
    digest = hashlib.sha256(repr(states).encode()).digest()
    return sum(size for size, _ in states), int.from_bytes(digest[:7], "big")


def _is_array(part: Part) -> bool:
    return os.fspath(part.path).lower().endswith(".npy")


def load_array(path: str | os.PathLike) -> np.ndarray:
    """The frames of a .npy file, uint8 [F, H, W, 3], mapped and not yet read.

    Raises:
      VideoError: none that can be read, or of another kind.
      FileNotFoundError: no such file.
    """
    path = os.fspath(path)
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise video_io.VideoError(f"{path}: cannot be read as an array ({error}).") from error
    shape = getattr(frames, "shape", ())  # an archive named .npy has none
    if not shape or frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not frames.size:
        kind = getattr(frames, "dtype", type(frames).__name__)
        raise video_io.VideoError(f"{path}: holds {kind} {shape}, not uint8 [F, H, W, 3].")
    return frames


def load_image(source: str | os.PathLike | BinaryIO, max_pixels: int, name: str = "") -> Image.Image:
    """An image of a file, upright, RGB.

    Args:
      source: the file.
      max_pixels: more are refused before they are decoded.
      name: of it in messages; '' is its path.

    Raises:
      VideoError: it cannot be read, or is larger.
    """
    name = name or os.fspath(source)
    try:
        with Image.open(source) as image:
            if image.width * image.height > max_pixels:
                raise video_io.VideoError(f"{name}: {image.width}x{image.height} is larger than it may be.")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits a channel
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, video_io.VideoError):
            raise
        raise video_io.VideoError(f"{name}: cannot be read as an image ({error}).") from error
    return image
