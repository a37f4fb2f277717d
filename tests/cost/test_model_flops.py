"""Model FLOPs against closed forms; rematerialisation, loops and dead branches change nothing."""

import jax
import jax.numpy as jnp
import pytest

from nuwaxl_jax.cost import model_flops

X, W = jax.ShapeDtypeStruct((6, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 6 * 8 * 8


def _count(function, *arguments):
    return model_flops.count(jax.jit(function).trace(*arguments).jaxpr)


def test_a_product_a_batched_one_and_an_einsum():
    assert _count(jnp.dot, X, W) == PRODUCT
    many = jax.ShapeDtypeStruct((5, 6, 8), jnp.float32)
    assert _count(lambda a, b: jnp.einsum("bik,bjk->bij", a, b), many, many) == 2 * 5 * 6 * 6 * 8


def test_the_backward_pass_is_twice_the_forward_one():
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    assert _count(jax.grad(loss, argnums=(0, 1)), W, X) == 3 * PRODUCT
    assert _count(jax.grad(loss), W, X) == 2 * PRODUCT  # the data's gradient is not asked for


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable])
def test_what_is_computed_a_second_time_does_not_count(policy):
    block = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w)
    again = jax.checkpoint(block, policy=policy)
    plain, saving = (jax.grad(lambda w, x, f=f: jnp.sum(f(w, f(w, x))), argnums=(0, 1)) for f in (block, again))
    assert _count(saving, W, X) == _count(plain, W, X) == 12 * PRODUCT


def test_a_scan_counts_as_often_as_it_runs_and_a_cond_by_its_dearest_branch():
    def scan(w, x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

    assert _count(scan, W, X) == 7 * PRODUCT
    assert _count(jax.grad(lambda w, x: jnp.sum(scan(w, x))), W, X) == 3 * 7 * PRODUCT
    branches = lambda p, w, x: jax.lax.cond(p, lambda: x @ w @ w, lambda: x @ w)
    assert _count(branches, True, W, X) == 2 * PRODUCT


@pytest.mark.parametrize("groups, strides, dilation", [(1, (1, 1), (1, 1)), (2, (2, 2), (1, 1)), (1, (1, 1), (2, 2))])
def test_convolutions(groups, strides, dilation):
    """Of a transposed one, only the taps that meet the image, not the zeros between its pixels."""
    image = jax.ShapeDtypeStruct((3, 16, 16, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 8), jnp.float32)

    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x,
            k,
            strides,
            "SAME" if dilation == (1, 1) else ((1, 1), (1, 1)),
            lhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    out = jax.eval_shape(convolve, image, kernel)
    expected = 2 * out.size * 9 * 4 // groups * (16 * 16) / (31 * 31 if dilation == (2, 2) else 16 * 16)
    assert _count(convolve, image, kernel) == pytest.approx(expected)
