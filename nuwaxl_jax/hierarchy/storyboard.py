"""The storyboard: one PNG, one row a level of the tree, keyframes with their frame numbers and prompts.

Row 0 shows the frames of the root (global diffusion), each further row the frames of one segment of that level: the
one in the middle of the video, so that the eye can follow how a gap was filled.
"""

from __future__ import annotations

import io
import os
import textwrap
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nuwaxl_jax import files
from nuwaxl_jax.hierarchy import plan as plan_lib

_CELL = 128  # pixels of a shown frame
_TEXT = 64  # pixels of the text below it
_TITLE = 22


def rows_of(plans: Sequence[plan_lib.LevelPlan], num_frames: int) -> list[tuple[str, np.ndarray]]:
    """(title, frame numbers) of each row."""
    rows = []
    for plan in plans:
        segment = plan.num_segments // 2
        index = plan.frame_index[segment]
        index = np.unique(np.minimum(index, num_frames - 1))
        kind = "global diffusion" if plan.level == 0 else f"local diffusion {plan.level}"
        rows.append(
            (f"level {plan.level}: {kind}, stride {plan.stride}, segment {segment + 1} of {plan.num_segments}", index)
        )
    return rows


def draw(frames: dict[int, np.ndarray], rows: Sequence[tuple[str, np.ndarray]], prompts: Sequence[str]) -> Image.Image:
    """The picture.

    Args:
      frames: uint8 `[H, W, 3]` by frame number, all that `rows` names.
      prompts: prompt of every frame of the video.
    """
    columns = max(len(index) for _, index in rows)
    height = _TITLE + _CELL + _TEXT
    board = Image.new("RGB", (columns * (_CELL + 4) + 4, len(rows) * height + 4), "white")
    pen = ImageDraw.Draw(board)
    font, title_font = ImageFont.load_default(10), ImageFont.load_default(14)
    for row, (title, index) in enumerate(rows):
        top = row * height + 2
        pen.text((4, top), title, fill="black", font=title_font)
        for column, frame in enumerate(index):
            left = 4 + column * (_CELL + 4)
            cell = Image.fromarray(frames[int(frame)]).resize((_CELL, _CELL), Image.Resampling.NEAREST)
            board.paste(cell, (left, top + _TITLE))
            text = textwrap.fill(f"{frame}: {prompts[int(frame)]}", 23, max_lines=5, placeholder=" ...")
            pen.multiline_text((left, top + _TITLE + _CELL + 2), text, fill="black", font=font, spacing=1)
    return board


def save_png(path: str | os.PathLike, image: Image.Image) -> None:
    """Writes by atomic rename."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    files.write_bytes(path, data.getvalue())
