"""Splits: the owner's hold, a file and an episode are in one, and no name but a file's own moves it."""

import csv
import itertools

import numpy as np
import pytest

from nuwaxl_jax import video_io
from nuwaxl_jax.data.intake import places
from nuwaxl_jax.data.intake import survey


def write_video(path):
    video_io.write_mp4(path, np.zeros((2, 32, 32, 3), np.uint8), 8)


def write_manifest(place, rows):
    with open(place / "clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return place / "clips.csv"


def test_splits_said_by_the_owner_hold(tmp_path):
    names = ("a", "b", "c", "d")
    splits = ("train", "validation", "test", "train")
    for name in names:
        write_video(tmp_path / f"{name}.mp4")
    rows = [dict(path=f"{name}.mp4", text="x", split=split) for name, split in zip(names, splits)]
    entries = places.read(write_manifest(tmp_path, rows)).entries
    assert [e.name for e in survey.of_split(entries, "train", 0.1)] == ["a.mp4", "d.mp4"]
    assert [e.name for e in survey.of_split(entries, "valid", 0.1)] == ["b.mp4"]


def names_by_split(count, fraction):
    """`count` names of each split by their hash."""
    found = {split: [] for split in survey.SPLITS}
    for number in itertools.count():
        found[survey.split_of(f"{number}.mp4", fraction)].append(f"{number}.mp4")
        if all(len(names) >= count for names in found.values()):
            return {split: names[:count] for split, names in found.items()}


@pytest.mark.parametrize("columns", [("id",), ("clip_id", "start", "end")])
def test_a_file_of_many_names_is_in_one_split(tmp_path, columns):
    by_hash = names_by_split(2, 0.3)
    rows = []
    for names in by_hash.values():
        for name in names:
            write_video(tmp_path / name)
            for i in range(5):
                rows.append((f"{name}-{i}", f"{'./' * (i % 2)}{name}", i))  # two ways to write one path
    write_video(tmp_path / "once.mp4")
    rows.append(("o", "once.mp4", 0))
    given = [dict(id=i, clip_id=i, path=path, text="x", start=at, end=at + 1) for i, path, at in rows]
    rows = [{column: row[column] for column in (*columns, "path", "text")} for row in given]
    entries = places.read(write_manifest(tmp_path, rows)).entries
    assert len(entries) == 31
    assert {e.name: e.episode for e in entries if not e.episode} == {"o": ""}  # named once: by its name, as ever
    for split, names in by_hash.items():
        held = {e.path.name for e in survey.of_split(entries, split, 0.3)} - {"once.mp4"}
        assert held == set(names)


def test_an_episode_said_by_the_owner_stays_where_a_file_has_many_names(tmp_path):
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4")
    rows = [dict(id=i, path="a.mp4", text="x", episode=episode) for i, episode in enumerate(("e", "e", ""))]
    rows += [dict(id="", path="a.mp4", text="x", episode=""), dict(id="b", path="b.mp4", text="x", episode="")]
    entries = places.read(write_manifest(tmp_path, rows)).entries
    assert [(e.name, e.episode) for e in entries] == [("0", "e"), ("1", "e"), ("2", "a.mp4"), ("a.mp4", ""), ("b", "")]


def test_a_video_without_a_split_leaves_the_owners_as_they_are(tmp_path, capsys):
    said = {f"t{i}.mp4": "train" for i in range(23)} | {f"v{i}.mp4": "val" for i in range(6)}
    blank = names_by_split(1, 0.1)["train"][0]
    rows = []
    for name, split in (said | {blank: ""}).items():
        (tmp_path / name).write_bytes(b"")
        rows.append(dict(path=name, text="x", split=split))
    entries = places.read(write_manifest(tmp_path, rows)).entries
    chosen = {split: {e.name for e in survey.of_split(entries, split, 0.1)} for split in survey.SPLITS}
    assert chosen["train"] == {name for name, split in said.items() if split == "train"} | {blank}
    assert chosen["valid"] == {name for name, split in said.items() if split == "val"} and not chosen["test"]
    assert capsys.readouterr().out == (
        "train: 1 of 24 videos are here by episode or name; the owner gives them no split\n"
    )


@pytest.mark.parametrize(
    "said, its", [(("test", ""), "test"), (("train", "test", ""), "test"), (("train", ""), "train")]
)
def test_what_the_owner_tests_on_is_not_trained_on(tmp_path, said, its):
    by_hash = names_by_split(1, 0.1)
    files = [by_hash["train"][0], by_hash["test"][0]]  # neither is placed by its hash
    rows = []
    for name in files:
        write_video(tmp_path / name)
        rows += [dict(id=f"{name}-{i}", path=name, text="x", split=split) for i, split in enumerate(said)]
    entries = places.read(write_manifest(tmp_path, rows)).entries
    for name in files:
        last = f"{name}-{len(said) - 1}"
        held = [split for split in survey.SPLITS if last in {e.name for e in survey.of_split(entries, split, 0.1)}]
        assert held == [its]
