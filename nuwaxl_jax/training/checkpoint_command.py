"""--mode=checkpoint: lists, verifies, slims and converts the checkpoints of a workdir, on any machine.

    --mode=checkpoint --workdir=DIR                               every stage, every step, and where training resumes
    ... --verify [--stage=S] [--step=N]                           hashes every file, reads and fingerprints every array
    ... --slim   [--stage=S] [--step=N]                           leaves the averages alone: of N, or all but the newest
    ... --out=FILE.safetensors --stage=S [--step=N]               the whole state as one file
    ... --from=FILE.safetensors [--stage=S]                       that file as a checkpoint that training resumes from

Reads with numpy alone: what a pod saved needs none of its devices. Not for a workdir that a run is just writing to,
listing and verifying apart.

The safetensors file holds `state/params/..`, `state/opt_state/..`, `state/extra/..`, `state/step`, `ema/params/..`; its
header holds `format`, `stage`, `meta` (JSON: step, data position, config, fingerprints), `tree` (JSON: the nesting,
with names for arrays, so that tuples of an optimiser come back as such) and the hash of these.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from typing import Any, Callable

import jax
import numpy as np

from nuwaxl_jax import partitioning
from nuwaxl_jax import weights
from nuwaxl_jax.importing import tensors as tensors_lib
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import fingerprints
from nuwaxl_jax.training import manifest
from nuwaxl_jax.training import step_folders
from nuwaxl_jax.training import workdirs

FORMAT = "nuwaxl_jax checkpoint 1"
CheckpointError = checkpoint.CheckpointError
Say = Callable[[str], None]


def run(
    workdir: str,
    stage: str = "",
    step: int | None = None,
    *,
    verify: bool = False,
    slim: bool = False,
    out: str = "",
    source: str = "",
    say: Say = print,
) -> None:
    """The command; without verify, slim, out and source it lists.

    Args:
      workdir: of the run.
      stage: this one alone; '' all.
      step: this one alone; None all, or for `out` the newest good one.
      verify: read everything.
      slim: keep the averages alone.
      out: a .safetensors file to write.
      source: a .safetensors file written by `out`, to become a checkpoint.
      say: receives each line.

    Raises:
      CheckpointError, ValueError: one line: what is missing or damaged, and the mend.
    """
    if verify + slim + bool(out) + bool(source) > 1:
        raise ValueError("--mode=checkpoint takes one of --verify, --slim, --out and --from")
    if source:
        return read_file(source, workdir, stage, say=say)
    stages = workdirs.stages(workdir)
    if stage and stage not in stages:
        raise ValueError(f"--stage: {workdir} has no {stage!r}; it has {', '.join(stages) or 'no checkpoints'}")
    if not stages:
        raise ValueError(f"--workdir: {workdir} has no checkpoints; name the folder of a training run")
    if out:
        if not stage and len(stages) > 1:
            raise ValueError(f"--stage is missing; name one of {', '.join(stages)}")
        return write_file(workdir, stage or stages[0], step, out, say=say)
    if step is not None and not any(_has(workdir, s, step) for s in ([stage] if stage else stages)):
        raise ValueError(f"--step: {stage or workdir} has no checkpoint of step {step}; list them without --step")
    damaged = 0
    for name in [stage] if stage else stages:
        if slim:
            slim_stage(workdir, name, step, say=say)
        else:
            damaged += list_stage(workdir, name, step, verify=verify, say=say)
    if verify and damaged:
        raise CheckpointError(f"{workdir}: {damaged} damaged checkpoint(s), named above; training steps over them.")


def _has(workdir: str, stage: str, step: int) -> bool:
    return step in step_folders.steps(workdirs.stage_directory(workdir, stage))


def size(path: str) -> int:
    """Bytes of all files below a folder; what a running job deletes meanwhile counts nothing."""
    total = 0
    for where, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(where, name))
    return total


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _quick_problem(path: str) -> str:
    """Whether every file is there; nothing is read but the list."""
    if not manifest.exists(path):
        return step_folders.problem(path)
    try:
        missing = [name for name in manifest.read(path) if not os.path.isfile(os.path.join(path, name))]
    except (OSError, ValueError) as error:
        return step_folders.line(error)
    return f"{missing[0]}: is missing" if missing else ""


def _items_of(path: str) -> tuple[str, ...]:
    return ("ema",) if step_folders.is_slim(path) else ("state", "ema")


def _row(path: str, verify: bool) -> tuple[str, str]:
    """(line, what is wrong) of a complete step."""
    problem = checkpoint.read_verified(path, _items_of(path))[2] if verify else _quick_problem(path)
    try:
        meta = step_folders.read_meta(path)
    except (OSError, ValueError):
        meta = {}
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(meta.get("time") or os.stat(path).st_mtime))
    known = "" if manifest.exists(path) else ", of a version without hashes"
    state = f"DAMAGED ({problem})" if problem else f"{'verified' if verify else 'complete'}{known}"
    content = "EMA alone, slimmed" if step_folders.is_slim(path) else "parameters, EMA, optimiser"
    content += ", data position" if meta.get("data") is not None else ""
    loss = (meta.get("metrics") or {}).get("loss")
    content += "" if loss is None else f", loss {loss:.4g}"
    return f"{step_folders.number(path):>10}  {when}  {_megabytes(size(path)):>12}  {state}: {content}", problem


def list_stage(workdir: str, stage: str, step: int | None = None, *, verify: bool = False, say: Say = print) -> int:
    """Says what a stage has, newest last; the number of damaged steps."""
    directory = workdirs.stage_directory(workdir, stage)
    say(f"{stage}: {directory}")
    rows = {s: _row(step_folders.path_of(directory, s), verify) for s in _chosen(directory, step)}
    good = [p for p in step_folders.resumable(directory) if not rows.get(step_folders.number(p), ("", ""))[1]]
    resumed = step_folders.number(good[0]) if good else None
    for s, (line, _) in rows.items():
        say(line + ("  <- training resumes here" if s == resumed and step is None else ""))
    if step is None:
        for path in step_folders.leftovers(directory):
            meaning = "left by an interrupted save; the next training run removes it"
            if path in good:
                meaning = "written and not hashed yet; the next training run verifies it and resumes from it"
            say(f"  {os.path.basename(path)}  {_megabytes(size(path))}  {meaning}")
        for path in step_folders.set_aside_before(directory):
            say(f"  {os.path.basename(path)}  {_megabytes(size(path))}  damaged, set aside; delete it when you like")
        if not good:
            say("  nothing that training can resume from")
    return sum(bool(problem) for _, problem in rows.values())


def _chosen(directory: str, step: int | None) -> list[int]:
    return [s for s in step_folders.steps(directory) if step in (None, s)]


def slim_stage(workdir: str, stage: str, step: int | None = None, *, say: Say = print) -> None:
    """Replaces steps by folders that hold the averages alone; each change is one rename.

    Raises:
      CheckpointError: a step that is damaged, or the newest is, so that the others are needed.
    """
    directory = workdirs.stage_directory(workdir, stage)
    full = [s for s in step_folders.steps(directory) if not step_folders.is_slim(step_folders.path_of(directory, s))]
    if step is None and full:
        newest = step_folders.path_of(directory, full[-1])
        problem = checkpoint.read_verified(newest, ("state", "ema"))[2]
        if problem:
            raise CheckpointError(
                f"{newest}: is damaged ({problem}), so the steps before it stay whole; resume training, which steps "
                "back, and slim after its next checkpoint."
            )
    for s in full[:-1] if step is None else [s for s in full if s == step]:
        path = step_folders.path_of(directory, s)
        before = size(path)
        trees, meta, problem = checkpoint.read_verified(path, ("ema",))
        if problem:
            raise CheckpointError(f"{path}: is damaged ({problem}) and stays as it is; delete it, or slim the others.")
        new = path + step_folders.SLIMMING
        shutil.rmtree(new, ignore_errors=True)
        prints = {"ema": meta["fingerprints"]["ema"]}
        checkpoint.write(new, trees, {**meta, "fingerprints": prints, "format": step_folders.FORMAT})
        manifest.write(new)
        say(f"{path}: {_megabytes(before)} -> {_megabytes(size(step_folders.replace(new)))}, the EMA alone")
    if not step_folders.resumable(directory):
        say(f"{stage}: no checkpoint is left that training can resume from; sampling and later stages can use it")


def write_file(workdir: str, stage: str, step: int | None, out: str, *, say: Say = print) -> None:
    """Writes a checkpoint as one safetensors file, by atomic rename.

    Raises:
      CheckpointError: no such step, or a damaged one.
      ValueError: `out` is no .safetensors file.
    """
    if not out.endswith(".safetensors"):
        raise ValueError(f"--out: {out!r} must name the .safetensors file to write")
    directory = workdirs.stage_directory(workdir, stage)
    wrong = []
    for s in reversed(_chosen(directory, step)):
        path = step_folders.path_of(directory, s)
        trees, meta, problem = checkpoint.read_verified(path, _items_of(path))
        if not problem:
            break
        wrong.append((path, problem))
        say(f"{path}: DAMAGED ({problem}), left out")
    else:
        if wrong:
            raise step_folders.none_good(directory, wrong)
        raise CheckpointError(f"{directory}: no such checkpoint; list them with --mode=checkpoint.")
    names = jax.tree_util.tree_map_with_path(lambda path, _: partitioning.path_name(path), trees)
    flat = dict(zip(jax.tree.leaves(names), jax.tree.leaves(trees)))
    if len(flat) != len(jax.tree.leaves(trees)):
        raise CheckpointError(f"{path}: two arrays have one name; such a state has no safetensors form.")
    header = dict(format=FORMAT, stage=stage, meta=json.dumps(meta, sort_keys=True), tree=json.dumps(names))
    header["sha256"] = _digest(header)
    weights.save_tensors(out, {name: np.asarray(x, order="C") for name, x in flat.items()}, header)
    say(f"{out}: step {s} of {stage}, {len(flat)} arrays, {_megabytes(os.path.getsize(out))}")


def _digest(header: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(header[name] for name in ("stage", "meta", "tree")).encode()).hexdigest()


def _header(path: str) -> dict[str, str]:
    """The metadata of a safetensors file: a length, then JSON."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > os.path.getsize(path):
                raise ValueError("its header is longer than the file")
            values = json.loads(file.read(length)).get("__metadata__", {})
    except FileNotFoundError as error:
        raise ValueError(f"--from: {path} does not exist; give a file written by --mode=checkpoint --out") from error
    except (OSError, ValueError, AttributeError) as error:
        problem = step_folders.line(error)
        raise ValueError(f"--from: {path} is not a readable safetensors file ({problem}); copy it again") from error
    if values.get("format") != FORMAT:
        raise ValueError(f"--from: {path} is no checkpoint; it must be written by --mode=checkpoint --out")
    return values


