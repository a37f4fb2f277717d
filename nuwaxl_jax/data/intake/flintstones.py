"""CRAFT's annotations of the Flintstones, and its arrays of frames; ship no frame of them.

    CRAFT            flintstones_annotations_v1-0.json, train-val-test_split.json, video_frames/<globalID>.npy
    FlintstonesSV    the same annotations and splits, video_frames_sampled/<globalID>.npy (5 frames of each clip)

`globalID` is s_SS_e_EE_shot_FFFFFF_LLLLLL: season, episode, first and last frame of the episode. A clip of CRAFT has 75
frames at 25 a second; clips that follow each other without a gap are joined (`intake.consecutive`), FlintstonesSV's are
not. The caption is the annotation's `description`; pickles that lie beside are not opened.

Splits: the one that the owner's file says of a clip; else that of its episode's other clips where they have but one;
else by a hash of the episode.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
import dataclasses
import json
import pathlib
import re
from typing import Any

from nuwaxl_jax.data.intake import captions as captions_lib
from nuwaxl_jax.data.intake import consecutive
from nuwaxl_jax.data.intake import records

ANNOTATIONS = "flintstones_annotations_v1-0.json"
SPLIT = "train-val-test_split.json"
# Folder of frames -> frames a second: 75 frames of 3 s, or 5 of them.
FRAMES = {"video_frames": 25.0, "video_frames_sampled": 5 / 3}
_JOINED = "video_frames"
_ID = re.compile(r"s_(\d+)_e_(\d+)_shot_(\d+)_(\d+)$")
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """An annotation; `first` and `last` are frames of the episode, both included; `split` is ours, or None."""

    name: str
    season: int
    episode: int
    first: int
    last: int
    text: str
    split: str | None

    @property
    def episode_name(self) -> str:
        return episode_name(self.season, self.episode)


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder has these annotations."""
    return (folder / ANNOTATIONS).is_file()


def episode_name(season: int, episode: int) -> str:
    """'s01e02'."""
    return f"s{season:02}e{episode:02}"


def parse_id(name: str) -> tuple[int, int, int, int] | None:
    """(season, episode, first frame, last frame) of a globalID; None where it is none."""
    match = _ID.match(name)
    season, episode, first, last = (int(number) for number in match.groups()) if match else (0, 0, 0, -1)
    return (season, episode, first, last) if first <= last else None


def read_clips(folder: pathlib.Path) -> tuple[list[Clip], list[records.LeftOut]]:
    """The annotations, ordered by name, each once; and those that are of no clip.

    Raises:
      IntakeError: the annotations or the splits cannot be understood.
    """
    annotations = _json(folder / ANNOTATIONS, list)
    said = _splits(folder / SPLIT)
    clips: dict[str, Clip] = {}
    left_out = []
    for number, annotation in enumerate(annotations, start=1):
        name = annotation.get("globalID") if isinstance(annotation, dict) else None
        parsed = parse_id(name) if isinstance(name, str) else None
        if parsed is None:
            left_out.append(records.LeftOut(f"{ANNOTATIONS}, entry {number}", "listed", "globalID is none", repr(name)))
            continue
        if name in clips:
            left_out.append(records.LeftOut(name, "listed", "name occurs twice"))
            continue
        description = annotation.get("description")
        text = records.clean(description) if isinstance(description, str) else ""
        clips[name] = Clip(name, *parsed, text, said.get(name))
    shared = episode_splits(clips.values())
    filled = (dataclasses.replace(c, split=c.split or shared.get(c.episode_name)) for c in clips.values())
    return sorted(filled, key=lambda clip: clip.name), left_out


def without_text(name: str) -> records.LeftOut:
    """Tells of a clip that is part of a longer video and captions none of it."""
    return records.LeftOut(name, "caption", "annotation has no description")


def episode_splits(clips: Iterable[Clip]) -> dict[str, str]:
    """The split of each episode of whose clips those that have one have the same."""
    found = collections.defaultdict(set)
    for clip in clips:
        if clip.split:
            found[clip.episode_name].add(clip.split)
    return {episode: min(splits) for episode, splits in found.items() if len(splits) == 1}


def read(folder: pathlib.Path) -> records.Listing:
    """Every annotated clip with an array of frames, joined where they follow each other.

    Raises:
      IntakeError: the annotations or the splits cannot be understood, or no folder of frames is there.
    """
    present = [name for name in FRAMES if (folder / name).is_dir()]
    if not present:
        raise records.IntakeError(
            f"{folder}: has {ANNOTATIONS}, but none of the folders {', '.join(FRAMES)} and no video that is named by "
            "season and episode (s01e02.mp4); add what you have"
        )
    clips, left_out = read_clips(folder)
    entries = []
    for clip in clips:
        path = folder / present[0] / f"{clip.name}.npy"
        if not path.is_file():
            left_out.append(records.LeftOut(clip.name, "listed", "no such file", str(path)))
            continue
        captions = (records.Caption(clip.text, clip=clip.name),) if clip.text else ()
        entries.append(
            records.Entry(clip.name, path, captions, FRAMES[present[0]], clip.split, episode=clip.episode_name)
        )
    if present[0] == _JOINED:
        stretches = [consecutive.Stretch(entry, *parse_id(entry.name)[2:]) for entry in entries]
        entries, alone = consecutive.join(stretches, _joined_name)
        left_out += alone
        joined = {part.path.stem for entry in entries for part in entry.parts}
        left_out += [without_text(clip.name) for clip in clips if clip.name in joined and not clip.text]
    entries.sort(key=lambda entry: entry.name)
    return records.Listing(folder, "flintstones", tuple(entries), tuple(left_out))


def _joined_name(first: records.Entry, last_frame: int) -> str:
    """A globalID over all: s_01_e_02_shot_000100_000249."""
    return f"{first.name.rpartition('_')[0]}_{last_frame:06}"


def _json(path: pathlib.Path, kind: type) -> Any:
    try:
        value = json.loads(captions_lib.read_text(path))
    except records.IntakeError:
        raise
    except ValueError as error:
        raise records.IntakeError(f"{path}: is no JSON ({error}); fetch it again") from error
    if not isinstance(value, kind):
        raise records.IntakeError(f"{path}: holds no {kind.__name__}; fetch it again")
    return value


def _splits(path: pathlib.Path) -> dict[str, str]:
    """globalID -> our name of its split; empty without the file."""
    if not path.is_file():
        return {}
    value = _json(path, dict)
    wrong = [name for name in _SPLITS if not isinstance(value.get(name, []), list)]
    if wrong:
        raise records.IntakeError(f"{path}: {wrong[0]} is no list of globalIDs; fetch it again")
    return {name: ours for theirs, ours in _SPLITS.items() for name in value.get(theirs, ()) if isinstance(name, str)}
