"""Puts complete shards together to a set: names, facts of every episode, the caption table, TFDS's description."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from nuwaxl_jax import files
from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey as survey_lib
from nuwaxl_jax.data.prepared import captions as captions_lib
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import plan as plan_lib
from nuwaxl_jax.data.prepared import staging as staging_lib
from nuwaxl_jax.data.prepared import write

VERSION = "1.0.0"
NAME = "nuwaxl_videos"


@dataclasses.dataclass(frozen=True)
class Identity:
    """Of a TFDS data set: its files lie in <name>/<config>/<version>."""

    name: str
    config: str
    version: str = VERSION
    description: str = "Videos, one record a frame, prepared by nuwaxl_jax."

    @property
    def folder(self) -> str:
        return f"{self.name}/{self.config}/{self.version}"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A complete shard and its place in the set."""

    unit: plan_lib.Unit
    made: dict[str, Any]
    split: str
    file: str


def _shards(plan: plan_lib.Plan, staging: staging_lib.Staging, damaged: dict[int, str], name: str) -> list[Shard]:
    """The shards that hold frames, without parts of damaged videos; named as TFDS names them."""
    found = []
    for unit in plan.units:
        if unit.part and unit.pieces[0].video in damaged:
            continue
        made = staging.made(unit)
        if made["frames"]:
            found.append((unit, made))
    shards = []
    for split in survey_lib.SPLITS:
        its = [(unit, made) for unit, made in found if unit.split == split]
        theirs = format_lib.SPLITS[split]
        for number, (unit, made) in enumerate(its):
            file = f"{name}-{theirs}.array_record-{number:05d}-of-{len(its):05d}"
            shards.append(Shard(unit, made, split, file))
    return shards


def _episodes(plan: plan_lib.Plan, shards: list[Shard]) -> tuple[dict[str, list], list[tuple[int, list]]]:
    """(facts of every episode by column, ordered by name; (video, its parts' runs) in the same order)."""
    first, at, parts = {}, dict.fromkeys(survey_lib.SPLITS, 0), {}
    for shard in shards:
        for piece in shard.made["pieces"]:
            video = piece["video"]
            first.setdefault(video, at[shard.split])
            at[shard.split] += piece["stop"] - piece["start"]
            parts.setdefault(video, []).append((piece["start"], piece["runs"]))
    order = sorted(first)
    entries = [plan.videos[video].entry for video in order]
    columns = dict(
        name=[entry.name for entry in entries],
        episode=[entry.episode for entry in entries],
        split=[plan.splits[video] for video in order],
        first=[first[video] for video in order],
        frames=[plan.length(video) for video in order],
        fps=[float(plan.rate(video)) for video in order],
        captions=[len(entry.captions) for entry in entries],
    )
    return columns, [(video, parts[video]) for video in order]


def compose(plan: plan_lib.Plan, staging: staging_lib.Staging, identity: Identity) -> pathlib.Path:
    """Puts the set together in `staging.dataset`; stopped half-way, it can be called again.

    Every unit must be complete, and `staging.finishing` held.

    Returns:
      The folder of the records, `identity.folder` below `staging.dataset`.

    Raises:
      ValueError: all videos are damaged.
      PreparationError: the disk is full, or cannot be written.
    """
    folder = staging.dataset / identity.folder
    damaged = staging.damaged()
    shards = _shards(plan, staging, damaged, identity.name)
    report = _report(plan, shards, damaged)
    if not shards:
        reasons = "; ".join(damaged.values())
        raise ValueError(f"data.path: all {len(damaged)} videos at {plan.place} are damaged inside: {reasons[:500]}")
    episodes, parts = _episodes(plan, shards)
    with staging_lib.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for shard in shards:
            if staging.shard(shard.unit).exists():
                os.replace(staging.shard(shard.unit), folder / shard.file)
            elif not (folder / shard.file).exists():
                raise format_lib.PreparationError(
                    f"{staging.folder}: {shard.unit.name} is gone; remove it, start again"
                )
        _write_captions(plan, parts, folder)
        metadata = dict(
            format=format_lib.FORMAT,
            settings=plan.settings.record(),
            shared=plan.shared,
            episodes=episodes,
            shards={
                split: [[s.file, s.made["frames"], s.made["bytes"]] for s in shards if s.split == split]
                for split in survey_lib.SPLITS
            },
        )
        files.write_json(folder / format_lib.SOURCES, plan.sources())
        files.write_json(folder / format_lib.REPORT, report)
        describe(plan, identity, folder, metadata)
        for path in (*folder.iterdir(), *list(folder.parents)[:4]):
            staging_lib.sync(path)
    return folder


def _write_captions(plan: plan_lib.Plan, parts: list[tuple[int, list]], folder: pathlib.Path) -> None:
    out = write.Records(folder / f".{format_lib.CAPTIONS}.tmp")
    for video, its in parts:
        table = captions_lib.table(plan.videos[video], its)
        out.write(json.dumps(table, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    out.close()
    os.replace(folder / f".{format_lib.CAPTIONS}.tmp", folder / format_lib.CAPTIONS)


def split_infos(metadata: dict[str, Any]) -> list[Any]:
    """TFDS's description of the splits that hold records."""
    import tensorflow_datasets as tfds

    out = []
    for split, theirs in format_lib.SPLITS.items():
        shards = metadata["shards"][split]
        if shards:
            lengths, size = [count for _, count, _ in shards], sum(size for _, _, size in shards)
            out.append(tfds.core.SplitInfo(name=theirs, shard_lengths=lengths, num_bytes=size))
    return out


def describe(plan: plan_lib.Plan, identity: Identity, folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    """Writes metadata.json, features.json and dataset_info.json, this one last."""
    from tensorflow_datasets.core import dataset_info
    import tensorflow_datasets as tfds

    who = dataset_info.DatasetIdentity(
        name=identity.name,
        version=tfds.core.Version(identity.version),
        data_dir=os.fspath(folder),
        module_name="",
        config_name=identity.config,
    )
    info = tfds.core.DatasetInfo(
        builder=who,
        description=identity.description,
        features=tfds.features.FeaturesDict(format_lib.features(plan.settings)),
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(split_infos(metadata)))
    info.write_to_directory(folder)


def _report(plan: plan_lib.Plan, shards: list[Shard], damaged: dict[int, str]) -> dict[str, Any]:
    gone = [
        records.LeftOut(plan.videos[v].entry.name, "undamaged", "damaged inside", why) for v, why in damaged.items()
    ]
    kept = sorted({piece["video"] for shard in shards for piece in shard.made["pieces"]})
    splits = {split: sum(plan.splits[video] == split for video in kept) for split in survey_lib.SPLITS}
    return dict(
        path=plan.place,
        layout=plan.layout,
        settings=plan.settings.record(),
        funnel=plan.funnel | {"undamaged": len(kept)},
        left_out=[dataclasses.asdict(each) for each in (*plan.left_out, *gone)],
        splits={split: len(kept) for split in splits} if plan.shared else splits,
        without_caption=[plan.videos[v].entry.name for v in kept if not plan.videos[v].entry.captions],
        frames=sum(shard.made["frames"] for shard in shards),
        hours=sum(plan.length(video) / plan.rate(video) for video in kept) / 3600,
        shards=len(shards),
        bytes=sum(shard.made["bytes"] for shard in shards),
    )
