"""What a prepared set is made of: settings, records, images, the caption table and the file of facts.

    <name>-<split>.array_record-00000-of-00007   records: a frame each, serialised tf.train.Example (FEATURES)
    captions.array_record                        a record an episode: its captions, run by run
    metadata.json                                of every episode: split, first record, frames, frames a second
    sources.json                                 what the set was made from, to tell whether that has changed
    features.json, dataset_info.json             TFDS's own; the set is complete when they are there

One frame a record (and a group, so a chunk of the file) makes any stride cost one read and one image decode a frame.
A chunk carries a hash of its bytes, so damage shows when it is read. The images are compressed already and are stored
as they are.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

FORMAT = 1  # raised when an older reader would go wrong
METADATA, SOURCES, CAPTIONS, REPORT = "metadata.json", "sources.json", "captions.array_record", "report.json"
SPLITS = {"train": "train", "valid": "validation", "test": "test"}  # ours -> TFDS's
IMAGES = ("png", "jpeg")
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
BUFFER = 32_768  # bytes of a reader's own buffer

_PNG_LEVEL = 2  # of 9: within 15 % of the smallest in a third of its time


class PreparationError(ValueError):
    """A set that cannot be written, or differs from what is asked for: one line, with the mend."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What shapes the frames and the records of a set.

    Attributes:
      frame_size: pixels a side.
      fps: frames a second at which videos are taken, by time; 0: frame by frame as they are.
      image: 'png', the very frames, or 'jpeg', smaller and nearly them.
      quality: of JPEG, 1 to 95, with colours at full resolution; PNG has none.
      eval_fraction: share of videos in 'valid', and as many in 'test'.
    """

    frame_size: int
    fps: float = 0.0
    image: str = "png"
    quality: int = 95
    eval_fraction: float = 0.1

    def __post_init__(self):
        if self.frame_size < 1 or not 0 <= self.fps < 1000:
            raise ValueError(
                f"data.frame_size is {self.frame_size}, data.fps {self.fps:g}; give >= 1 and 0 <= .. < 1000"
            )
        if self.image not in IMAGES:
            raise ValueError(f"image is {self.image!r}; choose one of {IMAGES}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; give 1 to 95")
        if not 0 <= self.eval_fraction < 0.5:
            raise ValueError(f"data.eval_fraction is {self.eval_fraction}; give 0 <= .. < 0.5")

    @property
    def name(self) -> str:
        """'128_png', '256_jpeg95_8fps'."""
        rate = f"_{self.fps:g}fps".replace(".", "p") if self.fps else ""
        return f"{self.frame_size}_{self.image}{self.quality if self.image == 'jpeg' else ''}{rate}"

    def record(self) -> dict[str, Any]:
        """As JSON holds it; the quality only where it counts."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        return fields | ({} if self.image == "jpeg" else {"quality": None})


def features(settings: Settings) -> dict[str, Any]:
    """TFDS's features of a record."""
    import tensorflow_datasets as tfds  # slow to import, and a reader does not need it

    side, kinds = settings.frame_size, tfds.features
    return dict(
        image=kinds.Image(shape=(side, side, 3), encoding_format=settings.image),
        caption=kinds.Text(),
        caption_source=kinds.Text(doc="human, machine or none"),
        clip_id=kinds.Text(doc="of the annotated clip that the caption comes from"),
        episode=kinds.Text(doc="name of the video"),
        frame=kinds.Scalar(np.int64, doc="number within the episode"),
        seconds=kinds.Scalar(np.float32),
        fps=kinds.Scalar(np.float32),
    )


def encode_image(frame: np.ndarray, settings: Settings) -> bytes:
    """A frame, uint8 [H, W, 3], as an image file."""
    buffer = io.BytesIO()
    if settings.image == "png":
        Image.fromarray(frame).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    else:
        Image.fromarray(frame).save(buffer, "JPEG", quality=settings.quality, subsampling=0)
    return buffer.getvalue()


def decode_image(data: bytes, out: np.ndarray) -> None:
    """Fills `out`, uint8 [H, W, 3].

    Raises:
      ValueError: no such image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if (image.height, image.width, image.mode) != (*out.shape[:2], "RGB"):
                raise ValueError(f"the image is {image.mode} {image.width}x{image.height}")
            out[:] = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Any:
    """(number, content) of each length-delimited field of a message; records have no others down to the values."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        if tag & 7 != 2 or at + size > len(data):
            raise ValueError("the record is no tf.train.Example")
        yield tag >> 3, data[at : at + size]
        at += size


def image_of(record: bytes) -> bytes:
    """The image file within a record: Example{1: Features{1: {1: key, 2: Feature{1: BytesList{1: value}}}}}.

    Walks the message itself: what would parse it is TFDS's, whose import costs each worker process a second.

    Raises:
      ValueError: there is none.
    """
    try:
        for _, feature_map in _fields(memoryview(record)):
            for _, entry in _fields(feature_map):
                parts = dict(_fields(entry))
                if bytes(parts[1]) == b"image":
                    (_, values), *_ = _fields(parts[2])
                    (_, value), *_ = _fields(values)
                    return bytes(value)
    except (IndexError, KeyError) as error:
        raise ValueError("the record is no tf.train.Example") from error
    raise ValueError("the record holds no image")


@dataclasses.dataclass(frozen=True)
class CaptionTable:
    """The captions of an episode, run by run of frames that have the same one.

    Attributes:
      texts: the captions.
      starts: int [R], first frame of each run; the first is 0.
      which: int [R], the caption of each run, or that nearest in time; -1: the episode has none.
      covered: bool [R], whether the caption is of these frames, or only nearest to them.
    """

    texts: tuple[str, ...]
    starts: np.ndarray
    which: np.ndarray
    covered: np.ndarray

    def at(self, index: np.ndarray, nearest: bool) -> list[str]:
        """The caption of each frame of `index` (int [n]); '' where there is none."""
        runs = np.searchsorted(self.starts, np.asarray(index), side="right") - 1
        chosen = self.which[runs] if nearest else np.where(self.covered[runs], self.which[runs], -1)
        return ["" if caption < 0 else self.texts[caption] for caption in chosen.tolist()]

    @classmethod
    def parse(cls, record: bytes) -> CaptionTable:
        value = json.loads(record)
        runs = np.asarray(value["runs"], np.int64).reshape(-1, 3)
        return cls(tuple(value["texts"]), runs[:, 0], runs[:, 1], runs[:, 2] > 0)


def is_prepared(folder: pathlib.Path) -> bool:
    """Whether a folder is a complete set: the one with the record files, not one above."""
    return all((folder / name).is_file() for name in (METADATA, SOURCES, "dataset_info.json"))


def find(place: pathlib.Path) -> list[pathlib.Path]:
    """The sets in a folder: itself, or its <name>/<config>/<version>."""
    if is_prepared(place):
        return [place]
    return sorted(file.parent for file in place.glob(f"*/*/*/{METADATA}") if is_prepared(file.parent))
