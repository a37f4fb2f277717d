"""Muon against the singular value decomposition and against optax's own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import muon
from nuwaxl_jax.training import optim

SHAPES = {"a": (3, 3, 4, 8), "b": (3, 3, 4, 8), "c": (8, 36), "d": (3, 6, 6), "e": (5, 5)}


def _tree(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, SHAPES.items())}


def test_the_result_is_near_the_nearest_orthogonal_matrix():
    x = np.random.default_rng(0).standard_normal((2, 6, 30)).astype(np.float32)
    x *= np.geomspace(1.0, 0.05, 6, dtype=np.float32)[:, None]
    out = np.asarray(muon.newton_schulz(jnp.asarray(x)))
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    inner = np.swapaxes(u, 1, 2) @ out @ np.swapaxes(vt, 1, 2)  # diagonal, of values about 1
    diagonal = np.diagonal(inner, axis1=1, axis2=2)
    assert (diagonal > 0.65).all() and (diagonal < 1.25).all()
    np.testing.assert_allclose(inner - diagonal[:, None] * np.eye(6), 0.0, atol=1e-4)


def test_a_kernel_without_a_gradient_stays():
    assert not np.any(muon.newton_schulz(jnp.zeros((1, 3, 4))))


def test_it_is_optax_muon():
    """optax's own, one kernel at a time, on the same stream of gradients; its momentum differs by a constant factor."""

    def dimensions(tree):
        return jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1), tree)

    theirs = optax.contrib.muon(
        1.0, beta=0.0, nesterov=False, muon_weight_dimension_numbers=dimensions, consistent_rms=0.2
    )
    ours = muon.scale_by_muon()
    state = theirs.init(_tree(0)), ours.init(_tree(0))
    velocity = jax.tree.map(jnp.zeros_like, _tree(0))
    for step in range(3):
        grads = _tree(step + 1)
        velocity = jax.tree.map(lambda v, g: 0.95 * v + g, velocity, grads)
        lookahead = jax.tree.map(lambda v, g: g + 0.95 * v, velocity, grads)
        wanted, _ = theirs.update(lookahead, state[0], _tree(0))
        got, new = ours.update(grads, state[1])
        state = state[0], new
        for name in SHAPES:
            np.testing.assert_allclose(got[name], -wanted[name], atol=2e-4, err_msg=name)
            assert float(jnp.sqrt(jnp.mean(jnp.square(got[name])))) == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("devices,sizes", [(2, {}), (3, {}), (8, dict(fsdp=2, model=2))])
def test_sharing_the_work_changes_nothing(devices, sizes):
    """Three and one and one matrices: gathered on two devices, summed on eight, of each kind on three."""
    mesh = partitioning.make_mesh(devices=jax.devices()[:devices], **sizes)
    leaves = list(_tree(4).values())
    alone = jax.jit(muon.orthogonalise)(leaves)
    shared = jax.jit(lambda x: muon.orthogonalise(x, mesh))(leaves)
    for one, other in zip(alone, shared):
        np.testing.assert_allclose(one, other, atol=1e-5)
    text = jax.jit(lambda x: muon.orthogonalise(x, mesh)).lower(leaves).compile().as_text()
    assert ("all-gather" in text) == (devices < 8) and ("all-reduce" in text) == (devices > 2)


def test_the_optimizer_gives_kernels_to_muon_and_the_rest_to_adamw():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "tokens": {"embedding": jnp.ones((5, 2))},
    }
    kinds = muon.labels(params, re.compile("embedding"))
    assert kinds == {"conv": {"kernel": "muon", "bias": "adamw"}, "tokens": {"embedding": "adamw"}}
    grads = jax.tree.map(lambda p: 1e-3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    settings = dict(learning_rate=0.1, num_steps=10, lr_schedule="constant", weight_decay=0.5, grad_clip=0.0)
    optimizer = optim.make_optimizer(optimizer="muon", **settings)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    reference = optim.make_optimizer(**settings)
    adamw, _ = reference.update(grads, reference.init(params), params)
    np.testing.assert_allclose(updates["conv"]["bias"], adamw["conv"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(updates["tokens"]["embedding"], adamw["tokens"]["embedding"], rtol=1e-5)
    [kernel] = muon.orthogonalise([grads["conv"]["kernel"]])
    wanted = -0.1 * (0.2 * 18**0.5 * kernel + 0.5)
    np.testing.assert_allclose(updates["conv"]["kernel"], wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="optimizer 'sgd' is unknown"):
        optim.make_optimizer(optimizer="sgd", **settings)
