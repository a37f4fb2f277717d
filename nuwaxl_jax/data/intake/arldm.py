"""AR-LDM's HDF5 files: five captioned pictures a story. The only file that imports h5py.

    train/image0 .. image4     a PNG a story, as bytes (so val/, test/)
    train/text                 the five captions of a story, joined by '|'

A picture that is n times as high as wide is n square frames one below the other, as AR-LDM's own scripts store the
sampled frames of FlintstonesSV and PororoSV: all are read, and the caption holds for all. The scripts hand RGB to
OpenCV, which takes it for BGR, so red and blue are exchanged in the PNG; they are exchanged back here, as AR-LDM's
reader does. (A file whose PNGs look right in a picture viewer was written otherwise, and comes out with red and blue
exchanged.)

Nothing tells when in an episode a picture is; those of a story are put 3 s apart, the length of a clip of CRAFT.
"""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import records

SUFFIXES = (".h5", ".hdf5")
PICTURE_SECONDS = 3.0

_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_PICTURES = tuple(f"image{i}" for i in range(5))
_MAX_BYTES = 1 << 26  # of a PNG


def _library() -> Any:
    try:
        import h5py  # an extra
    except ModuleNotFoundError as error:
        raise records.IntakeError("data.path: HDF5 files need the package h5py; pip install '.[hdf5]'") from error
    return h5py


def read(path: pathlib.Path) -> records.Listing:
    """Every story, in the split of its group.

    Raises:
      IntakeError: h5py is not installed, or the file is not of this layout.
    """
    entries, left_out = [], []
    try:
        with _library().File(path, "r", locking=False) as file:
            groups = [name for name in _SPLITS if name in file]
            if not groups:
                problem = f"has none of the groups {', '.join(_SPLITS)}; there are {', '.join(file) or 'none'}"
                raise records.IntakeError(f"{path}: {problem}; give a file as AR-LDM's scripts write it")
            for group in groups:
                more, gone = _stories(path, group, file[group])
                entries += more
                left_out += gone
    except OSError as error:
        reason = " ".join(str(error).split())
        raise records.IntakeError(f"{path}: cannot be read as HDF5 ({reason}); write or fetch it again") from error
    return records.Listing(path, "arldm", tuple(sorted(entries, key=lambda entry: entry.name)), tuple(left_out))


def _stories(path: pathlib.Path, group: str, node: Any) -> tuple[list[records.Entry], list[records.LeftOut]]:
    missing = [name for name in (*_PICTURES, "text") if name not in node]
    if missing:
        raise records.IntakeError(f"{path}: {group} has no {', '.join(missing)}; there are {', '.join(node) or 'none'}")
    counts = {name: len(node[name]) for name in (*_PICTURES, "text")}
    if len(set(counts.values())) != 1:
        raise records.IntakeError(f"{path}: {group} has {counts} rows; give as many of each")
    entries, left_out = [], []
    for row, value in enumerate(node["text"][:]):
        key = f"{group}/{row:06}"
        try:
            texts = (value.decode("utf-8") if isinstance(value, bytes) else str(value)).split("|")
        except UnicodeDecodeError as error:
            left_out.append(records.LeftOut(key, "listed", "text is not UTF-8 text", str(error)))
            continue
        if len(texts) != len(_PICTURES):
            detail = f"{len(texts)} of {len(_PICTURES)}"
            left_out.append(records.LeftOut(key, "listed", "captions are not one a picture", detail))
            continue
        captions = tuple(
            records.Caption(records.clean(text), i * PICTURE_SECONDS, (i + 1) * PICTURE_SECONDS)
            for i, text in enumerate(texts)
            if text.strip()
        )
        entries.append(records.Entry(key, path, captions, split=_SPLITS[group], key=key))
    return entries, left_out


class Story(frames_io.Frames):
    """The frames of one story, with its `index` and `info`; `index.times` follow from the pictures. Not thread-safe."""

    def __init__(
        self,
        path: str | os.PathLike,
        key: str,
        limits: video_io.Limits = video_io.Limits(),
        index: video_io.VideoIndex | None = None,
        fps: float | None = None,
    ):
        """Opens it; `key` is 'train/000017', the rest as `frames_io.Frames`."""
        self._group, _, row = key.partition("/")
        self._row = int(row)
        self._frames: list[Image.Image] | None = None
        self._counts: list[int] = []
        self._max_pixels = limits.max_pixels
        super().__init__(path, limits, index, fps)

    def close(self) -> None:
        """Lets go of the pictures; a later `read` reads them again."""
        self._frames = None

    def _open(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    def _shape(self, limits: video_io.Limits) -> tuple[int, int, int]:
        frames = self._load()
        return len(frames), frames[0].height, frames[0].width

    def _clock(self, count: int, fps: float | None) -> tuple[np.ndarray, float]:
        del fps
        within = [PICTURE_SECONDS * (i + np.arange(n) / n) for i, n in enumerate(self._counts)]
        return np.concatenate(within), count / (PICTURE_SECONDS * len(self._counts))

    def _image(self, number: int) -> Image.Image:
        return self._same_size(self._load()[number], f"{self.path}: {self._group}/{self._row:06}, frame {number}")

    def _load(self) -> list[Image.Image]:
        """All frames of the story, decoded once: some 1.3 MB of them in AR-LDM's files."""
        if self._frames is None:
            frames, counts = [], []
            for name, data in zip(_PICTURES, self._bytes()):
                place = f"{self.path}: {self._group}/{name}[{self._row}]"
                if data.dtype != np.uint8 or not 0 < data.size <= _MAX_BYTES:
                    raise video_io.VideoError(f"{place}: holds {data.size} values of {data.dtype}, no PNG.")
                picture = frames_io.load_image(io.BytesIO(data.tobytes()), self._max_pixels, place)
                picture = Image.merge("RGB", picture.split()[::-1])
                high, odd = divmod(picture.height, picture.width)
                side = picture.height if odd or high < 2 else picture.width
                tops = range(0, picture.height, side)
                frames += [picture.crop((0, top, picture.width, top + side)) for top in tops]
                counts.append(len(tops))
            self._frames, self._counts = frames, counts
        return self._frames

    def _bytes(self) -> list[np.ndarray]:
        """The PNGs as they are stored."""
        try:
            with _library().File(self.path, "r", locking=False) as file:
                return [np.asarray(file[self._group][name][self._row]) for name in _PICTURES]
        except (OSError, KeyError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise video_io.VideoError(
                f"{self.path}: {self._group}/{self._row:06} cannot be read ({reason})."
            ) from error
