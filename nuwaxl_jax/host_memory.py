"""Freed memory is kept by the process and not given back to the system: training on a CPU touches the same pages again.

XLA:CPU allocates a step's buffers with malloc and frees them at its end. glibc maps large ones anew each time, and
every first touch of a page is a fault. `experiments/speed/README.md` has what that costs.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # <malloc.h>


def keep_freed_pages() -> bool:
    """Tells glibc to serve large blocks from its heap and never to shrink it; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))
    return all(mallopt(name, value) == 1 for name, value in settings)
