"""What the data pipeline asks of a set of videos.

An episode is one continuous stretch of video in which every frame can be read
by its index and has a caption. Sources are read by several threads at once and
are copied into worker processes, so an implementation must be thread-safe and
cheap to copy (open files are re-opened, caches start empty).
"""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class EpisodeSource(Protocol):
    """Random access to the frames and captions of a fixed list of episodes."""

    def __len__(self) -> int:
        """Number of episodes."""

    def num_frames(self, i: int) -> int:
        """Number of frames of episode `i`; cheap, it is asked of every episode."""

    def fps(self, i: int) -> float:
        """Frames a second of episode `i`."""

    def frames(self, i: int, index: np.ndarray) -> np.ndarray:
        """Frames of episode `i`.

        Args:
          i: episode, 0 <= i < len(self).
          index: int [n], frame numbers in any order, 0 <= index < num_frames(i).

        Returns:
          uint8 [n, H, W, 3], RGB, the same H and W for every episode.
        """

    def captions(self, i: int, index: np.ndarray) -> list[str]:
        """One caption for each frame of `index`; '' where there is none."""
