"""The optimiser: known values of the schedule, the decay mask, clipping, the moving average in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nuwaxl_jax.training import optim


def test_cosine_schedule_known_values():
    schedule = optim.make_schedule(learning_rate=2.0, num_steps=110, warmup_steps=10, min_lr_ratio=0.1)
    assert schedule(0) == pytest.approx(2.0 / 11)  # the first step already moves
    assert schedule(9) == pytest.approx(2.0 * 10 / 11)
    assert schedule(10) == pytest.approx(2.0)
    assert schedule(60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # half way: cos(pi / 2) = 0
    assert schedule(110) == pytest.approx(0.2)
    assert schedule(10_000) == pytest.approx(0.2)


def test_constant_schedule_stays_after_the_warm_up():
    schedule = optim.make_schedule(learning_rate=0.5, num_steps=100, warmup_steps=4, lr_schedule="constant")
    assert schedule(1) == pytest.approx(0.2)
    assert schedule(4) == schedule(99) == pytest.approx(0.5)


def test_unknown_schedule_and_bad_ratio_are_refused():
    with pytest.raises(ValueError, match="lr_schedule 'linear' is unknown; choose one of"):
        optim.make_schedule(learning_rate=1.0, num_steps=1, lr_schedule="linear")
    with pytest.raises(ValueError, match="min_lr_ratio is 2"):
        optim.make_schedule(learning_rate=1.0, num_steps=1, min_lr_ratio=2)


def _params():
    return {
        "conv": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2)},
        "tokens": {"embedding": jnp.ones((4, 2))},
        "level_embed": jnp.ones((3, 2)),
        "positions": jnp.ones((5, 2)),
        "temporal": {"kernel": jnp.ones((3, 2, 2))},
    }


def test_only_kernels_decay():
    mask = optim.decay_mask(_params())
    assert mask == {
        "conv": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "tokens": {"embedding": False},
        "level_embed": False,
        "positions": False,
        "temporal": {"kernel": True},
    }
    assert not optim.decay_mask(_params(), no_decay="temporal")["temporal"]["kernel"]


def test_without_a_gradient_only_what_decays_moves():
    params = _params()
    optimizer = optim.make_optimizer(
        learning_rate=0.1, num_steps=10, lr_schedule="constant", weight_decay=0.5, no_decay="temporal"
    )
    zeros = {
        k: {n: jnp.zeros_like(v) for n, v in p.items()} if isinstance(p, dict) else jnp.zeros_like(p)
        for k, p in params.items()
    }
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["conv"]["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
    for leaf in (new["conv"]["bias"], new["norm"]["scale"], new["tokens"]["embedding"], new["temporal"]["kernel"]):
        np.testing.assert_array_equal(leaf, 1.0)


def test_clipping_bounds_the_global_norm():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    grads = {"a": jnp.full(3, 30.0), "b": jnp.full(4, -40.0)}
    norm = np.sqrt(3 * 900 + 4 * 1600)
    state = optax.clip_by_global_norm(1.0)
    clipped, _ = state.update(grads, state.init(params))
    # The same through our chain: Adam's first moment after one step is (1 - b1) g.
    optimizer = optim.make_optimizer(learning_rate=1.0, num_steps=1, b1=0.9, grad_clip=1.0)
    _, new = optimizer.update(grads, optimizer.init(params), params)
    moment = optax.tree_utils.tree_get(new, "mu")
    np.testing.assert_allclose(moment["a"], 0.1 * 30.0 / norm, rtol=1e-5)
    np.testing.assert_allclose(moment["a"], 0.1 * clipped["a"], rtol=1e-5)


def test_ema_warm_up_and_closed_form():
    decays = np.array([optim.ema_decay(jnp.int32(t), 0.9) for t in (0, 1, 10, 80, 1000)])
    np.testing.assert_allclose(decays, [0.1, 2 / 11, 11 / 20, 0.9, 0.9], rtol=1e-6)
    # With a constant decay d: ema_n = d^n ema_0 + (1 - d) sum d^(n - 1 - i) p_i.
    values = np.array([3.0, -1.0, 4.0, 1.0, -5.0])
    ema = {"w": jnp.float32(2.0)}
    for value in values:
        ema = optim.update_ema(ema, {"w": jnp.float32(value)}, jnp.float32(0.7))
    expected = 0.7**5 * 2.0 + 0.3 * np.sum(0.7 ** np.arange(4, -1, -1) * values)
    assert ema["w"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
def test_layers_trained_before_move_at_their_share_of_the_rate(kind):
    params = {"conv": {"kernel": jnp.eye(4)}, "temporal": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
    grads = jax.tree.map(lambda p: jnp.cos(1.0 + jnp.arange(p.size)).reshape(p.shape), params)
    fields = dict(optimizer=kind, learning_rate=0.1, num_steps=10, lr_schedule="constant", weight_decay=0.1)
    plain = optim.make_optimizer(**fields)
    slowed = optim.make_optimizer(**fields, new_layers="temporal", pretrained_lr_ratio=0.25)
    (one, _), (other, _) = (o.update(grads, o.init(params), params) for o in (plain, slowed))
    np.testing.assert_allclose(other["conv"]["kernel"], 0.25 * one["conv"]["kernel"], rtol=1e-6)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(other["temporal"][name], one["temporal"][name])


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
@pytest.mark.parametrize("trainable", ["new", "temporal/kernel"])
def test_what_is_not_trainable_stays_and_has_no_state(kind, trainable):
    params = {"conv": {"kernel": jnp.eye(4)}, "temporal": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
    grads = jax.tree.map(lambda p: jnp.cos(1.0 + jnp.arange(p.size)).reshape(p.shape), params)
    fields = dict(optimizer=kind, learning_rate=0.1, num_steps=10, lr_schedule="constant", weight_decay=0.1)
    fields |= dict(new_layers="temporal", grad_clip=0.0)
    whole, part = optim.make_optimizer(**fields), optim.make_optimizer(**fields, trainable=trainable)
    (one, _), (other, state) = (o.update(grads, o.init(params), params) for o in (whole, part))
    np.testing.assert_array_equal(other["conv"]["kernel"], 0.0)
    np.testing.assert_allclose(other["temporal"]["kernel"], one["temporal"]["kernel"], rtol=1e-6)
    bias = other["temporal"]["bias"]
    np.testing.assert_allclose(bias, one["temporal"]["bias"] if trainable == "new" else 0.0, rtol=1e-6)
    sizes = [leaf.size for leaf in jax.tree.leaves(state) if hasattr(leaf, "size") and leaf.size > 1]
    assert sum(sizes) <= 2 * (16 + 4) and sizes  # nothing of conv/kernel


def test_a_pattern_that_is_nowhere_is_refused():
    optimizer = optim.make_optimizer(learning_rate=0.1, num_steps=10, trainable="no_such_layer")
    with pytest.raises(ValueError, match="^trainable: 'no_such_layer' is in no parameter's path;"):
        optimizer.init({"conv": {"kernel": jnp.eye(4)}})
