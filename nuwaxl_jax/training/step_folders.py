"""The folders of one stage's checkpoints: their names, what each name means, and how one becomes another.

    <step>                         complete and sealed: `SHA256SUMS` names every file (older versions wrote none)
    <step>.orbax-checkpoint-tmp    being written; left behind by a killed save, removed
    <step>.saving                  completely written, not sealed yet; after a kill its fingerprints decide
    <step>.slimming                a sealed copy without the training state, about to take <step>'s place
    <step>.deleting                about to go; removed
    <step>.damaged, .damaged-2 ..  set aside, never deleted by us

Every change of state is one rename, so a kill leaves one of these and nothing in between.
"""

import json
import os
import re
import shutil
from typing import Any

from nuwaxl_jax.training import manifest
from nuwaxl_jax.training import metrics

SAVING, SLIMMING, DELETING, DAMAGED = ".saving", ".slimming", ".deleting", ".damaged"
FORMAT = 2  # of meta/metadata: from 2 on a sealed folder has SHA256SUMS
_META = os.path.join("meta", "metadata")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. One line that names the folder and the mend."""


def line(error: BaseException) -> str:
    """The error's text on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + "..."


def path_of(directory: str, step: int) -> str:
    """<directory>/<step>."""
    return os.path.join(directory, str(step))


def number(path: str) -> int:
    """The step of a folder in any state."""
    return int(os.path.basename(path).split(".")[0])


def _named(directory: str, pattern: str) -> list[str]:
    if not os.path.isdir(directory):
        return []
    with os.scandir(directory) as entries:
        return sorted(entry.path for entry in entries if re.fullmatch(pattern, entry.name) and entry.is_dir())


def steps(directory: str) -> list[int]:
    """The complete checkpoints, ascending; creates nothing."""
    return sorted(map(number, _named(directory, r"\d+")))


def leftovers(directory: str) -> list[str]:
    """What killed saves, deletions and slimmings left."""
    return _named(directory, rf"\d+({SAVING}|{SLIMMING})?\.orbax-checkpoint-tmp.*|\d+({SAVING}|{SLIMMING}|{DELETING})")


def set_aside_before(directory: str) -> list[str]:
    """Damaged folders that were set aside."""
    return _named(directory, rf"\d+\{DAMAGED}(-\d+)?")


def is_slim(path: str) -> bool:
    """Whether a folder was slimmed: it holds the averaged parameters alone, and is complete so."""
    try:
        return not any(name.startswith("state/") for name in manifest.read(path))
    except (OSError, ValueError):
        return False


def resumable(directory: str) -> list[str]:
    """Folders that training could resume from, newest first, good or damaged; those written and not sealed too."""
    saving = [p for p in _named(directory, rf"\d+\{SAVING}") if not os.path.exists(p.removesuffix(SAVING))]
    return sorted(saving + [p for p in _named(directory, r"\d+") if not is_slim(p)], key=number, reverse=True)


def read_meta(path: str) -> dict[str, Any]:
    """meta/metadata: step, data, config, fingerprints, and from format 2 on time, metrics.

    Raises:
      OSError, ValueError: it is not there, or not what was written.
    """
    with open(os.path.join(path, _META), encoding="utf-8") as file:
        meta = json.load(file)
    if not isinstance(meta, dict) or "fingerprints" not in meta:
        raise ValueError("holds no fingerprints")
    return meta


def problem(path: str, only: tuple[str, ...] = ("",), share: tuple[int, int] = (0, 1)) -> str:
    """What is wrong with the files of a folder, '' where nothing is known to be; see `manifest.problem`.

    Folders of older versions and those not sealed yet have no list of hashes: nothing is known of their files.

    Raises:
      CheckpointError: this user may not read it.
    """
    try:
        if manifest.exists(path):
            return manifest.problem(path, only, share)
        if not path.endswith(SAVING) and read_meta(path).get("format", 1) >= FORMAT:
            return f"{manifest.FILE}: is missing"
    except (manifest.Unreadable, PermissionError) as error:
        raise CheckpointError(f"{path}: may not be read ({line(error)}); give this user the right to.") from error
    except (OSError, ValueError) as error:
        return f"{_META}: {'is missing' if isinstance(error, FileNotFoundError) else line(error)}"
    return ""


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(path: str) -> str:
    """Writes the hashes of <step>.saving and gives it its name, <step>; the new path.

    Raises:
      OSError: the hashes cannot be written, or <step> exists.
    """
    manifest.write(path)
    final = path.removesuffix(SAVING)
    os.rename(path, final)
    _sync(os.path.dirname(final))
    return final


def remove(path: str) -> None:
    """Deletes a folder: first its name, then its files."""
    gone = path if path.endswith(DELETING) else os.path.join(os.path.dirname(path), f"{number(path)}{DELETING}")
    if gone != path:
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(path, gone)
    shutil.rmtree(gone)


def set_aside(path: str) -> str:
    """Renames a damaged folder to <step>.damaged; the new path."""
    base = os.path.join(os.path.dirname(path), f"{number(path)}{DAMAGED}")
    names = (base if k == 1 else f"{base}-{k}" for k in range(1, 1000))
    aside = next(name for name in names if not os.path.exists(name))
    os.rename(path, aside)
    return aside


def step_back(damaged: list[tuple[str, str]], good: int) -> None:
    """Sets aside each (folder, what is wrong with it), with one loud line; `good`: the step that training resumes."""
    for path, what in damaged:
        aside, again = os.path.basename(set_aside(path)), number(path) - good
        metrics.warn(
            f"DAMAGED CHECKPOINT {path} ({what}): set aside as {aside}; back to step {good}, {again} steps are trained "
            "again"
        )


def none_good(directory: str, damaged: list[tuple[str, str]]) -> CheckpointError:
    """That every checkpoint of a stage is damaged."""
    listed = "; ".join(f"{os.path.basename(path)}: {what}" for path, what in damaged)
    mend = "put a backup in its place, or rename the folder of the stage to train it anew"
    return CheckpointError(f"{directory}: no good checkpoint ({listed}); {mend}.")


def replace(new: str) -> str:
    """Puts the sealed <step>.slimming in <step>'s place; the new path."""
    final = new.removesuffix(SLIMMING)
    if os.path.exists(final):
        gone = f"{final}{DELETING}"
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(final, gone)
    os.rename(new, final)
    _sync(os.path.dirname(final))
    shutil.rmtree(f"{final}{DELETING}", ignore_errors=True)
    return final


def clean(directory: str) -> None:
    """Finishes or removes what a kill left; for the one process that writes here. Says what it did."""
    for path in leftovers(directory):
        final = os.path.join(directory, str(number(path)))
        if path.endswith(SLIMMING) and not os.path.exists(final) and manifest.exists(path) and not problem(path):
            replace(path)
            metrics.say(f"{final}: slimming was interrupted; finished")
    for path in leftovers(directory):
        if path.endswith(SAVING) and not os.path.exists(path.removesuffix(SAVING)):
            continue  # complete: `Checkpointer.restore` decides
        shutil.rmtree(path, ignore_errors=True)
        metrics.say(f"{path}: left by an interrupted save, removed")
