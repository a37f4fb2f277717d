"""The training step: loss, gradient, optimiser, EMA, in one compiled program that never waits for the host.

What a task's objective trains beside the parameters (a discriminator) is updated in the same program, from the same
backward pass.

Randomness: the key of step n is fold_in(key(seed), n), and every example of the global batch gets a key of its own
split from it. So the noise of an example depends on (seed, step, its place in the batch) alone: gradient accumulation
and the number of devices change nothing but the order of sums.
"""

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import state as state_lib

Metrics = dict[str, Any]
StepFn = Callable[[state_lib.TrainState, Any, dict[str, jax.Array], Any], tuple[state_lib.TrainState, Metrics]]


def _split(batch: Any, parts: int, mesh: Mesh | None) -> Any:
    """[B, ...] -> [parts, B / parts, ...]. Micro-batch i takes the examples i, i + parts, ..., so each device keeps
    its own examples."""

    def one(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
        if mesh is None:
            return x
        spec = jax.sharding.PartitionSpec(None, *partitioning.batch_spec(x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    return jax.tree.map(one, batch)


def gradients(
    task: Any,
    params: Any,
    frozen: Any,
    batch: dict[str, jax.Array],
    keys: jax.Array,
    *,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    held: Callable[[Any], Any] = lambda params: params,
) -> tuple[jax.Array, Metrics, Any]:
    """(loss, metrics, gradient) of a batch, by a scan over `accumulate` equal micro-batches.

    Args:
      task: with loss(params, frozen, batch, keys [B]) -> (mean loss, metrics).
      params: differentiated.
      frozen: passed through.
      batch: arrays with leading axis B.
      keys: [B], one an example.
      accumulate: divides B.
      mesh: of the batch.
      held: stops the gradient of parameters that do not learn.

    Raises:
      ValueError: accumulate does not divide the batch.
    """
    value_and_grad = jax.value_and_grad(lambda params, *rest: task.loss(held(params), *rest), has_aux=True)
    if accumulate == 1:
        (loss, values), grads = value_and_grad(params, frozen, batch, keys)
        return loss, values, grads
    if keys.shape[0] % accumulate:
        raise ValueError(
            f"accumulate is {accumulate}, which does not divide the batch of {keys.shape[0]}; choose a "
            "divisor of batch_size."
        )
    # As plain words: the check for key reuse takes the slices of a scan for one key.
    parts = _split(dict(batch=batch, keys=jax.random.key_data(keys)), accumulate, mesh)

    def body(carry, part):
        (loss, values), grads = value_and_grad(params, frozen, part["batch"], jax.random.wrap_key_data(part["keys"]))
        return jax.tree.map(lambda total, g: total + g / accumulate, carry, (loss, grads)), values

    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), values = jax.lax.scan(body, zero, parts)
    # Averages hold (total, count): their sums over the micro-batches are the batch's.
    return loss, jax.tree.map(lambda v: jnp.sum(v, axis=0), values), grads


def _held(params: Any, learning: str) -> Any:
    """The parameters; no gradient goes to those whose path `learning` does not occur in ('': to all)."""
    if not learning:
        return params
    mask = optim.learns(params, learning)
    return jax.tree.map(lambda p, learns: p if learns else jax.lax.stop_gradient(p), params, mask)


def _only_where(good: jax.Array, state: state_lib.TrainState, new: dict[str, Any]) -> state_lib.TrainState:
    """The state after a step: `new` of its fields if the step was good, else what they were."""
    old = {name: getattr(state, name) for name in new}
    kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, old)
    return state.replace(step=state.step + 1, **kept)


def make_train_step(
    task: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema_limit: float,
    accumulate: int = 1,
    schedule: optax.Schedule | None = None,
    mesh: Mesh | None = None,
    state: Any = None,
    frozen: Any = None,
    learning: str = "",
) -> StepFn:
    """(state, frozen, batch, seed) -> (state, metrics), jitted, the state donated.

    Args:
      task: with loss(params, frozen, batch, keys [B]) -> (mean loss float32, dict of `metrics.Average`). Where the
        state has `extra`, task.objective updates it, and the loss takes (params, extra['params']) and frozen['step'].
      optimizer: of the parameters.
      ema_limit: the EMA's decay after its warm-up.
      accumulate: micro-batches a step.
      schedule: of the learning rate, for its metric alone.
      mesh: None leaves every placement to the arguments.
      state: the real or abstract state, for its shardings; needed with a mesh.
      frozen: the real frozen tree, for its shardings; needed with a mesh.
      learning: pattern of the paths that learn, as the optimizer's; the others' gradients are not computed. '' is all.

    The metrics hold the task's own and loss, grad_norm (of what learns, before clipping), param_norm, learning_rate,
    bad_steps. A step whose loss or gradient is not finite changes nothing but the number of the step, and its values
    count in no mean.
    `metrics.merge` joins those of several steps without a transfer.
    """

    held = functools.partial(_held, learning=learning)

    def step(state, frozen, batch, seed):
        size = jax.tree.leaves(batch)[0].shape[0]
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), size)
        parts = dict(accumulate=accumulate, mesh=mesh)
        if state.extra is None:
            loss, values, grads = gradients(task, state.params, frozen, batch, keys, held=held, **parts)
            extra = None
        else:
            trained, seen = (state.params, state.extra["params"]), dict(frozen, step=state.step)
            both = dict(held=lambda pair: (held(pair[0]), pair[1]), **parts)
            loss, values, (grads, extra_grads) = gradients(task, trained, seen, batch, keys, **both)
            extra = task.objective.update(state.extra, extra_grads, state.step)
        loss = loss.astype(jnp.float32)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optim.update_ema(state.ema_params, params, optim.ema_decay(state.step, ema_limit))
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        if extra is not None:
            good &= jnp.isfinite(optax.tree.norm(extra_grads))
        values = dict(values)
        values["loss"] = metrics.average(loss)
        values["grad_norm"] = metrics.average(norm)
        values["param_norm"] = metrics.average(optax.tree.norm(params))
        if schedule is not None:
            values["learning_rate"] = metrics.average(schedule(state.step))
        values = metrics.only_where(good, values) | {"bad_steps": metrics.bad_step(good, state.step + 1)}
        new = dict(params=params, ema_params=ema, opt_state=opt_state, extra=extra)
        return _only_where(good, state, new), values

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    layout = state_lib.shardings(state)
    everywhere = partitioning.replicate(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(
            layout,
            jax.tree.map(lambda x: x.sharding, frozen),
            partitioning.batch_sharding(mesh),
            everywhere,
        ),
        out_shardings=(layout, everywhere),
    )
