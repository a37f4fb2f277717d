"""Which frames of an episode make a training example (NUWA-XL, section 3.3).

Diffusion over diffusion draws a video of F = (L-1)^M + 1 frames in M levels.
Level k (0 = global) consists of (L-1)^k segments of L frames each, whose
frames lie s_k = (L-1)^(M-1-k) apart, so that a segment of level k spans
(L-1) s_k frames and neighbouring segments share their border frame.

A training example is such a segment cut from a longer episode of N frames:

    level    k ~ level_weights
    window   w ~ U{0, ..., N-F}            (the place of a whole video)
    segment  j ~ U{0, ..., (L-1)^k - 1}
    frames   w + j (L-1) s_k + i s_k,      i = 0, ..., L-1

An episode shorter than F still serves the levels of which one segment fits
(with weights renormalised over them): the window is then the longest row of
whole segments inside the episode. Stages that train on shorter clips take l < L
consecutive positions of the segment, and l = 1 takes any frame of the episode. Image
stages take l frames from anywhere in the episode (`scattered`), in no order.

Everything here is plain NumPy and a pure function of the generator passed in.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


def level_strides(segment_length: int, depth: int) -> tuple[int, ...]:
    """Frame distance inside a segment of each level: s_k = (L-1)^(M-1-k)."""
    return tuple((segment_length - 1) ** (depth - 1 - level) for level in range(depth))


def window_frames(segment_length: int, depth: int) -> int:
    """Frames of the whole video that M levels make: F = (L-1)^M + 1."""
    return (segment_length - 1) ** depth + 1


class Clip(NamedTuple):
    """One training example: `index` int64 [l] are its frames, at level `level`."""

    level: int
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClipSampler:
    """Draws clips from episodes.

    Attributes:
      segment_length: L, frames of a segment (the paper: 16).
      depth: M, levels of the hierarchy (the paper: 3).
      clip_length: l, frames of an example, 1 <= l <= L.
      level_weights: one non-negative weight a level; they need not sum to 1.
      scattered: an example is l frames drawn one by one from the whole episode: images, no clip.
    """

    segment_length: int
    depth: int
    clip_length: int
    level_weights: tuple[float, ...]
    scattered: bool = False

    def __post_init__(self):
        if self.segment_length < 3:
            raise ValueError(f"hierarchy.segment_length is {self.segment_length}; it must be at least 3.")
        if self.depth < 1:
            raise ValueError(f"hierarchy.depth is {self.depth}; it must be at least 1.")
        if not 1 <= self.clip_length <= self.segment_length:
            raise ValueError(
                f"clip_length is {self.clip_length}; it must lie between 1 and "
                f"hierarchy.segment_length = {self.segment_length}."
            )
        weights = np.asarray(self.level_weights, np.float64)
        if weights.shape != (self.depth,):
            raise ValueError(
                f"data.level_weights has {weights.size} entries; give hierarchy.depth = {self.depth}, one a level."
            )
        if not np.all(np.isfinite(weights)) or np.any(weights < 0) or weights.sum() <= 0:
            raise ValueError(f"data.level_weights is {self.level_weights}; give numbers >= 0, one of them positive.")

    def levels(self, num_frames: int) -> np.ndarray:
        """int [K]: levels with a weight of which one segment fits into `num_frames`."""
        spans = (self.segment_length - 1) * np.asarray(level_strides(self.segment_length, self.depth))
        return np.flatnonzero((spans < num_frames) & (np.asarray(self.level_weights) > 0))

    @property
    def single(self) -> bool:
        """Whether examples are single images, so that no level and no stride matters."""
        return self.scattered or self.clip_length == 1

    def usable(self, num_frames: int) -> bool:
        """Whether an episode of `num_frames` frames can serve any example."""
        if self.single:
            return num_frames >= 1
        return self.levels(num_frames).size > 0

    @property
    def min_frames(self) -> int:
        """The fewest frames with which an episode is of use."""
        if self.single:
            return 1
        strides = level_strides(self.segment_length, self.depth)
        finest = max(level for level, weight in enumerate(self.level_weights) if weight > 0)
        return (self.segment_length - 1) * strides[finest] + 1

    def sample(self, rng: np.random.Generator, num_frames: int) -> Clip:
        """Draws one clip.

        Args:
          rng: consumed; the result depends on nothing else.
          num_frames: N, frames of the episode.

        Returns:
          A Clip; 0 <= index < num_frames, evenly spaced at the level's stride (level 0 and anywhere for images).

        Raises:
          ValueError: where no segment fits (see `usable`).
        """
        if not self.usable(num_frames):
            raise ValueError(f"an episode of {num_frames} frames is too short; at least {self.min_frames} are needed.")
        if self.single:
            return Clip(0, rng.integers(num_frames, size=self.clip_length, dtype=np.int64))
        levels = self.levels(num_frames)
        cumulative = np.cumsum(np.asarray(self.level_weights, np.float64)[levels])
        level = int(levels[np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")])
        stride = level_strides(self.segment_length, self.depth)[level]
        span = (self.segment_length - 1) * stride
        segments = min((self.segment_length - 1) ** level, (num_frames - 1) // span)
        window = rng.integers(num_frames - segments * span)
        segment = rng.integers(segments)
        first = rng.integers(self.segment_length - self.clip_length + 1)
        index = window + segment * span + (first + np.arange(self.clip_length, dtype=np.int64)) * stride
        return Clip(level, index)


def level_coverage(sampler: ClipSampler, num_frames: np.ndarray) -> dict[int, int]:
    """How many episodes of `num_frames` (int [E]) are long enough for each level that has a weight."""
    lengths = np.asarray(num_frames)
    strides = level_strides(sampler.segment_length, sampler.depth)
    return {
        level: int(np.count_nonzero(lengths > (sampler.segment_length - 1) * stride))
        for level, (stride, weight) in enumerate(zip(strides, sampler.level_weights))
        if weight > 0
    }


def usable_episodes(sampler: ClipSampler, num_frames: np.ndarray) -> np.ndarray:
    """The episodes long enough to be sampled.

    Args:
      sampler: says what is needed.
      num_frames: int [E], length of each episode.

    Returns:
      int64 [K], their numbers in ascending order, K >= 1.

    Raises:
      ValueError: where none is left, with the count of each step.
    """
    lengths = np.asarray(num_frames, np.int64)
    usable = np.flatnonzero(lengths >= sampler.min_frames).astype(np.int64)
    if not usable.size:
        longest = int(lengths.max()) if lengths.size else 0
        raise ValueError(
            f"no episode is left: {lengths.size} found -> 0 of at least {sampler.min_frames} frames -> 0 kept "
            f"(the longest has {longest}). Give longer videos, or lower hierarchy.segment_length or the clip_length."
        )
    return usable
