"""How sure a figure is: confidence intervals from resampled videos (Efron's bootstrap)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

REPLICATES = 100
LEVEL = 0.95
LEAST = 5  # videos: of fewer there are too few ways to draw for an interval to mean anything
METHOD = f"bootstrap over videos, {REPLICATES} replicates, {LEVEL:.0%} percentiles moved to centre on the value"

Statistic = Callable[..., float]


def of(statistic: Statistic, *sets: np.ndarray, paired: bool = False, seed: int = 0) -> tuple[float, float] | None:
    """A confidence interval for `statistic(*sets)`; None of fewer than `LEAST` videos.

    Videos, not frames, are drawn: the frames of a video depend on one another. Each set's are drawn with replacement,
    anew for each replicate; if `paired`, the same ones of every set. A Frechet distance of drawn videos is biased,
    since some are there twice, which looks like less spread; so the replicates' spread is put around the value itself.

    Args:
      statistic: of arrays [videos, ...].
      sets: arrays [videos, ...].
    """
    if min(map(len, sets)) < LEAST:
        return None
    rng = np.random.default_rng(seed)
    value = statistic(*sets)
    made = []
    while len(made) < REPLICATES:
        drawn = [rng.integers(len(one), size=len(one)) for one in (sets[:1] if paired else sets)]
        drawn *= len(sets) if paired else 1
        if all(len(np.unique(index)) > 1 for index in drawn):  # of one video alone there is no covariance
            made.append(statistic(*(one[index] for one, index in zip(sets, drawn))))
    low, high = np.quantile(made, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.mean(made)
    return float(value + low), float(value + high)


def of_mean(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """The same of a mean over videos, [videos]."""
    return of(lambda v: float(v.mean()), np.asarray(values, np.float64), seed=seed)


def rounded(interval: tuple[float, float] | None) -> Any:
    """For a record."""
    return None if interval is None else [round(bound, 6) for bound in interval]
