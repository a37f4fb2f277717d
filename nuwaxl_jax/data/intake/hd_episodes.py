"""The user's own files of whole episodes, captioned by CRAFT's annotations through the numbers of their frames.

A folder with flintstones_annotations_v1-0.json, and anywhere below it video files or folders of numbered images named
by season and episode: s01e02, S1E2, 1x02, s_1_e_2, 'Season 1/Episode 02', 'Season 1 .. 02', S01/E02. Where one is
recognised, episodes are what is meant: arrays of clips that lie beside are left unused, and counted.

An annotation s_SS_e_EE_shot_FFFFFF_LLLLLL captions frames FFFFFF to LLLLLL, both included and counted from 0, of that
episode's file, frame for frame whatever the file's rate: a file with another cut, an intro more or frames added by
telecine is captioned beside the point, which only a look shows. An episode is in the split that the owner's file gives
all its clips, else in that of a hash of the episode.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re

from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import flintstones
from nuwaxl_jax.data.intake import folders
from nuwaxl_jax.data.intake import records

_BOTH = (
    re.compile(r"(?<![a-z])s[ ._-]*(\d{1,2})[ ._-]*e(?:p|pisode)?[ ._-]*(\d{1,3})(?!\d)(?P<more>[ ._-]*e\d)?"),
    re.compile(r"(?<![\da-z])(\d{1,2})x(\d{2})(?![\da-z])(?P<more>[ ._-]*\d{1,2}x\d{2}(?!\d))?"),
    re.compile(r"season[ ._-]*(\d{1,2})[ ._-]+(?:.*[^a-z])?e(?:p|pisode)?[ ._-]*(\d{1,3})(?!\d)(?P<more>[ ._-]*e\d)?"),
)
_SEASON = re.compile(r"(?<![a-z])(?:season|series)[ ._-]*(\d{1,2})(?!\d)|^s[ ._-]*(\d{1,2})$")
_EPISODE = re.compile(r"(?<![a-z])e(?:p|pisode)?[ ._-]*(\d{1,3})(?![\da-z])")
_NUMBER = re.compile(r"(?<![\da-z])(\d{1,3})(?![\da-z])")


def parse_name(name: str) -> tuple[int, int] | str:
    """(season, episode) of a relative path with '/', or why it is none."""
    path = pathlib.PurePosixPath(name.lower())
    places = [path.stem if path.suffix in video_io.VIDEO_SUFFIXES else path.name, *(p.name for p in path.parents)]
    if any(flintstones.parse_id(place) for place in places):
        return "is a clip and no episode"
    for place in places:
        for pattern in _BOTH:
            if match := pattern.search(place):
                if match["more"]:
                    return "names more than one episode"
                return int(match[1]), int(match[2])
    seasons = [match for place in places if (match := _SEASON.search(place))]
    if not seasons:
        return "names no season and episode"
    season = int(seasons[0][1] or seasons[0][2])
    rest = _SEASON.sub(" ", places[0])
    match = _EPISODE.search(rest) or _NUMBER.search(rest)
    return (season, int(match[1])) if match else "names no season and episode"


def find(folder: pathlib.Path) -> tuple[dict[tuple[int, int], str], list[records.LeftOut]]:
    """Relative paths of the episodes; and the videos and frame folders that are none, or one a second time."""
    found: dict[tuple[int, int], str] = {}
    left_out = []
    for name in folders.find_videos(folder):
        if name.split("/")[0] in flintstones.FRAMES:
            continue
        which = parse_name(name)
        if isinstance(which, str):
            left_out.append(records.LeftOut(name, "listed", which))
        elif which in found:
            left_out.append(records.LeftOut(name, "listed", "episode occurs twice", f"{found[which]} is used"))
        else:
            found[which] = name
    return found, left_out


def read(folder: pathlib.Path) -> records.Listing | None:
    """Every episode; None where none is recognised.

    Raises:
      IntakeError: the annotations or the splits cannot be understood.
    """
    files, left_out = find(folder)
    if not files:
        return None
    clips, wrong = flintstones.read_clips(folder)
    left_out += wrong
    by_episode = collections.defaultdict(list)
    for clip in clips:
        by_episode[clip.season, clip.episode].append(clip)
    splits = flintstones.episode_splits(clips)
    entries = []
    for (season, number), name in files.items():
        own = sorted(by_episode.pop((season, number), ()), key=lambda clip: (clip.first, clip.last))
        left_out += [flintstones.without_text(clip.name) for clip in own if not clip.text]
        captions = tuple(
            records.Caption(clip.text, frame=clip.first, last=clip.last, clip=clip.name) for clip in own if clip.text
        )
        episode = flintstones.episode_name(season, number)
        entries.append(records.Entry(name, folder / name, captions, split=splits.get(episode), episode=episode))
    for which, group in sorted(by_episode.items()):
        episode, detail = flintstones.episode_name(*which), f"{len(group)} annotations"
        left_out.append(records.LeftOut(episode, "caption", "annotated episode is not here", detail))
    for name in flintstones.FRAMES:
        if (folder / name).is_dir() and (count := sum(each.endswith(".npy") for each in os.listdir(folder / name))):
            left_out.append(records.LeftOut(f"{name}/", "unused", "episodes are used instead", f"{count} arrays"))
    entries.sort(key=lambda entry: entry.name)
    return records.Listing(folder, "flintstones_hd", tuple(entries), tuple(left_out))
