"""Comparing seconds with the times of frames, which files round: Matroska and WebM keep whole milliseconds.

All that asks which frame is shown at a time goes through here, so that all get the same answer.
"""

from __future__ import annotations

import numpy as np

_ROUNDED = 1.5e-3  # seconds: half a millisecond for the frame, as much for the first, and some to spare


def tolerance(times: np.ndarray) -> float:
    """Seconds by which the times of frames, float64 [F], may be early: at most a quarter of the usual gap."""
    return min(_ROUNDED, 0.25 * float(np.median(np.diff(times)))) if len(times) > 1 else _ROUNDED


def shown(times: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The frame that is on the screen at each of `seconds` [n], of a video with these times: int [n]."""
    return np.maximum(np.searchsorted(times, seconds + tolerance(times), side="right") - 1, 0)