def _filled(names: Any, arrays: Any) -> Any:
    """The nesting `names` with arrays in the place of their names."""
    if isinstance(names, dict):
        return {key: _filled(value, arrays) for key, value in names.items()}
    if isinstance(names, list):
        return [_filled(value, arrays) for value in names]
    return None if names is None else arrays[names]


def read_file(source: str, workdir: str, stage: str = "", *, say: Say = print) -> None:
    """Makes `write_file`'s file a checkpoint of `workdir`, complete, hashed, and with its config if there is none.

    Raises:
      ValueError: no such file, a damaged one, or a workdir of another config.
      CheckpointError: arrays that are not what was saved, or a step that is there already.
    """
    header = _header(source)
    try:
        if header["sha256"] != _digest(header):
            raise ValueError("its hash differs")
        meta, names = json.loads(header["meta"]), json.loads(header["tree"])
        trees = _filled(names, tensors_lib.Tensors(source))
        problems = [fingerprints.problem(trees[item], meta["fingerprints"][item]) for item in trees]
    except (KeyError, ValueError) as error:
        raise ValueError(f"--from: {source} is damaged ({step_folders.line(error)}); copy it again") from error
    if any(problems):
        raise CheckpointError(f"--from: {source}: {next(filter(None, problems))}; copy it again.")
    stage = stage or header["stage"]
    directory = workdirs.stage_directory(workdir, stage)
    path = step_folders.path_of(directory, int(meta["step"]))
    if os.path.exists(path):
        raise CheckpointError(f"{path}: is there already; choose another --workdir, or move it away first.")
    if meta.get("config"):
        workdirs.claim_workdir(workdir, json.dumps(meta["config"]))
    os.makedirs(directory, exist_ok=True)
    new = path + step_folders.SAVING
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(new)
    checkpoint.write(new, trees, {**meta, "format": step_folders.FORMAT})
    step_folders.seal(new)
    say(f"{path}: {_megabytes(size(path))}; training resumes from it")
