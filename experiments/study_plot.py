"""The picture of a study: a panel a column of its table, and the story told over the frames."""

from __future__ import annotations

from collections.abc import Mapping
import io
import os
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw
import study_table

CURVE = "exact"  # the score that is drawn over the frames


def draw(study: Any, rows: Mapping[str, Mapping[str, Any]]) -> Image.Image:
    """Means over seeds with 95 % intervals: over the length where there are several, else an arm beside the other.

    Args:
      study: `study.Study`. rows: of results.json.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no global state, no display

    lengths = sorted({int(key.rsplit("/", 1)[1]) for key in rows})
    arms = [arm.name for arm in study.arms if any(key.startswith(f"{arm.name}/") for key in rows)]
    colours = colormaps["tab10" if len(arms) <= 10 else "tab20"].colors
    columns, names = 3, study_table.shown(study, rows)
    count = len(names) + 1
    figure = Figure(figsize=(13, 3.2 * -(-count // columns)), dpi=80, layout="constrained")
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).flat
    values = lambda arm, frames, name: list(study_table.by_seed(rows, arm, frames, name).values())
    for panel, name in zip(panels, names):
        for place, arm in enumerate(arms):
            there = [frames for frames in lengths if values(arm, frames, name)]
            if not there:
                continue
            means, halves = zip(*(study_table.interval(values(arm, frames, name)) for frames in there))
            x = np.arange(len(lengths))[[lengths.index(f) for f in there]] + 0.06 * (place - len(arms) / 2)
            style = dict(marker="o", capsize=3, linestyle="-" if len(lengths) > 1 else "")
            panel.errorbar(x, means, halves, color=colours[place], label=arm, **style)
        at = [n for n in lengths if values(study_table.FLOOR, n, name)]
        if at:
            floor = [values(study_table.FLOOR, n, name)[0] for n in at]
            style = dict(color="black", marker="_", linestyle=":" if len(at) > 1 else "", label=study_table.FLOOR)
            panel.plot([lengths.index(n) for n in at], floor, **style)
        panel.set_xticks(range(len(lengths)), [f"{n} frames" for n in lengths])
        panel.set_xlim(-0.5, len(lengths) - 0.5)
        panel.set_title(name)
        panel.grid(alpha=0.3)
    panel = panels[len(names)]
    for place, arm in enumerate(arms):
        curves = values(arm, lengths[-1], "curve")
        told = [c[CURVE] for c in curves if CURVE in c]
        if told:
            known = np.array(told, float)  # None becomes NaN
            panel.plot(curves[0]["frame"], np.nanmean(known, axis=0), marker=".", color=colours[place], label=arm)
    panel.set(title=f"{CURVE} over the frames of {lengths[-1]}", xlabel="frame", ylim=(-0.02, 1.05))
    panel.grid(alpha=0.3)
    for panel in panels[count:]:
        panel.set_axis_off()
    # Of the panel that has every arm; outside, where it covers none of them.
    most = max(panels, key=lambda panel: len(panel.get_legend_handles_labels()[1]))
    figure.legend(*most.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")


def stories(told: Mapping[str, str | os.PathLike]) -> Image.Image:
    """A story told by every arm: a row of frames each, the real ones above.

    Args:
      told: arm -> picture of two rows, the real frames and its own.
    """
    pictures = {name: Image.open(file).convert("RGB") for name, file in told.items()}
    width, height = (max(size) for size in zip(*(picture.size for picture in pictures.values())))
    row, margin = height // 2, 190
    sheet = Image.new("RGB", (margin + width, row * (1 + len(pictures))), "white")
    draw = ImageDraw.Draw(sheet)
    for place, name in enumerate(("the real story", *pictures)):
        picture = pictures.get(name) or next(iter(pictures.values()))
        top = picture.height - picture.height // 2 if place else 0
        sheet.paste(picture.crop((0, top, picture.width, top + picture.height // 2)), (margin, place * row))
        draw.text((6, place * row + row // 2 - 5), name, fill="black")
    return sheet
