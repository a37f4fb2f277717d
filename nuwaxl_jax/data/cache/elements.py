"""An example as it is kept, and as a batch has it.

Kept: `moments` [l, h, w, 2 c] of the T-KLVAE's posterior; `masked` [2, l, h, w, 2 c], those of the masked videos, of
local clips with the handover by pixels; where the text encoder does not learn, `states` [u, N, D] of the u different
prompts of the clip, and `which` of them each frame has, int32 [l]; `tokens`, `level`, `episode` and `start` as read.
"""

from __future__ import annotations

import numpy as np

Element = dict[str, np.ndarray]


def kept(
    element: Element, moments: np.ndarray, masked: np.ndarray | None = None, states: np.ndarray | None = None
) -> Element:
    """The record of an element of the pipeline.

    Args:
      element: tokens, level, episode, start.
      moments, masked: see above; masked is left out at level 0, where no frame is ever given.
      states: [l, N, D], of each frame's prompt.
    """
    out = {name: element[name] for name in ("tokens", "level", "episode", "start")} | {"moments": moments}
    if masked is not None:
        out["has_masked"] = np.bool_(element["level"] > 0)
        if element["level"] > 0:
            out["masked"] = masked
    if states is not None:
        _, first, which = np.unique(element["tokens"], axis=0, return_index=True, return_inverse=True)
        out |= {"states": states[first], "which": which.reshape(-1).astype(np.int32)}
    return out


def read(record: Element) -> Element:
    """`kept`'s element as a batch has it: every field of the same shape in every example."""
    out = dict(record)
    if "has_masked" in out and not out.pop("has_masked"):
        moments = out["moments"]
        out["masked"] = np.zeros((2, *moments.shape), moments.dtype)
    if "states" in out:
        out["text"] = out.pop("states")[out.pop("which")]  # [l, N, D]
    return out
