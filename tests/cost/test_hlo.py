"""Counts read off compiled programs: known products, traffic and collectives, loops included."""

import functools

import jax
import jax.numpy as jnp
import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.cost import hlo


def _cost(function, *shapes, unknown=1.0, **jit):
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return hlo.cost_of(jax.jit(function, **jit).lower(*arguments).compile().as_text(), unknown)


def test_a_matrix_product_counts_its_multiply_adds_and_each_array_once():
    cost = _cost(jnp.matmul, (64, 128), (128, 32))
    assert cost.flops == 2 * 64 * 128 * 32
    assert cost.bytes == 4 * (64 * 128 + 128 * 32 + 64 * 32)
    assert cost.collectives == {} and cost.unknown_loops == 0


def _conv(stride, x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


@pytest.mark.parametrize("stride,taps", [(1, 8 * 3 - 2), (2, 4 * 3 - 1)])
def test_a_convolution_counts_no_tap_on_padding(stride, taps):
    # Along 8 pixels with 3 taps: stride 1 misses one at each end, stride 2 (padded below alone) one.
    cost = _cost(functools.partial(_conv, stride), (2, 8, 8, 5), (3, 3, 5, 7))
    assert cost.flops == 2 * 2 * taps * taps * 5 * 7


def test_the_gradient_of_a_strided_convolution_costs_twice_its_forward():
    def loss(x, kernel):
        return jnp.sum(jnp.sin(_conv(2, x, kernel)))

    cost = _cost(jax.grad(loss, (0, 1)), (2, 8, 8, 5), (3, 3, 5, 7))
    assert cost.flops == 3 * 2 * 2 * 11 * 11 * 5 * 7


def test_a_loop_counts_as_often_as_it_runs():
    def steps(x, w):
        return jax.lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, length=7)[0]

    once = 2 * 16 * 32 * 32
    assert _cost(steps, (16, 32), (32, 32)).flops == 7 * once

    def rounds(x, w, n):
        return jax.lax.fori_loop(0, n.astype(jnp.int32), lambda i, c: steps(c, w), x)

    cost = _cost(rounds, (16, 32), (32, 32), (), unknown=5)
    assert cost.flops == 5 * 7 * once and cost.unknown_loops == 1


def test_both_ways_of_a_branch_are_counted_as_if_both_ran():
    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w)

    assert _cost(branch, (16, 32), (32, 32)).flops == 3 * 2 * 16 * 32 * 32


def test_collectives_by_type_with_bytes_and_loops():
    mesh = partitioning.make_mesh(8)
    spec = jax.P("data")

    def program(x):  # [4, 8] a device
        total = jax.lax.psum(x, "data")
        every = jax.lax.all_gather(total * x, "data")  # [8, 4, 8]
        ring = [(i, (i + 1) % 8) for i in range(8)]
        turned = jax.lax.fori_loop(0, 3, lambda i, c: jnp.sin(jax.lax.ppermute(c, "data", ring)), x)
        return jnp.sum(every, 0) + turned

    mapped = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    cost = _cost(mapped, (32, 8), in_shardings=jax.NamedSharding(mesh, spec))
    size = 4 * 8 * 4
    assert cost.collectives["all-reduce"] == {"count": 1, "bytes": size}
    assert cost.collectives["all-gather"] == {"count": 1, "bytes": 8 * size}
    assert cost.collectives["collective-permute"] == {"count": 3, "bytes": 3 * size}


_TPU_LIKE = """
HloModule jit_f, is_scheduled=true

%inner (param_0.1: f32[8,128], param_1: s32[]) -> f32[1,128] {
  %param_0.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = f32[1,128]{1,0:T(1,128)} dynamic-slice(%param_0.1, %param_1, %zero), dynamic_slice_sizes={1,128}
}

%wrapped (param.2: f32[128]) -> f32[16] {
  %param.2 = f32[128]{0:T(128)} parameter(0)
  ROOT %scatter = f32[16]{0:T(128)} reduce-scatter(%param.2), channel_id=2, dimensions={0}, to_apply=%add
}

ENTRY %main (p0: f32[8,128], p1: s32[], p2: f32[128]) -> (f32[1,128], f32[16]) {
  %p0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %p2 = f32[128]{0:T(128)} parameter(2)
  %start = ((f32[8,128]{1,0:T(8,128)}), f32[64,128]{1,0:T(8,128)}, /*index=2*/u32[]{:S(2)}) all-gather-start(%p0)
  %done = f32[64,128]{1,0:T(8,128)} all-gather-done(%start)
  %begun = ((f32[128]{0:T(128)}), f32[16]{0:T(128)}, s32[]{:T(128)S(2)}) async-start(%p2), calls=%wrapped
  %ended = f32[16]{0:T(128)} async-done(%begun)
  %fast = f32[1,128]{1,0:T(1,128)S(1)} fusion(%p0, %p1), kind=kLoop, calls=%inner
  %out = f32[1,128]{1,0:T(1,128)} copy(%fast)
  ROOT %result = (f32[1,128]{1,0:T(1,128)}, f32[16]{0:T(128)}) tuple(%out, %ended)
}
"""


def test_the_dialect_of_tpus():
    """Asynchronous collectives count once, and on-chip memory counts nothing."""
    cost = hlo.cost_of(_TPU_LIKE)
    assert cost.collectives["all-gather"]["count"] == 1
    assert cost.collectives["all-gather"]["bytes"] == pytest.approx(64 * 128 * 4, abs=8)
    assert cost.collectives["reduce-scatter"] == {"count": 1, "bytes": 512}
    gathered, scattered = (8 + 64) * 128 * 4, 512 + 64
    sliced, copied = 512, 512  # the fusion reads one row of p0; the copy reads it on the chip and writes it
    assert cost.bytes == pytest.approx(gathered + scattered + sliced + copied, abs=16)


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="as_text"):
        hlo.cost_of("module @jit_f {}")
