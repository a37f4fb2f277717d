"""The step: accumulation, devices and order change nothing; metrics merge exactly; bad steps are named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import optim
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import steps


def _optimizer():
    return optim.make_optimizer(learning_rate=1e-2, num_steps=10, weight_decay=0.01)


def _run(linear, *, mesh=None, accumulate=1, count=3, size=16, params=None, min_size=1):
    """(state, merged metrics) after `count` steps."""
    task, optimizer = linear.Task(), _optimizer()
    mesh = mesh or partitioning.make_mesh(devices=jax.devices()[:1])
    state = state_lib.create(task, optimizer, jax.random.key(3), mesh, params=params, min_size=min_size)
    frozen = jax.device_put(linear.frozen, partitioning.replicate(mesh))
    step = steps.make_train_step(
        task, optimizer, ema_limit=0.9, accumulate=accumulate, mesh=mesh, state=state, frozen=frozen
    )
    iterator, total = linear.Numbers(size), None
    for _ in range(count):
        batch = next(iterator)
        batch = partitioning.put_batch({name: batch[name] for name in task.fields}, mesh)
        state, values = step(state, frozen, batch, np.uint32(7))
        total = values if total is None else metrics.merge(total, values)
    return state, metrics.to_host(total)[0]


def _close(a, b, rtol):
    # atol: biases near zero after a few steps.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), jax.device_get(a), jax.device_get(b)
    )


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_whole_batch(linear, accumulate):
    whole, whole_metrics = _run(linear)
    parts, parts_metrics = _run(linear, accumulate=accumulate)
    _close(whole, parts, 1e-5)
    assert parts_metrics == pytest.approx(whole_metrics, rel=1e-5)


def test_accumulation_that_does_not_divide_is_refused(linear):
    with pytest.raises(ValueError, match="accumulate is 3, which does not divide the batch of 16"):
        _run(linear, accumulate=3)


@pytest.mark.parametrize("sizes", [dict(), dict(fsdp=8), dict(fsdp=4, model=2), dict(data=2, fsdp=4)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_devices_change_nothing(linear, sizes, accumulate):
    one, one_metrics = _run(linear)
    many, many_metrics = _run(linear, mesh=partitioning.make_mesh(**sizes), accumulate=accumulate)
    _close(one, many, 1e-5)
    assert many_metrics == pytest.approx(one_metrics, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_no_gradient_is_computed_of_what_does_not_learn(linear, accumulate):
    """The same parameters as with the optimizer's mask alone, and half the products: no kernel's gradient."""
    task, batch = linear.Task(), next(linear.Numbers(16))
    batch = {name: batch[name] for name in task.fields}
    optimizer = optim.make_optimizer(learning_rate=0.1, num_steps=10, trainable="bias")
    made, products = {}, {}
    for learning in ("", "bias"):
        state = state_lib.create(task, optimizer, jax.random.key(0))
        step = steps.make_train_step(task, optimizer, ema_limit=0.9, accumulate=accumulate, learning=learning)
        program = step.lower(state, linear.frozen, batch, np.uint32(0)).compile()
        products[learning] = program.as_text().count(" dot(")
        made[learning] = program(state, linear.frozen, batch, np.uint32(0))
    assert products["bias"] < products[""]
    jax.tree.map(np.testing.assert_array_equal, made["bias"][0].params, made[""][0].params)
    norms = {name: metrics.to_host(values)[0]["grad_norm"] for name, (_, values) in made.items()}
    assert 0 < norms["bias"] < norms[""]


def test_noise_of_an_example_is_its_own_and_changes_with_the_step(linear):
    # One batch again and again, a learning rate of 0: the loss moves by its noise alone.
    task, optimizer = linear.Task(noise=1.0), optim.make_optimizer(learning_rate=0.0, num_steps=10)
    step = steps.make_train_step(task, optimizer, ema_limit=0.9)
    batch = {name: value for name, value in next(linear.Numbers(16)).items() if name in task.fields}

    def losses(seed):
        state, out = state_lib.create(task, optimizer, jax.random.key(0)), []
        for _ in range(3):
            state, values = step(state, linear.frozen, batch, np.uint32(seed))
            out.append(metrics.to_host(values)[0]["loss"])
        return out

    assert losses(1) == losses(1)
    assert len(set(losses(1) + losses(2))) == 6


def _is_adam(part):
    return isinstance(part, optax.ScaleByAdamState)


def test_state_is_sharded_with_its_moments_and_stays_so(linear):
    state, _ = _run(linear, mesh=partitioning.make_mesh(fsdp=8))
    spec = jax.sharding.PartitionSpec(None, "fsdp")
    (moments,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(part))
    for tree in (state.params, state.ema_params, moments.mu, moments.nu):
        assert tree["dense"]["kernel"].sharding.spec == spec
        assert tree["dense"]["kernel"].addressable_shards[0].data.shape == (8, 2)
    assert state.step.sharding.is_fully_replicated


def test_starting_parameters_are_used_for_both_trees(linear):
    start = {"dense": {"kernel": np.full((8, 16), 2.0, np.float32), "bias": np.zeros(16, np.float32)}}
    state, _ = _run(linear, count=1, params=start)
    # After one step the EMA (decay 0.1) is 0.1 * start + 0.9 * params.
    expected = 0.1 * start["dense"]["kernel"] + 0.9 * np.asarray(state.params["dense"]["kernel"])
    np.testing.assert_allclose(state.ema_params["dense"]["kernel"], expected, rtol=1e-5)


def test_starting_parameters_of_another_shape_are_refused(linear):
    start = {"dense": {"kernel": np.zeros((8, 17), np.float32), "bias": np.zeros(16, np.float32)}}
    with pytest.raises(
        ValueError, match=r"'dense/kernel' has shape \(8, 17\), the model of this config wants \(8, 16\)"
    ):
        _run(linear, params=start)


def test_averages_are_means_over_all_examples_not_over_steps():
    first = {"m": metrics.average(jnp.array([1.0, 3.0]), jnp.array([True, False]))}
    second = {"m": metrics.average(jnp.array([5.0, 6.0]), jnp.array([True, True]))}
    means, bad = metrics.to_host(metrics.merge(first, second))
    assert means["m"] == pytest.approx(4.0) and bad == []


def test_average_of_nothing_is_left_out_and_masked_nan_does_not_count():
    values = {
        "empty": metrics.average(jnp.array([1.0]), jnp.array([False])),
        "masked": metrics.average(jnp.array([jnp.nan, 2.0]), jnp.array([False, True])),
    }
    assert metrics.to_host(values)[0] == {"masked": 2.0}


def test_a_step_that_is_not_finite_changes_nothing_and_is_told(linear):
    task, optimizer = linear.Task(), _optimizer()
    state = state_lib.create(task, optimizer, jax.random.key(0))
    step = steps.make_train_step(task, optimizer, ema_limit=0.9)
    iterator, total, seen = linear.Numbers(bad=2), None, []
    for _ in range(5):
        batch = next(iterator)
        state, values = step(state, linear.frozen, {name: batch[name] for name in task.fields}, np.uint32(0))
        total = values if total is None else metrics.merge(total, values)
        seen.append(jax.device_get((state.params, state.ema_params, state.opt_state)))
    means, bad = metrics.to_host(total)
    assert bad == [3, 4, 5] and means["skipped_steps"] == 3 and int(state.step) == 5
    assert all(np.isfinite(value) for value in means.values())
    jax.tree.map(np.testing.assert_array_equal, seen[1], seen[4])
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, seen[0], seen[1])


def test_only_the_first_bad_steps_are_kept_and_all_are_counted():
    total = None
    for step in range(1, 60):
        one = {"bad_steps": metrics.bad_step(jnp.bool_(step % 2), jnp.int32(step))}
        total = one if total is None else metrics.merge(total, one)
    means, bad = metrics.to_host(total)
    assert bad == list(range(2, 2 + 2 * metrics.KEPT, 2)) and means == {"skipped_steps": 29.0}
