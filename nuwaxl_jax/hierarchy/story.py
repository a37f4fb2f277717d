"""Stories: prompts spread over the frames of a video.

A text file has one prompt a line, spread evenly: of n prompts, frame f of F has prompt floor(f n / F).
A JSON file says where each prompt begins, as a fraction of the video: frame f has the last prompt with
at (F - 1) <= f. A story does not know its number of frames, so one story serves a short preview and the
full video; in a video of fewer frames than prompts some prompts get no frame.
"""

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Story:
    """Prompts in the order of the video.

    Attributes:
      prompts: the texts.
      at: where each begins, in [0, 1], strictly rising from 0; None spreads them evenly.

    Raises:
      ValueError: if there is no prompt, a prompt is no string, or `at` does not rise from 0 within [0, 1].
    """

    prompts: tuple[str, ...]
    at: tuple[float, ...] | None = None

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("prompts is empty: give at least one prompt")
        for i, text in enumerate(self.prompts):
            if not isinstance(text, str):
                raise ValueError(f"prompts[{i}] is {text!r}: give a string")
        if self.at is None:
            return
        if len(self.at) != len(self.prompts):
            raise ValueError(f"at has {len(self.at)} entries for {len(self.prompts)} prompts: give one for each")
        for i, at in enumerate(self.at):
            if not 0.0 <= at <= 1.0:
                raise ValueError(f"at[{i}] is {at}: give a fraction of the video, from 0 to 1")
            if i and at <= self.at[i - 1]:
                raise ValueError(f"at[{i}] is {at}, not after {self.at[i - 1]}: give rising fractions")
        if self.at[0] != 0.0:
            raise ValueError(f"the first prompt is at {self.at[0]}: start one at 0, every frame needs a prompt")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Story":
        """Reads a story; a name that ends in `.json` is JSON, any other is text.

        JSON is {"prompts": [{"at": 0.0, "text": "..."}, ...]} in any order, or {"prompts": ["...", ...]}
        or a bare list of strings, spread evenly. In a text file blank lines are skipped.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is not UTF-8, not such JSON, or has no prompt; one line with file, field, mend.
        """
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such story file; give a .txt or .json file")
        with open(path, "rb") as f:
            data = f.read()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise ValueError(f"{path}: byte {e.start} is not UTF-8; save the story as UTF-8") from None
        try:
            if path.lower().endswith(".json"):
                return _from_json(text)
            lines = [line.strip() for line in text.split("\n")]
            return cls(tuple(line for line in lines if line))
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None

    @classmethod
    def from_captions(cls, captions: Sequence[str]) -> "Story":
        """A story of one caption a frame: with F captions, frame f of F has caption f. '' is the null prompt."""
        return cls(tuple(captions))

    def frame_prompts(self, num_frames: int) -> tuple[list[str], np.ndarray]:
        """The prompt of every frame.

        Args:
          num_frames: F >= 1.

        Returns:
          The different prompts, in order of first use, and for each frame its index among them, int32 [F].

        Raises:
          ValueError: if num_frames < 1.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        frame = np.arange(num_frames, dtype=np.int64)
        if self.at is None:
            number = frame * len(self.prompts) // num_frames
        else:
            # at (F - 1) may miss a whole number by rounding: 0.29 * 100 = 28.999999999999996.
            start = np.ceil(np.asarray(self.at) * (num_frames - 1) - 1e-6)
            number = np.searchsorted(start, frame, side="right") - 1
        seen = {}
        index = [seen.setdefault(self.prompts[i], len(seen)) for i in number]
        return list(seen), np.asarray(index, np.int32)

    def to_json(self) -> str:
        """The story as JSON that `load` reads back to an equal story, unless it has null prompts."""
        if self.at is None:
            prompts = list(self.prompts)
        else:
            prompts = [{"at": at, "text": text} for at, text in zip(self.at, self.prompts)]
        return json.dumps({"prompts": prompts}, ensure_ascii=False, indent=1)


def _from_json(text: str) -> Story:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"not JSON ({e}); mend it, or name a text story .txt") from None
    if isinstance(data, dict):
        if set(data) != {"prompts"}:
            raise ValueError(f'the fields are {sorted(data)}; give "prompts" alone')
        data = data["prompts"]
    if not isinstance(data, list):
        raise ValueError(f"prompts is a {type(data).__name__}; give a list")
    if not data:
        raise ValueError("prompts is empty: give at least one prompt")
    if isinstance(data[0], str):
        return Story(tuple(_checked_text(f"prompts[{i}]", entry) for i, entry in enumerate(data)))
    entries = sorted((_timed(i, entry) for i, entry in enumerate(data)), key=lambda entry: entry[0])
    for (a, _), (b, _) in zip(entries, entries[1:]):
        if a == b:
            raise ValueError(f'two prompts have "at" {a}; give each its own place or join their texts')
    return Story(tuple(text for _, text in entries), tuple(at for at, _ in entries))


def _timed(i: int, entry) -> tuple[float, str]:
    if not isinstance(entry, dict) or set(entry) != {"at", "text"}:
        raise ValueError(f'prompts[{i}] is {entry!r}; give {{"at": 0.0, "text": "..."}}, or strings only')
    at = entry["at"]
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at <= 1:
        raise ValueError(f"prompts[{i}].at is {at!r}; give a fraction of the video, from 0 to 1")
    return float(at), _checked_text(f"prompts[{i}].text", entry["text"])


def _checked_text(field: str, text) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field} is {text!r}; give a prompt")
    return text
