"""A prepared set as a source of episodes: the frames that the videos themselves would give, much faster.

Opening reads one file of facts. A clip is one read of the records it needs, whatever its stride, and an image decoded
for each; captions come from a table of their own and cost no image. Files are opened as they are needed, a few at a
time, and shared by the threads of a process; a copy in another process opens its own. A record that is damaged raises
VideoError, so training draws another episode and counts this one.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import threading
from typing import Any

from array_record.python import array_record_module
import ml_collections
import numpy as np

from nuwaxl_jax import video_io
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.intake import survey as survey_lib
from nuwaxl_jax.data.prepared import format as format_lib

_OPEN_FILES = 64
_TABLES = 256  # of captions, kept decoded

_MEND = "python -m nuwaxl_jax.main --mode=data --prepare --config.data.path=VIDEOS --out=FOLDER"


def _facts(folder: pathlib.Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / format_lib.METADATA).read_text(encoding="utf-8"))
        if facts["format"] > format_lib.FORMAT:
            raise ValueError(f"data.path: {folder} is of format {facts['format']}; install a newer nuwaxl_jax")
        return facts
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"data.path: {folder / format_lib.METADATA} cannot be understood; prepare the set anew"
        ) from error


def locate(path: str | os.PathLike, frame_size: int, fps: float) -> tuple[pathlib.Path, dict[str, Any]]:
    """The set in a folder that has this size and rate (0: any), and its facts.

    Raises:
      FileNotFoundError: nothing at the path.
      ValueError: no such set, or several.
    """
    place = pathlib.Path(path)
    if not place.is_dir():
        raise FileNotFoundError(f"data.path: {place} does not exist; give a prepared folder; {_MEND} makes one")
    found = [(folder, _facts(folder)) for folder in format_lib.find(place)]
    if not found:
        partly = " (it is still being made)" if (place / "shards").is_dir() else ""
        raise ValueError(f"data.path: {place} holds no prepared set{partly}; make one: {_MEND}")
    fitting = [
        (folder, facts)
        for folder, facts in found
        if facts["settings"]["frame_size"] == frame_size and (not fps or facts["settings"]["fps"] == fps)
    ]
    if not fitting:
        there = [f"data.frame_size={f['settings']['frame_size']}, data.fps={f['settings']['fps']:g}" for _, f in found]
        raise ValueError(
            f"data.path: {place} was prepared with {' and with '.join(there)}; asked for are {frame_size} and {fps:g}: "
            "set them to what is there, or prepare the videos again"
        )
    if len(fitting) > 1:
        names = ", ".join(str(folder) for folder, _ in fitting)
        raise ValueError(f"data.path: {place} holds several sets of this size; name one of {names}")
    return fitting[0]


class PreparedSource:
    """Episodes from a prepared set; see `nuwaxl_jax.data.sources` and the module's docstring.

    Attributes:
      folder: of the records.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        split: str,
        frame_size: int,
        min_frames: int = 1,
        fps: float = 0.0,
        caption_fill: str = "none",
        eval_fraction: float | None = None,
        require_captions: bool = True,
    ):
        """Reads the facts of one split; no record is touched.

        Args:
          path: what `--prepare` made, TFDS's data_dir, or the folder of the records itself.
          split: 'train', 'valid' or 'test'.
          frame_size: height and width of the frames, pixels; those the set was prepared with.
          min_frames: shorter episodes are left out.
          fps: frames a second that the set was prepared with; 0: whatever it has.
          caption_fill: 'none', or 'nearest': frames without a caption take the nearest one's.
          eval_fraction: that the set was divided with; None: whatever it was.
          require_captions: leave out episodes without any caption.

        Raises:
          FileNotFoundError: nothing at this path.
          ValueError: no such set, or no episode is left.
        """
        if split not in survey_lib.SPLITS:
            raise ValueError(f"split is {split!r}; choose one of {survey_lib.SPLITS}.")
        if caption_fill not in videos.CAPTION_FILLS:
            raise ValueError(f"caption_fill is {caption_fill!r}; choose one of {videos.CAPTION_FILLS}.")
        self.folder, facts = locate(path, frame_size, fps)
        was = facts["settings"]["eval_fraction"]
        if eval_fraction is not None and eval_fraction != was and not facts["shared"]:
            raise ValueError(
                f"data.eval_fraction is {eval_fraction}, {self.folder} was divided with {was}; "
                "set it to that, or prepare the videos again"
            )
        self._size, self._nearest = frame_size, caption_fill == "nearest"
        self._keep(facts, split, min_frames, require_captions)
        kept = facts["shards"]["train" if facts["shared"] else split]
        self._files = [(file, size, count) for file, count, size in kept]
        self._ends = np.cumsum([count for _, count, _ in kept], dtype=np.int64)
        total = self._ends[-1] if kept else 0
        if (self._first + self._lengths).max() > total or any(os.path.basename(file) != file for file, _, _ in kept):
            raise ValueError(f"data.path: {self.folder / format_lib.METADATA} is not whole; prepare the set anew")
        self._forget()

    def _keep(self, facts: dict[str, Any], split: str, min_frames: int, require_captions: bool) -> None:
        """Chooses the episodes of the split, and says which are left out."""
        columns = facts["episodes"]
        its = [row for row, one in enumerate(columns["split"]) if facts["shared"] or one == split]
        long = [row for row in its if columns["frames"][row] >= min_frames]
        kept = [row for row in long if columns["captions"][row] or not require_captions]
        if facts["shared"]:
            print(f"{self.folder}: too few videos to split by name: all {len(its)} are in train, valid and test alike.")
        steps = f"{len(its)} prepared -> {len(long)} of at least {min_frames} frames"
        report = f"{self.folder} [{split}]: {steps} -> {len(kept)} captioned"
        print(report)
        for what, rows in (
            (f"shorter than {min_frames} frames", set(its) - set(long)),
            ("no caption", set(long) - set(kept)),
        ):
            names = [columns["name"][row] for row in sorted(rows)]
            if names:
                print(f"  {len(names)} left out, {what}: {'; '.join(names[:3])}{'; ..' if len(names) > 3 else ''}")
        if not kept:
            raise ValueError(f"no episode is left. {report}. Prepare more or longer videos, with captions.")
        self._rows = np.asarray(kept, np.int64)
        self._names = [columns["name"][row] for row in kept]
        self._first, self._lengths = (np.asarray(columns[name], np.int64)[self._rows] for name in ("first", "frames"))
        self._fps = np.asarray(columns["fps"], np.float64)[self._rows]

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._tables: collections.OrderedDict[int, format_lib.CaptionTable] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """The name of episode `i`, for reports."""
        return self._names[i]

    def num_frames(self, i: int) -> int:
        """Number of frames of episode `i`."""
        return int(self._lengths[i])

    def fps(self, i: int) -> float:
        """Frames a second of episode `i`, on average where nothing was asked for."""
        return float(self._fps[i])

    def frames(self, i: int, index: np.ndarray) -> np.ndarray:
        """Frames `index` (int [n]) of episode `i`: uint8 [n, frame_size, frame_size, 3].

        Raises:
          VideoError: naming the damaged record.
          FileNotFoundError: a record file is gone.
          IndexError: outside 0..num_frames-1.
        """
        index = np.asarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < self._lengths[i]:
            raise IndexError(f"{self._names[i]}: frames {index.min()}..{index.max()} of {self._lengths[i]}.")
        wanted, inverse = np.unique(self._first[i] + index, return_inverse=True)
        out = np.empty((len(wanted), self._size, self._size, 3), np.uint8)
        shards = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            file, size, count = self._files[shard]
            positions = (wanted[rows] - (self._ends[shard] - count)).tolist()
            for row, position, record in zip(rows, positions, self._read(file, size, positions), strict=True):
                try:
                    format_lib.decode_image(format_lib.image_of(record), out[row])
                except ValueError as error:
                    raise self._damaged(file, position, error) from error
        return out if np.array_equal(inverse, np.arange(len(index))) else out[inverse]

    def captions(self, i: int, index: np.ndarray) -> list[str]:
        """The caption of each frame of `index` (int [n]); '' where there is none."""
        row = int(self._rows[i])
        with self._lock:
            table = self._tables.get(row)
        if table is None:
            (record,) = self._read(format_lib.CAPTIONS, None, [row])
            try:
                table = format_lib.CaptionTable.parse(record)
            except (ValueError, KeyError, IndexError) as error:
                raise self._damaged(format_lib.CAPTIONS, row, error) from error
            with self._lock:
                self._tables[row] = table
                if len(self._tables) > _TABLES:
                    self._tables.popitem(last=False)
        return table.at(index, self._nearest)

    def fingerprint(self) -> str:
        """What tells these episodes and captions from others: what they were made from, and which are used."""
        sources = (self.folder / format_lib.SOURCES).read_text(encoding="utf-8")
        return f"{sources}\n{self._names}\n{self._nearest}"

    def _damaged(self, file: str, position: int, error: Exception) -> video_io.VideoError:
        reason = " ".join(str(error).split())
        return video_io.VideoError(f"{self.folder / file}: record {position} is damaged ({reason}); prepare it again.")

    def _read(self, file: str, size: int | None, positions: list[int]) -> list[bytes]:
        """Records of a file, by one call; a damaged one is found and named."""
        reader = self._reader(file, size)
        try:
            return reader.read(positions)
        except (RuntimeError, IndexError) as error:
            for position in positions:
                try:
                    reader.read([position])
                except (RuntimeError, IndexError) as its:
                    raise self._damaged(file, position, its) from its
            raise self._damaged(file, positions[0], error) from error

    def _reader(self, file: str, size: int | None) -> Any:
        """The reader of a file, shared by threads; the least recently used are let go."""
        with self._lock:
            reader = self._readers.get(file)
            if reader is None:
                path = self.folder / file
                there = os.stat(path).st_size
                if size is not None and there != size:
                    raise video_io.VideoError(f"{path}: has {there} bytes of {size}; copy or prepare it again.")
                reader = array_record_module.ArrayRecordReader(
                    os.fspath(path), format_lib.READER_OPTIONS, file_reader_buffer_size=format_lib.BUFFER
                )
                if not reader.ok():
                    raise video_io.VideoError(f"{path}: cannot be read; copy or prepare it again.")
                self._readers[file] = reader
                if len(self._readers) > _OPEN_FILES:
                    self._readers.popitem(last=False)  # closed when the last thread is done with it
            self._readers.move_to_end(file)
            return reader

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_readers", "_tables")}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._forget()


def open_source(config: ml_collections.ConfigDict, split: str) -> PreparedSource:
    """The prepared set at `config.data.path`; for `data.source="prepared"`.

    Raises:
      FileNotFoundError: nothing at the path.
      ValueError: no such set, or naming the field that does not fit it.
    """
    data = config.data
    if data.captions:
        raise ValueError("data.captions: a prepared set has its captions in it; prepare with them, or leave this empty")
    return PreparedSource(
        data.path,
        split=split,
        frame_size=data.frame_size,
        min_frames=config.hierarchy.segment_length,
        fps=data.fps,
        caption_fill=data.caption_fill,
        eval_fraction=data.eval_fraction,
    )
