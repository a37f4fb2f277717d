"""Freed memory is kept by the process and not given back to the system: training on a CPU touches the same pages again.

XLA:CPU allocates a step's buffers with malloc, in whichever of its threads comes to them, and frees them at its end.
glibc maps large ones anew each time, and in a thread with an arena of its own those over 64 MiB whatever the thresholds
are; every first touch of a page is a fault. One arena for all threads, that never shrinks, ends both.
`experiments/speed/README.md` has what that costs.
"""

import ctypes
from importlib import metadata
import importlib.util
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # <malloc.h>


def cpu_alone(platforms: str | None) -> bool:
    """Whether JAX can find nothing but CPUs, told without asking it, since asking makes its threads.

    Args:
      platforms: `jax.config.jax_platforms`.
    """
    if platforms:
        return platforms == "cpu"
    return not metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def keep_freed_pages() -> bool:
    """Tells glibc to serve large blocks from one heap and never to shrink it; False where there is no glibc.

    Threads that have an arena keep it: call this before JAX has made its own.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28), (_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)
