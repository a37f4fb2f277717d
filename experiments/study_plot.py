"""The picture of a study: a panel a column of its table, and the story told over the frames."""

from __future__ import annotations

from collections.abc import Mapping
import io
from typing import Any

import numpy as np
from PIL import Image
import study_table

CURVE = "exact"  # the score that is drawn over the frames


def draw(study: Any, rows: Mapping[str, Mapping[str, Any]]) -> Image.Image:
    """Means over seeds with 95 % intervals: over the length where there are several, else an arm beside the other.

    Args:
      study: `study.Study`. rows: of results.json.
    """
    from matplotlib.figure import Figure  # no global state, no display

    lengths = sorted({int(key.rsplit("/", 1)[1]) for key in rows})
    arms = [arm.name for arm in study.arms if any(key.startswith(f"{arm.name}/") for key in rows)]
    columns = 3
    count = len(study.shown) + 1
    figure = Figure(figsize=(13, 3.2 * -(-count // columns)), dpi=80, layout="constrained")
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).flat
    values = lambda arm, frames, name: list(study_table.by_seed(rows, arm, frames, name).values())
    for panel, name in zip(panels, study.shown):
        for place, arm in enumerate(arms):
            there = [frames for frames in lengths if values(arm, frames, name)]
            if not there:
                continue
            means, halves = zip(*(study_table.interval(values(arm, frames, name)) for frames in there))
            x = np.arange(len(lengths))[[lengths.index(f) for f in there]] + 0.06 * (place - len(arms) / 2)
            panel.errorbar(
                x, means, halves, marker="o", capsize=3, linestyle="-" if len(lengths) > 1 else "", label=arm
            )
        panel.set_xticks(range(len(lengths)), [f"{n} frames" for n in lengths])
        panel.set_title(name)
        panel.grid(alpha=0.3)
    panel = panels[len(study.shown)]
    for arm in arms:
        curves = values(arm, lengths[-1], "curve")
        told = [c[CURVE] for c in curves if CURVE in c]
        if told:
            known = np.array(told, float)  # None becomes NaN
            panel.plot(curves[0]["frame"], np.nanmean(known, axis=0), marker=".", label=arm)
    panel.set(title=f"{CURVE} over the frames of {lengths[-1]}", xlabel="frame", ylim=(-0.02, 1.05))
    panel.grid(alpha=0.3)
    for panel in panels[count:]:
        panel.set_axis_off()
    panels[0].legend(fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")
