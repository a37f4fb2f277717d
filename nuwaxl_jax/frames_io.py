"""Folders of numbered images, and arrays of frames (.npy), read as videos: the interface of `video_io.VideoReader`."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
import contextlib
import os
import re

import numpy as np
from PIL import Image
from PIL import ImageOps

from nuwaxl_jax import video_io

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_NUMBERED = re.compile(r"(\d+)\.[a-z]+$", re.IGNORECASE)
_DEFAULT_FPS = 25.0


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


class _Frames(contextlib.AbstractContextManager, abc.ABC):
    """What both readers share: frames by number, whose times follow from a rate; `index` and `info`."""

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
            seconds = count / (fps or _DEFAULT_FPS)
            video_io.check_limits(self.path, limits, pixels=height * width, seconds=seconds, frames=count)
            info = video_io.VideoInfo(count, fps or _DEFAULT_FPS, width, height, seconds)
            index = video_io.VideoIndex(info, np.arange(count) / info.fps, None, None, stamp)
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

    @abc.abstractmethod
    def _open(self) -> tuple[int, int]:
        """Finds the frames; what changes when they do."""

    @abc.abstractmethod
    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        """Frames, height, width."""

    @abc.abstractmethod
    def _image(self, number: int) -> Image.Image:
        """One frame, upright, RGB."""


class FrameFolder(_Frames):
    """Random access to the images of a folder, with its `index` and `info`. Not thread-safe."""

    def _open(self) -> tuple[int, int]:
        self._names = _images(os.listdir(self.path))
        if len(self._names) < 2:
            raise video_io.VideoError(f"{self.path}: holds no numbered images.")
        return len(self._names), os.stat(self.path).st_mtime_ns

    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        first = self._load(0, limits.max_pixels)
        return len(self._names), first.height, first.width

    def _image(self, number: int) -> Image.Image:
        known = self.info
        image = self._load(number, known.width * known.height)
        if (image.width, image.height) != (known.width, known.height):
            size_of = f"{image.width}x{image.height}, the first image {known.width}x{known.height}"
            raise video_io.VideoError(f"{self.path}/{self._names[number]}: is {size_of}; give images of one size.")
        return image

    def _load(self, number: int, max_pixels: int) -> Image.Image:
        path = os.path.join(self.path, self._names[number])
        try:
            with Image.open(path) as image:
                if image.width * image.height > max_pixels:
                    raise video_io.VideoError(f"{path}: {image.width}x{image.height} is larger than it may be.")
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):  # 16 bits a channel
                    image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
                image = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, video_io.VideoError):
                raise
            raise video_io.VideoError(f"{path}: cannot be read as an image ({error}).") from error
        return image


class FrameArray(_Frames):
    """Random access to the frames of a .npy file, uint8 [F, H, W, 3], read from the disk as they are asked for."""

    def _open(self) -> tuple[int, int]:
        status = os.stat(self.path)
        try:
            self._frames = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise video_io.VideoError(f"{self.path}: cannot be read as an array ({error}).") from error
        shape = self._frames.shape
        if self._frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not self._frames.size:
            raise video_io.VideoError(f"{self.path}: holds {self._frames.dtype} {shape}, not uint8 [F, H, W, 3].")
        return status.st_size, status.st_mtime_ns

    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        del limits
        return self._frames.shape[:3]

    def _image(self, number: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._frames[number]))
