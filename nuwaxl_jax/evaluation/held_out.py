"""Videos that no training has seen: windows of F frames of the test split, with their captions."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_collections
import numpy as np

from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import sources
from nuwaxl_jax.data.toons import source as toons_source

SPLIT = "test"


class HeldOut:
    """`count` windows of `num_frames` frames, numbered; those told come first, others are what they are measured by.

    Every toons episode gives one, from its first frame on, and there are as many episodes as one asks for. Other
    sources' episodes are cut into windows; first windows of all episodes come before second ones.

    Raises:
      ValueError: the test split is too small.
    """

    def __init__(self, config: ml_collections.ConfigDict, count: int, num_frames: int):
        self.num_frames, self._data = num_frames, config.data.to_dict()
        self._source: sources.EpisodeSource
        if config.data.source == "toons":
            longest = max(config.data.episode_frames, num_frames)
            size = config.data.frame_size
            self._source = toons_source.ToonsSource(SPLIT, frame_size=size, num_episodes=count, episode_frames=longest)
            self._windows = [(i, 0) for i in range(count)]
        else:
            self._source = pipeline.make_source(config, SPLIT)
            lengths = [self._source.num_frames(i) for i in range(len(self._source))]
            windows = sorted(
                (start, i) for i, n in enumerate(lengths) for start in range(0, n - num_frames + 1, num_frames)
            )
            if len(windows) < count:
                raise ValueError(
                    f"data.{SPLIT}: {len(lengths)} held-out videos give {len(windows)} windows of {num_frames} frames, "
                    f"and {count} are needed; lower --stories, --others or --frames, or raise data.eval_fraction"
                )
            self._windows = [(i, start) for start, i in windows[:count]]
        self._told = {"source": config.data.source, "split": SPLIT, "frame_size": config.data.frame_size}

    def frames(self, i: int, index: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3], frames `index` of window i."""
        episode, start = self._windows[i]
        return self._source.frames(episode, start + np.asarray(index))

    def captions(self, i: int, index: np.ndarray) -> list[str]:
        """Of those frames."""
        episode, start = self._windows[i]
        return self._source.captions(episode, start + np.asarray(index))

    def identity(self) -> dict[str, Any]:
        """What tells these videos from others: the settings they are read by, and a hash of what is there.

        The hash is `digest`'s, of all of them.
        """
        fields = ("path", "fps", "captions", "caption_fill", "eval_fraction", "tfds_name", "tfds_video", "tfds_caption")
        return self._told | {name: self._data[name] for name in fields} | {"sha256": self.digest(len(self._windows))}

    def digest(self, count: int) -> str:
        """SHA-256 of all captions, and of the first and last frame, of each of the first `count` windows."""
        hashed, index = hashlib.sha256(), np.arange(self.num_frames)
        for i in range(count):
            hashed.update(np.ascontiguousarray(self.frames(i, index[[0, -1]])).tobytes())
            hashed.update("\n".join(self.captions(i, index)).encode())
        return hashed.hexdigest()

    def protocol(self, count: int) -> dict[str, Any]:
        """What a record says of the first `count` windows and their captions."""
        return self._told | {"sha256": self.digest(count)}
