"""Recognises what a path holds and reads it: the one door to `intake`."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from nuwaxl_jax.data.intake import arldm
from nuwaxl_jax.data.intake import flintstones
from nuwaxl_jax.data.intake import folders
from nuwaxl_jax.data.intake import hd_episodes
from nuwaxl_jax.data.intake import manifests
from nuwaxl_jax.data.intake import pictures
from nuwaxl_jax.data.intake import records

_MANIFESTS = tuple(f"{name}{suffix}" for name in ("metadata", "manifest") for suffix in manifests.SUFFIXES)


def read(path: str | os.PathLike, captions: str = "") -> records.Listing:
    """All videos of a folder or a manifest; with `captions`, a captions.jsonl whose lines come before their own.

    A line names a video, or the file of which a video is a span: then its times are those of the file.

    Raises:
      FileNotFoundError: nothing is there.
      IntakeError: it cannot be understood as a whole.
    """
    listing = _read(pathlib.Path(path))
    if not captions:
        return listing
    file = pathlib.Path(captions)
    if not file.is_file():
        raise FileNotFoundError(f"data.captions: {captions} does not exist; give a captions.jsonl, or leave it empty")
    names = {entry.name for entry in listing.entries}
    whole = {entry.name: entry.name.rpartition("#")[0] for entry in listing.entries if entry.span is not None}
    more, left_out = folders.shared_captions(file, names | set(whole.values()))
    entries = []
    for entry in listing.entries:
        own, its_file = more.get(entry.name, ()), more.get(whole.get(entry.name), ())
        captions = dict(captions=(*entry.captions, *own), whole_captions=(*entry.whole_captions, *its_file))
        entries.append(dataclasses.replace(entry, **captions))
    return dataclasses.replace(listing, entries=tuple(entries), left_out=(*listing.left_out, *left_out))


def _read(place: pathlib.Path) -> records.Listing:
    """All videos of a folder or a manifest.

    A manifest file or a table of pictures; AR-LDM's HDF5 file; a folder with `metadata` or `manifest` .csv, .tsv,
    .jsonl, .json or .parquet in it; a folder with CRAFT's annotations and episodes, or else with arrays of its clips; a
    folder with `prompts.txt` and `videos.txt`; else a folder of videos and frame folders with captions beside them.

    Raises:
      FileNotFoundError: nothing is there.
      IntakeError: it cannot be understood as a whole.
    """
    if place.is_file():
        return _read_file(place)
    if not place.is_dir():
        raise FileNotFoundError(f"data.path: {place} does not exist; give a folder of videos, or a manifest")
    present = [name for name in _MANIFESTS if (place / name).is_file()]
    if len(present) > 1:
        raise records.IntakeError(f"data.path: {place} holds {' and '.join(present)}; name the one that is meant")
    if present:
        return _read_file(place / present[0])
    if flintstones.is_here(place):
        return hd_episodes.read(place) or flintstones.read(place)
    if (place / "videos.txt").is_file() and (place / "prompts.txt").is_file():
        return manifests.read_lists(place)
    return folders.read(place)


def _read_file(file: pathlib.Path) -> records.Listing:
    kind = file.suffix.lower()
    if kind in arldm.SUFFIXES:
        return arldm.read(file)
    if kind not in manifests.SUFFIXES:
        kinds = ", ".join((*manifests.SUFFIXES, *arldm.SUFFIXES))
        raise records.IntakeError(f"data.path: {file} is no manifest; give a folder, or a file of kind {kinds}")
    return pictures.read(file) if pictures.is_here(file) else manifests.read(file)
