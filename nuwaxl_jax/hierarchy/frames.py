"""The latents of a video's frames while its levels are being made, on the host."""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from nuwaxl_jax.hierarchy import plan as plan_lib


def attempt_key(key: jax.Array, attempt: int) -> jax.Array:
    """The key of the first attempt is the video's; each later one has its own."""
    return jax.random.fold_in(key, np.uint32(2**32 - attempt)) if attempt else key


class FrameLatents:
    """Latents of the frames of V videos that a plan touches, by frame number.

    Only those frames are held, not the whole tree: 1024 frames of a tree of 3376 take room for 1024 and
    the few keyframes beyond them. They are in rising order, so frames 0..F-1 are `array[:, :F]`.

    Attributes:
      frame_ids: int64 [U], rising.
      array: float32 [V, U, h, w, c].
      done: bool [V, U], whether a frame has been made.
    """

    def __init__(self, num_videos: int, plans: Iterable[plan_lib.LevelPlan], latent_shape: Sequence[int]):
        self.frame_ids = np.unique(np.concatenate([p.frame_index.ravel() for p in plans])).astype(np.int64)
        self.array = np.zeros((num_videos, len(self.frame_ids), *latent_shape), np.float32)
        self.done = np.zeros(self.array.shape[:2], bool)

    @property
    def num_videos(self) -> int:
        return self.array.shape[0]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.array.shape[2:]

    def read(self, video: np.ndarray, frame: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Given latents in their places, zeros elsewhere.

        Args:
          video: int [n].
          frame: int [n, L], frame numbers.
          given: bool [n, L].

        Returns:
          float32 [n, L, h, w, c].

        Raises:
          ValueError: if a given frame has not been made.
        """
        position, row = self._positions(frame), np.broadcast_to(video[:, None], frame.shape)
        missing = given & ~self.done[row, position]
        if missing.any():
            i, j = np.argwhere(missing)[0]
            raise ValueError(f"frame {frame[i, j]} of video {video[i]} is not made yet: make the levels in order")
        out = np.zeros((*frame.shape, *self.latent_shape), np.float32)
        out[given] = self.array[row[given], position[given]]
        return out

    def write(self, video: np.ndarray, frame: np.ndarray, new: np.ndarray, latents: np.ndarray) -> None:
        """Stores the frames where `new` bool [n, L] is True; `latents` is [n, L, h, w, c]."""
        position, row = self._positions(frame)[new], np.broadcast_to(video[:, None], frame.shape)[new]
        self.array[row, position] = latents[new]
        self.done[row, position] = True

    def mark(self, video: int, frame: np.ndarray) -> None:
        """Notes that frames (int [n]) of a video are made."""
        self.done[video, self._positions(frame)] = True

    def to_make(self, plan: plan_lib.LevelPlan) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """What is to be made of a level: (attempt, int32 [n] videos, int32 [n] segments), here all, video-major."""
        video, segment = np.indices((self.num_videos, plan.num_segments), np.int32).reshape(2, -1)
        return [(0, video, segment)]

    def note(self, plan: plan_lib.LevelPlan, video: np.ndarray, segment: np.ndarray, attempt: int) -> None:
        """Told after `write` which segments (int [n] each) were made."""

    def _positions(self, frame: np.ndarray) -> np.ndarray:
        position = np.searchsorted(self.frame_ids, frame)
        found = position < len(self.frame_ids)
        if not found.all() or (self.frame_ids[position] != frame).any():
            raise ValueError("frame: a number that is not in the plans these latents were made for")
        return position
