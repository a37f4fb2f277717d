"""`--mode=data --prepare`: every video of a place as a set that trains fast, which any killed run goes on with."""

from __future__ import annotations

from collections.abc import Callable
import json
import os
import pathlib
import shutil
from typing import Any

import ml_collections

from nuwaxl_jax.data.intake import records
from nuwaxl_jax.data.intake import survey as survey_lib
from nuwaxl_jax.data.prepared import finish
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import plan as plan_lib
from nuwaxl_jax.data.prepared import staging as staging_lib
from nuwaxl_jax.data.prepared import write

_MOST_THREADS = 8


def prepare(
    config: ml_collections.ConfigDict,
    out: str | os.PathLike,
    *,
    image: str = "png",
    quality: int = 95,
    shard: int = 0,
    shards: int = 1,
    threads: int = 0,
    part_frames: int = 0,
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Prepares all videos at `config.data.path`.

    Work goes to `out` + '.partial', and the folder takes its name when it is complete. A run that was stopped goes on
    where it was; several at once, on one machine or on several that share the disk, divide the work.

    Args:
      config: reads `data`: path, captions, frame_size, fps, eval_fraction.
      out: the folder to make.
      image: 'png', the very frames that training from the videos reads, or 'jpeg'.
      quality: of JPEG.
      shard: this process, of
      shards: all that share the work; each makes its own part, and the last one finishes. With 1, any number of
        processes may be started, and each takes what no other is making.
      threads: that decode and encode; 0: one a core, at most 8.
      part_frames: most frames of a record file; 0: by their number, 256 to 4096.
      say: takes the report's lines.
      progress: takes a line that replaces the one before.

    Returns:
      The report (as report.json has it) with `folder`, `finished` and `frames_made`; without a report's counts where
      other shards are still to be made.

    Raises:
      FileNotFoundError: nothing at the path.
      PreparationError: a ValueError; the folder holds something else, or the disk is full or cannot be written.
      ValueError: no video can be read, or an option does not fit.
    """
    if not 0 <= shard < shards:
        raise ValueError(f"shard is {shard}; it must lie in 0..{shards - 1}")
    data, out = config.data, pathlib.Path(out)
    settings = format_lib.Settings(data.frame_size, float(data.fps), image, quality, data.eval_fraction)
    if not data.path:
        raise ValueError("data.path is empty; give the folder of videos, or a manifest, that the set is made from")
    if data.source == "prepared":
        raise ValueError(
            "data.source is 'prepared'; give the videos that it is to be made from, with data.source=folder"
        )
    _check_place(out)
    plan = plan_lib.make(data.path, settings, captions=data.captions, part_frames=part_frames, progress=progress)
    folder, made = finished(out, plan), 0
    if folder is None:
        staging, is_over = staging_lib.Staging(f"{out}.partial"), lambda: bool(format_lib.find(out))
        options = dict(shard=shard, shards=shards, threads=threads, say=say, progress=progress)
        made = work(plan, staging, is_over, **options)
        folder = _put_in_place(plan, staging, out, is_over, say)
        if folder is None:
            return dict(folder=str(out), finished=False, frames_made=made)
        report = _report(folder)
        told = (*lines(report), f"{folder}: complete")
    else:
        report, told = _report(folder), (f"{out}: is complete already; nothing to do",)
    for line in told:
        say(line)
    return report | dict(folder=str(out), finished=True, frames_made=made)


def _report(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / format_lib.REPORT).read_text(encoding="utf-8"))


def _check_place(out: pathlib.Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not format_lib.find(out))):
        raise format_lib.PreparationError(f"--out: {out} exists and is no prepared set; give another folder")


def finished(out: pathlib.Path, plan: plan_lib.Plan) -> pathlib.Path | None:
    """The folder of the records in `out`, where it is complete.

    Raises:
      PreparationError: it is of other settings or videos.
    """
    for folder in format_lib.find(out) if out.is_dir() else ():
        was = json.loads((folder / format_lib.SOURCES).read_text(encoding="utf-8"))
        differs = plan_lib.difference(was, plan.sources())
        if differs:
            raise format_lib.PreparationError(
                f"--out: {out} holds another set: {differs}; set that back, or give another --out, or remove {out}"
            )
        shutil.rmtree(f"{out}.partial", ignore_errors=True)  # left by a run killed at its very end
        return folder
    return None


def work(
    plan: plan_lib.Plan,
    staging: staging_lib.Staging,
    is_over: Callable[[], bool],
    *,
    shard: int = 0,
    shards: int = 1,
    threads: int = 0,
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> int:
    """Makes this process's record files of a set; returns the frames made here.

    Args:
      plan: of the set.
      staging: where it grows.
      is_over: whether another process has finished the whole set.
    """
    own = [unit for number, unit in enumerate(plan.units) if number % shards == shard]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        staging.settle(plan)
        crew = write.Crew(plan, staging, own, is_over, progress)
        crew.run(threads or min(_MOST_THREADS, cores))
    except FileNotFoundError:
        if is_over():  # another has finished and removed the folder
            return 0
        raise
    if crew.progress.made:
        say(f"{staging.folder}: {crew.progress.made:,} frames made here, {crew.progress.rate():.0f} a second")
    return crew.progress.made


def _put_in_place(
    plan: plan_lib.Plan,
    staging: staging_lib.Staging,
    out: pathlib.Path,
    is_over: Callable[[], bool],
    say: Callable[[str], None],
) -> pathlib.Path | None:
    """Puts the set together and gives it its name, unless another does; None while record files are to be made."""
    try:
        with staging.finishing():
            left = [] if is_over() else [unit for unit in plan.units if not staging.note(unit).exists()]
            if left:
                say(f"{staging.folder}: {len(left)} of {len(plan.units)} record files are for the other shards to make")
                return None
            if not is_over():
                finish.compose(plan, staging, finish.Identity(finish.NAME, plan.settings.name))
                with staging_lib.writing(out):
                    os.rename(staging.dataset, out)
                    staging_lib.sync(out.parent)
    except FileNotFoundError:
        if not is_over():  # else another has finished and removed the folder
            raise
    shutil.rmtree(staging.folder, ignore_errors=True)
    return format_lib.find(out)[0]


def lines(report: dict[str, Any]) -> list[str]:
    """A report for reading."""
    steps = " -> ".join(f"{count} {step}" for step, count in report["funnel"].items())
    out = [f"{report['path']} ({report['layout']}): {steps}"]
    out += survey_lib.lines(records.LeftOut(**each) for each in report["left_out"])
    bare = report["without_caption"]
    if bare:
        named = "; ".join(bare[:3]) + ("; .." if len(bare) > 3 else "")
        out.append(f"  {len(bare)} kept without any caption, which training leaves out: {named}")
    splits = ", ".join(f"{name} {count}" for name, count in report["splits"].items())
    size = f"{report['frames']:,} frames, {report['hours']:.2f} h, {report['bytes'] / 1e6:,.1f} MB"
    return [*out, f"  {size} in {report['shards']} record files; {splits}"]
