"""What XLA has compiled is kept from run to run, unless someone has decided otherwise.

JAX_COMPILATION_CACHE_DIR decides, if it is set (a pod's workers share one on the bucket). Else the folder is
NUWAXL_CACHE/compiled, or XDG_CACHE_HOME/nuwaxl_jax/compiled, or ~/.cache/nuwaxl_jax/compiled, one below it for each
kind of processor: a CPU's programs run on no lesser CPU. NUWAXL_CACHE=off keeps nothing. It may be deleted any time.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import re

import jax

LIMIT = 4 * 2**30  # bytes; the longest unused go first


def home() -> pathlib.Path | None:
    """The folder of all that is kept between runs; None: nothing is to be kept."""
    chosen = os.environ.get("NUWAXL_CACHE", "")
    if chosen == "off":
        return None
    if chosen:
        return pathlib.Path(chosen)
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(root) / "nuwaxl_jax"


def _processor() -> str:
    """A short name of what this machine's CPU can do."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:.*$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    except OSError:
        flags = []
    return hashlib.sha256(repr((platform.machine(), flags)).encode()).hexdigest()[:12]


def folder() -> pathlib.Path | None:
    """Where programs are kept; None: nowhere, or where JAX_COMPILATION_CACHE_DIR says."""
    root = home()
    if root is None or "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return None
    return root / "compiled" / _processor()


def use() -> None:
    """Keeps programs in `folder()`, where it can be written; to be called before anything is compiled."""
    where = folder()
    if where is None:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(where, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(where))
        jax.config.update("jax_compilation_cache_max_size", LIMIT)
