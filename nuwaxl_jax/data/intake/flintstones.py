"""The Flintstones files that exist, recognised by their layout; ship no frame of them.

    CRAFT            flintstones_annotations_v1-0.json, train-val-test_split.json, video_frames/<globalID>.npy
    FlintstonesSV    the same annotations and splits, video_frames_sampled/<globalID>.npy (5 frames of each clip)

`globalID` is s_SS_e_EE_shot_FFFFFF_LLLLLL: season, episode, first and last frame of the episode. A clip of CRAFT has 75
frames at 25 a second. The caption is the annotation's `description`; pickles that lie beside are not opened.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

from nuwaxl_jax.data.intake import captions as captions_lib
from nuwaxl_jax.data.intake import records

ANNOTATIONS = "flintstones_annotations_v1-0.json"
SPLIT = "train-val-test_split.json"
# Folder of frames -> frames a second: 75 frames of 3 s, or 5 of them.
FRAMES = {"video_frames": 25.0, "video_frames_sampled": 5 / 3}
_ID = re.compile(r"s_(\d+)_e_(\d+)_shot_(\d+)_(\d+)$")
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder has this layout."""
    return (folder / ANNOTATIONS).is_file()


def parse_id(name: str) -> tuple[int, int, int, int] | None:
    """(season, episode, first frame, last frame) of a globalID; None where it is none."""
    match = _ID.match(name)
    return tuple(int(number) for number in match.groups()) if match else None


def read(folder: pathlib.Path) -> records.Listing:
    """Every annotated clip.

    Raises:
      IntakeError: the annotations or the splits cannot be understood, or no folder of frames is there.
    """
    present = [name for name in FRAMES if (folder / name).is_dir()]
    if not present:
        raise records.IntakeError(f"{folder}: has {ANNOTATIONS}, but none of the folders {', '.join(FRAMES)}")
    annotations = _json(folder / ANNOTATIONS, list)
    splits = _splits(folder / SPLIT)
    entries, left_out = {}, []
    for number, annotation in enumerate(annotations, start=1):
        name = annotation.get("globalID") if isinstance(annotation, dict) else None
        if not isinstance(name, str) or parse_id(name) is None:
            left_out.append(records.LeftOut(f"{ANNOTATIONS}, entry {number}", "listed", "globalID is none", repr(name)))
            continue
        path = folder / present[0] / f"{name}.npy"
        if name in entries or not path.is_file():
            reason = "name occurs twice" if name in entries else "no such file"
            left_out.append(records.LeftOut(name, "listed", reason, "" if name in entries else str(path)))
            continue
        description = annotation.get("description")
        text = records.clean(description) if isinstance(description, str) else ""
        captions = (records.Caption(text),) if text else ()
        entries[name] = records.Entry(name, path, captions, FRAMES[present[0]], splits.get(name))
    return records.Listing(folder, "flintstones", tuple(entries[name] for name in sorted(entries)), tuple(left_out))


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
    return {name: ours for theirs, ours in _SPLITS.items() for name in value.get(theirs, ())}
