"""One training example read from its episode; another drawn in its place where a file turns out to be bad."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np

from nuwaxl_jax import video_io
from nuwaxl_jax.data import clips
from nuwaxl_jax.data import sources
from nuwaxl_jax.data import text

Element = dict[str, np.ndarray]

TRIES = 8  # videos drawn for one example
_told: set[str] = set()  # messages this process has printed


@dataclasses.dataclass(frozen=True)
class ReadClip:
    """Turns an episode number and a generator into one element (see `pipeline.make_iterator`).

    A file that cannot be read any more (damaged inside, gone, changed) does not end the run: another of `episodes` is
    drawn from the same generator, so the element is still a function of the item's number and the files. `bad` holds
    the numbers of the episodes that failed, -1 where none did.
    """

    source: sources.EpisodeSource
    sampler: clips.ClipSampler
    tokenizer: text.WordTokenizer
    episodes: np.ndarray

    def __call__(self, episode: int, rng: np.random.Generator) -> Element:
        bad = np.full(TRIES, -1, np.int64)
        for attempt in range(TRIES):
            try:
                return self._read(int(episode), rng) | {"bad": bad}
            except (video_io.VideoError, OSError) as error:
                bad[attempt], message = episode, " ".join(str(error).split())
                if message not in _told:
                    _told.add(message)
                    print(f"data: {message}", file=sys.stderr, flush=True)
                episode = rng.choice(self.episodes)
        raise video_io.VideoError(f"{TRIES} videos drawn one after another cannot be read; the last: {message}")

    def _read(self, episode: int, rng: np.random.Generator) -> Element:
        clip = self.sampler.sample(rng, self.source.num_frames(episode))
        frames = self.source.frames(episode, clip.index)  # [l, H, W, 3]
        if frames.dtype != np.uint8 or frames.shape[:1] + frames.shape[3:] != (len(clip.index), 3):
            raise ValueError(
                f"episode {episode} gave frames {frames.dtype} {frames.shape}; "
                f"expected uint8 [{len(clip.index)}, H, W, 3]."
            )
        tokens = self.tokenizer.encode_batch(self.source.captions(episode, clip.index))  # [l, N]
        return {
            "frames": frames,
            "tokens": tokens,
            "level": np.int32(clip.level),
            "episode": np.int64(episode),
            "start": np.int64(clip.index[0]),
        }


class BadFiles:
    """Counts the episodes that could not be read, names each once, and ends the run past a limit."""

    def __init__(self, source: sources.EpisodeSource, limit: int):
        self._source, self._limit = source, limit
        self.times: dict[int, int] = {}  # episode -> how often it was drawn and could not be read

    def note(self, bad: np.ndarray) -> None:
        """Takes the `bad` of a batch, int [b, TRIES].

        Raises:
          VideoError: more different episodes have failed than `limit`.
        """
        for episode in bad[bad >= 0].tolist():
            new = episode not in self.times
            self.times[episode] = self.times.get(episode, 0) + 1
            if new:
                count = f"{len(self.times)} of at most {self._limit} bad videos"
                print(f"data: {self._name(episode)} left out from here on ({count})", file=sys.stderr, flush=True)
        if len(self.times) > self._limit:
            names = ", ".join(self._name(episode) for episode in list(self.times)[-3:])
            raise video_io.VideoError(
                f"data.max_bad: {len(self.times)} videos could not be read, the last {names}; see --mode=data --check, "
                "or allow more"
            )

    def _name(self, episode: int) -> str:
        name = getattr(self._source, "name", None)
        return name(episode) if name else f"episode {episode}"
