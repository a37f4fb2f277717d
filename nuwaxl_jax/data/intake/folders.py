"""A folder of videos, each with its captions beside it (`intake.captions`).

A video is a file with a known suffix, or a folder of at least two images whose names end in numbers and that holds no
video: its images in numerical order are its frames. Hidden files and folders are skipped.
"""

from __future__ import annotations

import os
import pathlib

from nuwaxl_jax import frames_io
from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import captions as captions_lib
from nuwaxl_jax.data.intake import records


def read(folder: pathlib.Path) -> records.Listing:
    """Every video below a folder.

    Raises:
      IntakeError: a malformed captions.jsonl.
    """
    names = find_videos(folder)
    captions, left_out = _captions(folder, names)
    gone = {each.name for each in left_out}
    entries = [records.Entry(name, folder / name, captions[name]) for name in names if name not in gone]
    return records.Listing(folder, "folder", tuple(entries), tuple(left_out))


def find_videos(folder: pathlib.Path) -> list[str]:
    """Names of the videos below `folder`, relative, with '/', sorted."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = pathlib.Path(place)
        videos = [f for f in files if f.lower().endswith(video_io.VIDEO_SUFFIXES) and not f.startswith(".")]
        found += [(here / name).relative_to(folder).as_posix() for name in videos]
        if not videos and here != folder and frames_io.is_frame_folder(files):
            found.append(here.relative_to(folder).as_posix())
    return sorted(found)


def _beside(folder: pathlib.Path, name: str, suffix: str) -> pathlib.Path:
    """The file of that suffix beside a video: clip.txt of clip.mp4, shot.v2.txt of the frame folder shot.v2."""
    path = folder / name
    return path.with_suffix(suffix) if path.suffix.lower() in video_io.VIDEO_SUFFIXES else folder / f"{name}{suffix}"


def shared_captions(
    file: pathlib.Path, names: set[str]
) -> tuple[dict[str, list[records.Caption]], list[records.LeftOut]]:
    """The lines of a captions.jsonl by video, and those of none.

    Raises:
      IntakeError: a malformed line, or one without "video".
    """
    found: dict[str, list[records.Caption]] = {}
    strangers = []
    for number, (video, caption) in enumerate(captions_lib.read_lines(file), start=1):
        if video is None:
            raise records.IntakeError(f'{file}: entry {number} has no field "video" that names its file.')
        if video in names:
            found.setdefault(video, []).append(caption)
        else:
            strangers.append(records.LeftOut(video, "caption", "caption of no video", f"{file.name}, entry {number}"))
    return found, strangers


def _captions(
    folder: pathlib.Path, names: list[str]
) -> tuple[dict[str, tuple[records.Caption, ...]], list[records.LeftOut]]:
    """The captions of each video, in ascending order of precedence; videos whose own captions cannot be read."""
    captions: dict[str, list[records.Caption]] = {name: [] for name in names}
    left_out = []
    for name in names:
        text_file = _beside(folder, name, ".txt")
        if text_file.is_file():
            try:
                text = records.clean(captions_lib.read_text(text_file))
            except records.IntakeError as error:
                left_out.append(records.LeftOut(name, "listed", "caption is not UTF-8 text", str(error)))
                continue
            if text:
                captions[name].append(records.Caption(text))
    shared = folder / "captions.jsonl"
    if shared.is_file():
        lines, strangers = shared_captions(shared, set(names))
        left_out += strangers
        for name, more in lines.items():
            captions[name].extend(more)
    for name in names:
        own = _beside(folder, name, ".jsonl")
        if own.is_file() and own != shared:
            captions[name].extend(caption for _, caption in captions_lib.read_lines(own))
    return {name: tuple(each) for name, each in captions.items()}, left_out
