"""Registered TensorFlow Datasets of videos as a source of episodes: one example, one episode.

Examples are reached by number, so the data set must have been prepared as ArrayRecord:

    tfds.builder("ucf101", file_format="array_record").download_and_prepare()

An example is decoded as a whole and the last few are kept. Reading needs no TensorFlow, except for data sets that use
`tfds.features.Video`, whose class does (moving_mnist and ucf101 among them).
"""

from __future__ import annotations

import collections
from concurrent import futures
import threading
from typing import Any

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from nuwaxl_jax import frames_io

FPS = 25.0  # where nothing else is said

_KEPT = 8  # decoded examples a thread
_THREADS = 4
_MEND = 'tfds.builder("{name}", file_format="array_record").download_and_prepare()'


def _split(names: list[str], split: str, eval_fraction: float) -> str:
    """TFDS's name of our split: its own, or a part of the one from whose end those that are not there are cut."""
    own = {"train": ("train",), "valid": ("validation", "valid", "val"), "test": ("test",)}
    found = {ours: next((n for n in theirs if n in names), "") for ours, theirs in own.items()}
    others = [name for name in names if name not in found.values()]
    whole = found["train"] or found["test"] or (others or names)[0]
    parts = [ours for ours in own if found[ours] in ("", whole)]  # train is the first
    if split not in parts or len(parts) == 1:
        return found[split]
    share = round(100 * eval_fraction)
    place = parts.index(split)
    end = 100 - share * (len(parts) - 1 - place)
    return f"{whole}[{end - share if place else 0}%:{end}%]"


