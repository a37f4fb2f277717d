"""What training changes, in one tree: the step, the parameters, their moving average, the optimiser.

No key is kept: the key of a step is fold_in(key(seed), step), so (seed, step) is the whole state of randomness.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from nuwaxl_jax import partitioning


@flax.struct.dataclass
class TrainState:
    """step int32 (finished optimiser steps); params and ema_params float32 trees of one structure; opt_state; extra.

    `extra` is what else a task trains, {'params', 'opt_state'} of its objective (`vae_objective`); None: nothing.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    extra: Any = None


def _extra(task: Any, key: jax.Array) -> Any:
    objective = getattr(task, "objective", None)
    return None if objective is None else objective.init(jax.random.fold_in(key, 1))


def _new(params: Any, optimizer: optax.GradientTransformation, extra: Any = None) -> TrainState:
    # The copy keeps params and ema_params separate buffers: both are donated to the step.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        extra=extra,
    )


def abstract(task: Any, optimizer: optax.GradientTransformation, mesh: Mesh, min_size: int = 2**16) -> TrainState:
    """The state's shapes, dtypes and shardings, nothing computed: leaves are ShapeDtypeStructs.

    Args:
      task: with init(key) -> params, and `objective` where it has one.
      optimizer: as `create`.
      mesh: made by `partitioning.make_mesh`.
      min_size: smallest parameter that is sharded over fsdp.
    """
    shapes = jax.eval_shape(lambda key: _new(task.init(key), optimizer, _extra(task, key)), jax.random.key(0))
    shardings = partitioning.param_shardings(shapes, mesh, min_size)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def shardings(state: TrainState) -> TrainState:
    """The sharding of each leaf of an abstract or a real state."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def create(
    task: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh | None = None,
    *,
    params: Any = None,
    min_size: int = 2**16,
) -> TrainState:
    """A new state, laid out over the mesh: no device ever holds more than its shard.

    Args:
      task: with init(key) -> params, and `objective` where it has one.
      optimizer: an optax transformation.
      key: typed key of the initialisation.
      mesh: None is a mesh of one device.
      params: start from these (numpy or jax arrays; the previous stage's EMA) instead of init(key).
      min_size: smallest parameter that is sharded over fsdp.

    Raises:
      ValueError: `params` whose structure or shapes are not those of the task.
    """
    mesh = partitioning.make_mesh(1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    target = abstract(task, optimizer, mesh, min_size)
    out = shardings(target)
    if params is None:
        # Hundreds of small random arrays, drawn once: code quality is worth nothing here, compile time is.
        quick = {"xla_backend_optimization_level": 0}
        new = lambda k: _new(task.init(k), optimizer, _extra(task, k))  # noqa: E731
        return jax.jit(new, out_shardings=out, compiler_options=quick)(key)
    check_like(params, target.params, "the parameters to start from")
    params = jax.tree.map(jax.device_put, params, out.params)
    return jax.jit(lambda p, k: _new(p, optimizer, _extra(task, k)), out_shardings=out)(params, key)


def check_like(params: Any, target: Any, what: str) -> None:
    """Raises ValueError naming the first leaf where `params` has another path or shape than `target`."""
    given = {partitioning.path_name(p): tuple(v.shape) for p, v in jax.tree_util.tree_leaves_with_path(params)}
    wanted = {partitioning.path_name(p): tuple(v.shape) for p, v in jax.tree_util.tree_leaves_with_path(target)}
    for name in sorted(set(given) | set(wanted)):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"{what}: {name!r} has shape {given.get(name, '(missing)')}, the model of this config "
                f"wants {wanted.get(name, '(nothing)')}; use the config those parameters were made with."
            )
