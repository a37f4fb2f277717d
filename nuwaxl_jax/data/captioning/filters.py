"""Captions that are no good, by reason; and those that a person has written instead, applied last."""

from __future__ import annotations

import collections
from collections.abc import Iterable
import json
import pathlib
import re
from typing import Any

from nuwaxl_jax.data.intake import captions as captions_lib
from nuwaxl_jax.data.intake import records

Line = dict[str, Any]  # of captions.jsonl: video, frame, text, caption_source, model, revision, score

_WORDS = re.compile(r"\w+")
_LEAST_WORDS, _MOST_WORDS = 2, 200
_REPEATS = 4  # of three words in a row


def problem(text: str) -> str:
    """Why a machine's caption is of no use; '' where it is."""
    words = _WORDS.findall(text.lower())
    if not words:
        return "empty"
    if sum(character.isalpha() for character in text) < len(text.replace(" ", "")) / 2:
        return "not text"
    if len(words) < _LEAST_WORDS:
        return "one word"
    if len(words) > _MOST_WORDS:
        return f"over {_MOST_WORDS} words"
    threes = collections.Counter(zip(words, words[1:], words[2:]))
    if threes and max(threes.values()) >= _REPEATS:
        return "repeats itself"
    return ""


def apply(lines: Iterable[Line]) -> tuple[list[Line], collections.Counter]:
    """(lines that pass, how many went by reason); a human's are only asked to say something."""
    kept, gone = [], collections.Counter()
    for line in lines:
        why = problem(line["text"]) if line["caption_source"] == "machine" or not line["text"].strip() else ""
        if why:
            gone[why] += 1
        else:
            kept.append(line)
    return kept, gone


def overrule(lines: Iterable[Line], path: str) -> tuple[list[Line], int]:
    """(lines with a file's in their place, how many of the file's lines were used).

    The file holds lines as captions.jsonl: with "frame", that frame's caption; with "last" too, of the frames up to it;
    without, the whole video's in place of all its others. An empty text takes captions away.

    Raises:
      IntakeError: no such file, or a line that cannot be used.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise records.IntakeError(f"--overrides: {path} does not exist; give a jsonl file of captions")
    made = {(line["video"], line["frame"]): line for line in lines}
    used = 0
    for number, text in enumerate(captions_lib.read_text(file).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            video, caption = captions_lib.parse_line(json.loads(text))
        except ValueError as error:
            raise records.IntakeError(f"{path}:{number}: {error}") from error
        if video is None or caption.start > 0 or caption.end < float("inf"):
            raise records.IntakeError(f'{path}:{number}: give "video", and "frame" or nothing of when')
        if caption.frame is None:
            made = {key: line for key, line in made.items() if key[0] != video}
            place = {"frame": None}
        else:
            last = caption.frame if caption.last is None else caption.last
            covered = {(video, frame) for frame in range(caption.frame, last + 1)}
            made = {key: line for key, line in made.items() if key not in covered}
            place = {"frame": caption.frame} | ({} if caption.last is None else {"last": caption.last})
        line = dict(video=video, text=caption.text, caption_source="human", model="overrides", revision="", score=None)
        if caption.text:
            made[video, caption.frame] = line | place
        used += 1
    order = sorted(made, key=lambda key: (key[0], -1 if key[1] is None else key[1]))
    return [made[key] for key in order], used
