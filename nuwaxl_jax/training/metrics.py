"""Metrics: averages kept on the device, and a writer of JSON lines and TensorBoard events.

The only file that uses clu and tensorboardX. A metric is a `clu.metrics.Average` (total, count): averages of steps,
of micro-batches and of the examples of one level merge exactly, and one transfer a log interval brings them to the
host. clu's own writers import TensorFlow; tensorboardX writes the same event files without it. Its videos need
moviepy, so a video goes in as a raw image summary that holds an animated GIF, which TensorBoard plays.
"""

import io
import json
import os
import sys
from typing import Any

from clu import metrics as clu_metrics
from clu import parameter_overview
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import tensorboardX
from tensorboardX.proto import summary_pb2

NEVER = np.iinfo(np.int32).max
KEPT = 16

Average = clu_metrics.Average


@flax.struct.dataclass
class BadSteps:
    """Steps whose loss or gradient was not finite: the first KEPT of them (int32, then NEVER), and how many."""

    steps: jax.Array
    count: jax.Array

    def merge(self, other: "BadSteps") -> "BadSteps":
        both = jnp.sort(jnp.concatenate([self.steps, other.steps]))
        return BadSteps(both[:KEPT], self.count + other.count)


def bad_step(good: jax.Array, step: jax.Array) -> BadSteps:
    """`step` (int32) among the bad ones unless `good` (bool)."""
    steps = jnp.full(KEPT, NEVER, jnp.int32).at[0].set(jnp.where(good, NEVER, step))
    return BadSteps(steps, jnp.where(good, 0, 1).astype(jnp.int32))


def only_where(good: jax.Array, values: dict[str, Any]) -> dict[str, Any]:
    """The averages, counting nothing unless `good` (bool)."""
    return jax.tree.map(lambda x: jnp.where(good, x, jnp.zeros_like(x)), values)


def average(values: jax.Array, mask: jax.Array | None = None) -> Average:
    """The mean of `values`, where `mask` (broadcastable, 0 or 1) is 1; an empty mask counts nothing."""
    values = jnp.asarray(values, jnp.float32)
    mask = jnp.ones_like(values) if mask is None else jnp.broadcast_to(jnp.asarray(mask, jnp.float32), values.shape)
    # where, not a product: a value that is not finite outside the mask must not count.
    return Average(total=jnp.sum(jnp.where(mask > 0, values * mask, 0.0)), count=jnp.sum(mask))


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The metrics of two steps as one."""
    return {name: a[name].merge(b[name]) for name in a}


def to_host(values: dict[str, Any]) -> tuple[dict[str, float], list[int]]:
    """Waits for the device and returns (means, the first bad steps). Averages of nothing are left out; where steps were
    bad, the means have their number as skipped_steps."""
    values = jax.device_get(values)
    bad = values.get("bad_steps")
    means = {name: float(v.total / v.count) for name, v in values.items() if isinstance(v, Average) and v.count > 0}
    if bad is None or not bad.count:
        return means, []
    return means | {"skipped_steps": float(bad.count)}, [int(step) for step in bad.steps if step != NEVER]


def to_json(values: dict[str, Any]) -> dict[str, Any]:
    """The metrics as JSON, every bit of them; waits for the device."""
    values = jax.device_get(values)
    fields = {Average: ("total", "count"), BadSteps: ("steps", "count")}
    return {name: [np.asarray(getattr(v, field)).tolist() for field in fields[type(v)]] for name, v in values.items()}


def of_json(state: dict[str, Any]) -> dict[str, Any]:
    """What `to_json` was given, on the host."""
    out: dict[str, Any] = {}
    for name, (first, count) in state.items():
        if isinstance(first, list):
            out[name] = BadSteps(np.asarray(first, np.int32), np.asarray(count, np.int32))
        else:
            out[name] = Average(total=np.asarray(first, np.float32), count=np.asarray(count, np.float32))
    return out


def say(message: str) -> None:
    """One line to the user, from the first process alone."""
    if jax.process_index() == 0:
        print(message, file=sys.stdout, flush=True)


def warn(message: str) -> None:
    """`say`, on stderr."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def parameter_table(params: Any, max_lines: int | None = None) -> str:
    """Names, shapes, sizes and shardings of a tree of arrays, and the total."""
    return parameter_overview.get_parameter_overview(params, include_stats="sharding", max_lines=max_lines)


def gif(video: np.ndarray, fps: float = 8.0) -> bytes:
    """An animated GIF of uint8 [F, H, W, 3]."""
    frames = [Image.fromarray(frame) for frame in np.asarray(video)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


class MetricWriter:
    """Writes scalars, images and videos of a run; silent on every process but the first.

    Files: <directory>/metrics.jsonl, one {"step": .., name: value} a line, and TensorBoard events.
    """

    def __init__(self, directory: str):
        self._events = self._lines = None
        if jax.process_index() == 0:
            os.makedirs(directory, exist_ok=True)
            self._lines = open(os.path.join(directory, "metrics.jsonl"), "a", encoding="utf-8")
            self._events = tensorboardX.SummaryWriter(directory, flush_secs=30)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes named numbers."""
        if self._lines is None:
            return
        self._lines.write(json.dumps({"step": step, **{k: float(v) for k, v in values.items()}}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, float(value), step)

    def media(self, step: int, values: dict[str, np.ndarray], fps: float = 8.0) -> None:
        """Writes named uint8 images [H, W, 3] and videos [F, H, W, 3].

        Raises:
          ValueError: another dtype or another number of dimensions.
        """
        if self._events is None:
            return
        for name, value in values.items():
            value = np.asarray(value)
            if value.dtype != np.uint8 or value.ndim not in (3, 4) or value.shape[-1] != 3:
                raise ValueError(
                    f"{name!r} is {value.dtype} {value.shape}; an image is uint8 [H, W, 3], a video uint8 [F, H, W, 3]."
                )
            if value.ndim == 3:
                self._events.add_image(name, value, step, dataformats="HWC")
                continue
            image = summary_pb2.Summary.Image(
                height=value.shape[1], width=value.shape[2], colorspace=3, encoded_image_string=gif(value, fps)
            )
            summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, image=image)])
            self._events.file_writer.add_summary(summary, step)

    def text(self, step: int, name: str, value: str) -> None:
        """Writes a text."""
        if self._events is not None:
            self._events.add_text(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._lines is not None:
            self._lines.close()
            self._events.close()
            self._lines = self._events = None
