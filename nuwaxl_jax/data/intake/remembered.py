"""Indexes of video files, kept from run to run: a file of the same place, size and time is not walked again.

One small file a video in the folder NUWAXL_CACHE, else XDG_CACHE_HOME/nuwaxl_jax, else ~/.cache/nuwaxl_jax;
NUWAXL_CACHE=off keeps none. It may be deleted at any time; where it cannot be written nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib

import numpy as np

from nuwaxl_jax import compile_cache
from nuwaxl_jax import files
from nuwaxl_jax import video_io

_VERSION = 2  # of what is kept; another is not read


def folder() -> pathlib.Path | None:
    """Where indexes are kept; None: nowhere."""
    home = compile_cache.home()
    return None if home is None else home / "index"


def _file(path: str | os.PathLike) -> pathlib.Path | None:
    where = folder()
    name = hashlib.sha256(os.path.abspath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return None if where is None else where / f"{name}.npz"


def load(path: str | os.PathLike) -> video_io.VideoIndex | None:
    """The index of a file as it is now; None where it is not known."""
    kept = _file(path)
    if kept is None or not kept.exists():
        return None
    try:
        with np.load(io.BytesIO(kept.read_bytes()), allow_pickle=False) as stored:
            if int(stored["version"]) != _VERSION or tuple(stored["stamp"].tolist()) != video_io.stamp(path):
                return None
            count, width, height = stored["shape"].tolist()
            fps, seconds = stored["rates"].tolist()
            pts, keys = (stored[name] if name in stored else None for name in ("pts", "keys"))
            info = video_io.VideoInfo(count, fps, width, height, seconds)
            times = stored["times"]
    except Exception:  # whatever is wrong with it, the file can be walked
        return None
    return video_io.VideoIndex(info, times, pts, keys, video_io.stamp(path)) if len(times) == count else None


def save(path: str | os.PathLike, index: video_io.VideoIndex) -> None:
    """Keeps an index, if it can."""
    kept, info = _file(path), index.info
    if kept is None:
        return
    arrays = dict(
        version=np.int64(_VERSION),
        stamp=np.asarray(index.stamp, np.int64),
        shape=np.asarray([info.num_frames, info.width, info.height], np.int64),
        rates=np.asarray([info.fps, info.seconds], np.float64),
        times=index.times,
    )
    if index.pts is not None:
        arrays |= dict(pts=index.pts, keys=index.keys)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(kept, buffer.getvalue())
