"""Which code made a result: the package's version and, where it runs out of a checkout, the commit."""

from __future__ import annotations

import functools
from importlib import metadata
import pathlib
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


@functools.lru_cache(maxsize=1)
def code() -> dict[str, Any]:
    """`version`; of a git checkout also `commit` and, where tracked files differ from it, `changed`: True."""
    try:
        out: dict[str, Any] = {"version": metadata.version("nuwaxl_jax")}
    except metadata.PackageNotFoundError:  # run out of a folder, not installed
        out = {"version": "not installed"}
    if (ROOT / ".git").exists():  # a folder, or the file of a worktree; else git would look in folders above
        commit = _git("rev-parse", "HEAD")
        if commit:
            out |= {"commit": commit}
            out |= {"changed": True} if _git("status", "--porcelain", "--untracked-files=no", "--", "*.py") else {}
    return out


def _git(*words: str) -> str:
    """What git says; '' where there is no git, or it fails."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
