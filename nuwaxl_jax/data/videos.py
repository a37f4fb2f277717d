"""Real videos as a source of episodes: one video, one episode.

What is read is whatever `data.intake` finds at a path: a folder of videos or of frame folders, or a manifest. Frames
count as the file has them, or by time at a given rate: frame k is then what is on the screen at k / fps seconds,
whatever the file's rate and however it varies. Frames that no caption covers have the empty one, which is the null
prompt, or the one nearest in time. A video's split follows from a hash of its name alone, so adding videos moves no
other. Videos that cannot be read, are too short or have no caption are left out, and the report says how many went at
each step, and which.
"""

import collections
import dataclasses
import os
import threading
from typing import Any

import numpy as np

from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import clock
from nuwaxl_jax.data.intake import contents
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import survey as survey_lib

CAPTION_FILLS = ("none", "nearest")

_OPEN_READERS = 8  # a thread


class VideoSource:
    """Episodes from real videos; see `nuwaxl_jax.data.sources` and the module's docstring.

    Attributes:
      videos: the Video of each episode, ordered by name.
      survey: what was kept, and why the others were not.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        split: str,
        frame_size: int,
        min_frames: int = 1,
        fps: float = 0.0,
        captions: str = "",
        caption_fill: str = "none",
        eval_fraction: float = 0.1,
        require_captions: bool = True,
        limits: video_io.Limits = video_io.Limits(),
    ):
        """Finds, indexes and checks the videos of one split; every file is read once, but not decoded.

        Args:
          path: a folder or a manifest, see `intake.places.read`.
          split: 'train', 'valid' or 'test'.
          frame_size: height and width of the frames, pixels: the centred square, scaled.
          min_frames: shorter videos are left out.
          fps: frames a second at which videos are taken, by time; 0: frame by frame as they are.
          captions: a captions.jsonl of its own, which comes before what the place says; '' for none.
          caption_fill: 'none', or 'nearest': frames without a caption take the nearest one's.
          eval_fraction: share of videos in 'valid', and as many in 'test'. Where a split would get none, all are in
            every split.
          require_captions: leave out videos without any caption.
          limits: of what is accepted as a video.

        Raises:
          FileNotFoundError: nothing at this path.
          ValueError: no video is left, or the place cannot be understood.
        """
        if split not in survey_lib.SPLITS:
            raise ValueError(f"split is {split!r}; choose one of {survey_lib.SPLITS}.")
        if frame_size < 1 or not 0 <= eval_fraction < 0.5:
            raise ValueError(f"frame_size is {frame_size}, eval_fraction {eval_fraction}; give >= 1 and 0 <= .. < 0.5.")
        if caption_fill not in CAPTION_FILLS:
            raise ValueError(f"caption_fill is {caption_fill!r}; choose one of {CAPTION_FILLS}.")
        self._frame_size, self._limits = frame_size, limits
        self._fps, self._nearest = fps, caption_fill == "nearest"
        self._local = threading.local()
        listing = places.read(path, captions)
        chosen = survey_lib.of_split(listing.entries, split, eval_fraction)
        if chosen is None:
            chosen = listing.entries
            if chosen:
                print(f"{path}: too few videos to split by name: all {len(chosen)} are in train, valid and test alike.")
        self.survey = survey_lib.survey(
            chosen, min_frames=min_frames, fps=fps, require_captions=require_captions, limits=limits
        )
        self.videos = self.survey.videos
        report = f"{path} [{split}]: {self.survey.line()}"
        print("\n".join([report, *survey_lib.lines((*listing.left_out, *self.survey.left_out))]))
        if not self.videos:
            raise ValueError(
                f"no video is left. {report}. Give {'/'.join(suffix[1:] for suffix in video_io.VIDEO_SUFFIXES)} files, "
                "with a caption for clip.mp4 in clip.txt or captions.jsonl, or a manifest; see --mode=data --check."
            )

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, i: int) -> str:
        """The name of video `i`, for reports."""
        return self.videos[i].entry.name

    def num_frames(self, i: int) -> int:
        """Number of frames of video `i`."""
        return survey_lib.length(self.videos[i].index, self._fps)

    def fps(self, i: int) -> float:
        """Frames a second of video `i`, on average where nothing was asked for."""
        return self._fps or self.videos[i].index.info.fps

    def _numbers(self, i: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(frame numbers in the file, seconds) of frames `index`."""
        index, times = np.asarray(index), self.videos[i].index.times
        if not self._fps:
            return index, times[index]
        seconds = index / self._fps
        return clock.shown(times, seconds), seconds

    def frames(self, i: int, index: np.ndarray) -> np.ndarray:
        """Frames `index` (int [n]) of video `i`: uint8 [n, frame_size, frame_size, 3].

        Raises:
          VideoError: naming the damaged file.
        """
        return self._reader(i).read(self._numbers(i, index)[0], self._frame_size)

    def captions(self, i: int, index: np.ndarray) -> list[str]:
        """The caption of each frame of `index` (int [n]); '' where there is none."""
        return survey_lib.texts(self.videos[i], *self._numbers(i, index), nearest=self._nearest)

    def fingerprint(self) -> str:
        """What tells these videos and captions from others: names, contents and captions, not places."""
        lines = []
        for i, video in enumerate(self.videos):
            captions = [dataclasses.astuple(caption) for caption in video.entry.captions]
            lines.append(f"{video.entry.name} {self.num_frames(i)} {contents.digest(video.entry)} {captions}")
        return "\n".join(lines)

    def _reader(self, i: int) -> survey_lib.Reader:
        """This thread's reader of video `i`; the least recently used are closed."""
        readers = self._local.__dict__.setdefault("readers", collections.OrderedDict())
        if i not in readers:
            video = self.videos[i]
            readers[i] = survey_lib.open_reader(video.entry, self._limits, video.index)
            if len(readers) > _OPEN_READERS:
                readers.popitem(last=False)[1].close()
        readers.move_to_end(i)
        return readers[i]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._local = threading.local()
