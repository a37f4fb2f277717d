"""Whole trees of ours from public tensors and back; what is missing, left over or misshapen is listed by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Sequence

from flax import traverse_util
import numpy as np

from nuwaxl_jax.importing import layouts
from nuwaxl_jax.importing.names import Entry


@dataclasses.dataclass(frozen=True)
class Report:
    """What did not fit.

    Attributes:
      missing: tensors that ours needs and the files do not have.
      unexpected: tensors of the files that ours has no place for.
      wrong: 'name: shape, ours wants shape'.
      taken: number of tensors that fit.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[str, ...]
    taken: int

    @property
    def fits(self) -> bool:
        """Whether every tensor that ours needs is there, in its shape."""
        return not self.missing and not self.wrong


def compare(
    entries: Sequence[Entry],
    shapes: Mapping[str, Sequence[int]],
    params: Mapping[str, Any],
    ignored: Sequence[str] = (),
) -> Report:
    """What of `params` the tensors can fill, by shapes alone.

    Args:
      entries: of `names`.
      shapes: of the tensors.
      params: our tree, arrays or shapes (`jax.eval_shape`).
      ignored: tensors, or prefixes of theirs, that are known to have no place (positions that can be computed).
    """
    ours = traverse_util.flatten_dict(params, sep="/")
    missing, wrong, used = [], [], set()
    for entry in entries:
        there = [name for name in entry.theirs if name in shapes]
        missing += [name for name in entry.theirs if name not in shapes]
        used.update(there)
        if len(there) < len(entry.theirs):
            continue
        try:
            empty = {name: np.broadcast_to(np.zeros((), np.int8), tuple(shapes[name])) for name in there}
            shape = layouts.to_ours(entry, empty).shape
        except ValueError as error:
            wrong.append(str(error))
            continue
        wanted = tuple(ours[entry.ours].shape)
        if shape != wanted:
            wrong.append(f"{', '.join(there)}: {shape} in our layout, {entry.ours} is {wanted}")
    unexpected = [name for name in shapes if name not in used and not name.startswith(tuple(ignored))]
    return Report(tuple(missing), tuple(unexpected), tuple(wrong), len(used))


def fill(entries: Sequence[Entry], tensors: Mapping[str, np.ndarray], params: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of our tree with the entries' arrays taken from the tensors, float32; all others stay."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    for entry in entries:
        leaves[entry.ours] = np.asarray(layouts.to_ours(entry, tensors), np.float32)
    return traverse_util.unflatten_dict(leaves, sep="/")


def tensors_of(entries: Sequence[Entry], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The public tensors that our tree's arrays are, in the arrays' dtype."""
    leaves, out = traverse_util.flatten_dict(params, sep="/"), {}
    for entry in entries:
        out |= layouts.to_theirs(entry, np.asarray(leaves[entry.ours]))
    return out
