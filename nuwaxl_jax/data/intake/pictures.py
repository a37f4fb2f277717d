"""Tables of single captioned pictures, put together to stories: FlintstonesSV++, PororoSV++ and what looks like them.

    [{"id": 1, "image": "s_01_e_26_shot_000055_000129.png", "text": "..."}, ..]

The files that FlintstonesSV++ publishes are such lists: `id` counts the rows, `image` is a clip's globalID. Any table
that `intake.manifests` reads will do which has a column `image` and none that names a video. Pictures lie beside the
table, or in `images/` beside it. What is a story is inferred, as no column says it:

    a globalID                all pictures of an episode, by their frames in it
    another name, a folder    all of that folder and of that name but for the number at its end, by the number
    a number alone            none: left out

Each picture is one frame. Nothing tells the time between two; they are put 3 s apart, the length of a clip of CRAFT.
Texts are a person's, unless the row's `caption_source` says otherwise or the table's name has '++' or 'plus_plus' in it
(those of the ++ sets were written by a language model). A story is in the split that a column `split` gives all its
pictures.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from typing import Any

from nuwaxl_jax import frames_io
from nuwaxl_jax.data.intake import captions as captions_lib
from nuwaxl_jax.data.intake import flintstones
from nuwaxl_jax.data.intake import manifests
from nuwaxl_jax.data.intake import records

_FPS = 1 / 3
_NUMBERED = re.compile(r"(.*?)(\d+)$")
_MACHINE = re.compile(r"\+\+|plus[_-]?plus", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class _Picture:
    """One row."""

    story: str
    order: tuple[int, int]
    path: pathlib.Path
    row: str
    caption: records.Caption
    split: str | None
    episode: str


def is_here(path: pathlib.Path) -> bool:
    """Whether the first row of a table is of a picture.

    Raises:
      IntakeError: no table.
    """
    for _, row in manifests.rows(path):
        if isinstance(row, dict):
            names = {str(name).strip().lower() for name in row}
            return "image" in names and not names & set(manifests.COLUMNS["path"])
    return False


def read(path: pathlib.Path) -> records.Listing:
    """Every story.

    Raises:
      IntakeError: no table.
    """
    stories: dict[str, list[_Picture]] = collections.defaultdict(list)
    left_out, seen = [], set()
    for number, row in manifests.rows(path):
        place = f"{path.name}:{number}"
        try:
            picture = _picture(path, row, place)
            if picture.path in seen:
                raise manifests.Unusable("picture occurs twice", str(picture.path))
        except manifests.Unusable as error:
            left_out.append(records.LeftOut(place, "listed", *error.args))
            continue
        seen.add(picture.path)
        stories[picture.story].append(picture)
    entries = [_entry(name, stories[name], left_out) for name in sorted(stories)]
    return records.Listing(path, "pictures", tuple(entries), tuple(left_out))


def _picture(table: pathlib.Path, row: dict[str, Any] | str, place: str) -> _Picture:
    if isinstance(row, str):
        raise manifests.Unusable("row cannot be read", row)
    image = next((value for name, value in row.items() if str(name).strip().lower() == "image"), None)
    if not isinstance(image, str) or not image.strip():
        raise manifests.Unusable("names no picture", f"image is {image!r:.80}")
    name = pathlib.PurePosixPath(image.strip())
    path = next((at for at in (table.parent / name, table.parent / "images" / name) if at.is_file()), None)
    if path is None:
        raise manifests.Unusable("no such file", str(table.parent / name))
    fields = manifests.fields_of(row)
    if not isinstance(fields["text"], str) or manifests.NOT_UTF8.search(fields["text"]):
        raise manifests.Unusable("text is no UTF-8 text", f"text is {fields['text']!r:.80}")
    try:
        source = captions_lib.source(fields["source"] or ("machine" if _MACHINE.search(table.name) else None))
    except ValueError as error:
        raise manifests.Unusable("caption_source is no text", str(error)) from error
    caption = records.Caption(records.clean(fields["text"]), source=source)
    split = manifests.split_of(fields["split"])
    if parsed := flintstones.parse_id(name.stem):
        episode = flintstones.episode_name(*parsed[:2])
        caption = dataclasses.replace(caption, clip=name.stem)
        return _Picture(episode, parsed[2:], path, place, caption, split, episode)
    match = _NUMBERED.match(name.stem)
    folder = "" if name.parent == pathlib.PurePosixPath(".") else f"{name.parent}/"
    story = f"{folder}{match[1]}".rstrip("/_-. ") if match else ""
    if not story:
        raise manifests.Unusable("the picture's name tells no story", str(name))
    return _Picture(story, (int(match[2]), 0), path, place, caption, split, "")


def _entry(name: str, pictures: list[_Picture], left_out: list[records.LeftOut]) -> records.Entry:
    """The story of some pictures; those of another split than its first are added to `left_out`."""
    ordered = sorted(pictures, key=lambda picture: (picture.order, picture.path))
    split = ordered[0].split
    for each in ordered:
        if each.split != split:
            detail = f"{each.split}, the first of {name} {split}"
            left_out.append(records.LeftOut(each.row, "listed", "split is not its story's", detail))
    ordered = [each for each in ordered if each.split == split]
    captions = tuple(dataclasses.replace(each.caption, frame=i) for i, each in enumerate(ordered) if each.caption.text)
    parts = tuple(frames_io.Part(each.path, i, 1) for i, each in enumerate(ordered))
    return records.Entry(name, ordered[0].path, captions, _FPS, split, ordered[0].episode, parts)