class TFDSSource:
    """Episodes from a TFDS data set; see `nuwaxl_jax.data.sources` and the module's docstring."""

    def __init__(
        self,
        name: str,
        *,
        split: str,
        frame_size: int,
        video: str = "video",
        caption: str = "",
        fps: float = FPS,
        data_dir: str = "",
        min_frames: int = 1,
        eval_fraction: float = 0.1,
    ):
        """Opens one split and asks every example for its length.

        Args:
          name: of the data set, with its config and version if need be: 'ucf101/ucf101_1'.
          split: 'train', 'valid' or 'test'; what TFDS lacks is cut from the end of what it has.
          frame_size: height and width of the frames, pixels: the centred square, scaled.
          video: feature that holds the frames, uint8 [F, H, W, 1 or 3]; 'steps/image' reaches into nested ones.
          caption: feature that holds the caption: a text, a text a frame, or a class label, whose name is taken; '':
            every frame has the empty caption.
          fps: frames a second, which TFDS does not tell.
          data_dir: where TFDS keeps its data; '': its default.
          min_frames: shorter examples are left out.
          eval_fraction: share of examples for each split that has to be cut off.

        Raises:
          ValueError: no such data set, not prepared, in another format, a feature that is not there, or nothing left.
        """
        self._builder = _open(name, data_dir)
        features = self._builder.info.features
        self._video, self._caption = video.split("/"), caption.split("/") if caption else []
        for field, path in (("tfds_video", self._video), ("tfds_caption", self._caption)):
            if path and _feature(features, path) is None:
                there = ", ".join(sorted(_names(features)))
                raise ValueError(f"data.{field}: {name} has no feature {'/'.join(path)!r}; there are {there}")
        self._label = _feature(features, self._caption) if self._caption else None
        self._split = _split(list(self._builder.info.splits), split, eval_fraction)
        self._frame_size, self._fps = frame_size, fps
        self._local = threading.local()
        whole = self._builder.as_data_source(split=self._split)
        shape = getattr(_feature(features, self._video), "shape", None) or (None,)
        if shape[0] is not None:
            lengths = [int(shape[0])] * len(whole)
        else:
            with futures.ThreadPoolExecutor(_THREADS) as pool:
                lengths = list(pool.map(lambda i: len(_reach(whole[i], self._video)), range(len(whole))))
        self._kept = [i for i, length in enumerate(lengths) if length >= min_frames]
        self._lengths = [lengths[i] for i in self._kept]
        report = f"{name} [{self._split}]: {len(whole)} found -> {len(self._kept)} of at least {min_frames} frames"
        print(report)
        if not self._kept:
            raise ValueError(f"no video is left. {report}; lower hierarchy.segment_length")

    def __len__(self) -> int:
        return len(self._kept)

    def name(self, i: int) -> str:
        """Split and number of example `i`, for reports."""
        return f"{self._split}, example {self._kept[i]}"

    def num_frames(self, i: int) -> int:
        """Number of frames of example `i`."""
        return self._lengths[i]

    def fps(self, i: int) -> float:
        """Frames a second, as given."""
        return self._fps

    def frames(self, i: int, index: np.ndarray) -> np.ndarray:
        """Frames `index` (int [n]) of example `i`: uint8 [n, frame_size, frame_size, 3].

        Raises:
          ValueError: the feature holds no frames.
        """
        video = _reach(self._example(i), self._video)
        out = np.empty((len(index), self._frame_size, self._frame_size, 3), np.uint8)
        for row, number in enumerate(np.asarray(index).tolist()):
            frame = np.asarray(video[number])
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (1, 3):
                where = "/".join(self._video)
                raise ValueError(f"data.tfds_video: {where!r} holds {frame.dtype} {frame.shape}, not uint8 [H, W, 3]")
            frame = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame
            out[row] = np.asarray(frames_io.cropped(Image.fromarray(frame), self._frame_size))
        return out

    def captions(self, i: int, index: np.ndarray) -> list[str]:
        """The caption of each frame of `index` (int [n]); '' where the data set has none."""
        if not self._caption:
            return [""] * len(index)
        value = _reach(self._example(i), self._caption)
        if isinstance(value, (list, np.ndarray)) and np.ndim(value) == 1:
            return [_text(value[int(number)]) for number in index]
        if isinstance(self._label, tfds.features.ClassLabel):
            value = self._label.int2str(int(value)).replace("_", " ")
        return [_text(value)] * len(index)

    def _example(self, i: int) -> Any:
        """Example `i`, decoded; this thread keeps the last few."""
        kept = self._local.__dict__.setdefault("examples", collections.OrderedDict())
        if i not in kept:
            if "data" not in self._local.__dict__:
                self._local.data = self._builder.as_data_source(split=self._split)
            kept[i] = self._local.data[self._kept[i]]
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        kept.move_to_end(i)
        return kept[i]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._local = threading.local()


def _open(name: str, data_dir: str) -> Any:
    mend = _MEND.format(name=name)
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except ModuleNotFoundError as error:
        raise ValueError(f"data.tfds_name: {name} needs {error.name}; pip install {error.name}") from error
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(f"data.tfds_name: {name} cannot be opened ({_line(error)}); prepare it: {mend}") from error
    if not builder.is_prepared():
        raise ValueError(f"data.tfds_name: {name} is not prepared in {builder.data_dir}; prepare it: {mend}")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        kept = builder.info.file_format.value
        raise ValueError(f"data.tfds_name: {name} is kept as {kept}, not array_record; prepare it anew: {mend}")
    return builder


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _feature(features: Any, path: list[str]) -> Any:
    for name in path:
        features = getattr(features, "feature", features)  # of a Sequence
        if not hasattr(features, "keys") or name not in features.keys():
            return None
        features = features[name]
    return features


def _names(features: Any, prefix: str = "") -> list[str]:
    features = getattr(features, "feature", features)
    if not hasattr(features, "keys"):
        return [prefix.rstrip("/")]
    return [name for key in features.keys() for name in _names(features[key], f"{prefix}{key}/")]


def _reach(example: Any, path: list[str]) -> Any:
    for name in path:
        example = example[name]
    return example


def _text(value: Any) -> str:
    return " ".join((value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).split())
