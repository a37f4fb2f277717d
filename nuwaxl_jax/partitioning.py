"""The device mesh and where arrays lie on it. The models know nothing of this.

Axes, always all three, size 1 where unused:

    data   the batch of training, the segments and videos of sampling
    fsdp   the batch too, and one dimension of every large parameter (and of its moments and EMA)
    model  tensor parallelism: the columns of the projections into attention and feed-forward layers, and the rows of
           the projections out of them; a feed-forward layer needs one all-reduce, attention exchanges parts of its
           joint projection too (queries, keys and values lie in one kernel)

Axes are of type Auto: linen fails under Explicit ones. A dimension that an axis does not divide is never sharded
over it: XLA would replicate it silently, so the choice is made here, where tests can see it.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")

# (path pattern, dimension that lies on `model`). Paths are 'a/b/kernel'. The first match decides.
_INTO = r"(attention/(qkv|kv|q)|feed_forward/in|mlp_in)"
_OUT_OF = r"(attention/out|feed_forward/out|mlp_out)"
MODEL_RULES = (
    (_INTO + r"/(kernel|bias)$", -1),
    (_OUT_OF + r"/kernel$", 0),
)


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Any = None) -> Mesh:
    """The mesh with axes ('data', 'fsdp', 'model').

    Args:
      data: devices along the batch; -1 takes all that fsdp and model leave.
      fsdp: devices over which parameters are sharded.
      model: devices of tensor parallelism.
      devices: the devices to use; None is all of them.

    Raises:
      ValueError: sizes that are not positive, or whose product is not the number of devices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    for name, size in (("fsdp", fsdp), ("model", model)):
        if size < 1:
            raise ValueError(f"mesh.{name} is {size}; it must be at least 1 (only mesh.data may be -1).")
    if data == -1:
        if len(devices) % (fsdp * model):
            raise ValueError(
                f"mesh.fsdp * mesh.model = {fsdp * model} does not divide {len(devices)} devices; "
                "choose sizes whose product does."
            )
        data = len(devices) // (fsdp * model)
    if data < 1:
        raise ValueError(f"mesh.data is {data}; it must be at least 1, or -1 for all devices that are left.")
    if data * fsdp * model != len(devices):
        raise ValueError(
            f"mesh.data * mesh.fsdp * mesh.model = {data} * {fsdp} * {model} is not the number of "
            f"devices, {len(devices)}; set mesh.data to -1 or change a size."
        )
    return jax.make_mesh((data, fsdp, model), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def path_name(path: tuple[Any, ...]) -> str:
    """'a/b/kernel' of a key path of `jax.tree_util.tree_map_with_path`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def param_spec(name: str, shape: tuple[int, ...], mesh: Mesh, min_size: int = 2**16) -> PartitionSpec:
    """Where one parameter lies: `model` by MODEL_RULES, then `fsdp` on the largest dimension left that it divides.

    Args:
      name: the path, 'a/b/kernel'.
      shape: of the parameter.
      mesh: made by `make_mesh`.
      min_size: parameters with fewer elements are not sharded over fsdp: gathering them costs more than they weigh.
    """
    spec: list[str | None] = [None] * len(shape)
    if mesh.shape["model"] > 1 and shape:
        for pattern, dimension in MODEL_RULES:
            if re.search(pattern, name):
                if shape[dimension] % mesh.shape["model"] == 0:
                    spec[dimension] = "model"
                break
    fsdp = mesh.shape["fsdp"]
    if fsdp > 1 and math.prod(shape) >= min_size:
        free = [d for d in range(len(shape)) if spec[d] is None and shape[d] % fsdp == 0]
        if free:
            # Of equal sizes the last: the output channels of a kernel.
            spec[max(free, key=lambda d: (shape[d], d))] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def param_shardings(abstract: Any, mesh: Mesh, min_size: int = 2**16) -> Any:
    """A NamedSharding a leaf of a tree of parameters, or of a whole train state: moments and EMA carry the same names.

    Args:
      abstract: tree of arrays or ShapeDtypeStructs.
      mesh: made by `make_mesh`.
      min_size: see `param_spec`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, param_spec(path_name(path), tuple(leaf.shape), mesh, min_size)), abstract
    )


def batch_spec(ndim: int = 1) -> PartitionSpec:
    """The leading axis over ('data', 'fsdp'), the others whole."""
    return PartitionSpec(BATCH_AXES, *(None,) * (ndim - 1))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_size_divides(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises ValueError naming `field` where the batch axes of the mesh do not divide the batch."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % devices:
        raise ValueError(
            f"{field} is {batch_size}, which mesh.data * mesh.fsdp = {devices} does not divide; "
            "change the batch or the mesh."
        )


def processes_of(mesh: Mesh) -> np.ndarray:
    """The process of each device of the mesh, int [data, fsdp, model]."""
    return np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)


def check_rows_of_processes(processes: np.ndarray) -> None:
    """Each process reads B / P rows of a batch that no other reads; a mesh must place them so.

    Args:
      processes: of `processes_of`.

    Raises:
      ValueError: devices of several processes would hold the same rows, or not every process equally many.
    """
    blocks = processes.reshape(-1, processes.shape[-1])  # [data * fsdp, model]: a line holds the same rows
    shared = next((np.unique(block).tolist() for block in blocks if len(np.unique(block)) > 1), None)
    if shared:
        raise ValueError(
            f"mesh.model is {blocks.shape[1]}, so processes {' and '.join(map(str, shared))} would hold the same rows "
            "of a batch, but each reads rows of its own; use a smaller mesh.model, within the devices of one process, "
            "and mesh.fsdp to shard parameters over all."
        )
    counts = np.unique(blocks[:, 0], return_counts=True)[1]
    if counts.min() < counts.max():
        raise ValueError(
            f"mesh.data * mesh.fsdp = {len(blocks)} gives one process {counts.min()} shares of a batch and another "
            f"{counts.max()}; start every process with as many devices."
        )


def replicate(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Pins the leading axis of x to the batch axes inside a jitted function; returns x where there is no mesh."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, batch_spec(x.ndim)))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays of this process's share of a batch. On many hosts each passes its own slice."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(value)) for name, value in batch.items()}
