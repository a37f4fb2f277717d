"""Scores over the frame number, one panel a score, one line a way of telling the story."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

PANELS = ("scene", "colour", "shape", "exact", "position", "difference")


def draw(curves: dict[str, dict[str, list[Any]]], num_frames: int) -> Image.Image:
    """The picture.

    Args:
      curves: for each way `{'frame': [...], score: [...]}` as `story_score.summarise` gives them; None is a gap.
    """
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(12, 6), dpi=80, layout="constrained")
    for panel, name in zip(figure.subplots(2, 3).flat, PANELS):
        for way, curve in curves.items():
            values = [float("nan") if v is None else v for v in curve[name]]
            panel.plot(curve["frame"], values, marker=".", label=way.replace("_", " "))
        panel.set(title=name, xlabel="frame", xlim=(0, num_frames))
        if name != "difference":
            panel.set_ylim(-0.02, 1.05)
        panel.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")
