"""The formulations of `models/layers.py` against the plain ones, on this machine.

    python experiments/speed/layers.py [--repeats 30]

Forward alone and forward with gradient, float32, each pair alternating in one process; medians. Writes layers.json
beside this file.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Callable

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax.models import layers

HERE = pathlib.Path(__file__).parent


def plain_group_norm(x: jax.Array, groups: int) -> jax.Array:
    """Moments over (pixels, channels of a group) at once."""
    n, h, w, c = x.shape
    grouped = x.reshape(n, h * w, groups, c // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
    return ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)


def group_norm(x: jax.Array, groups: int) -> jax.Array:
    """As `layers.GroupNorm` computes it."""
    module = layers.GroupNorm()
    assert layers.num_groups(x.shape[-1]) == groups
    c = x.shape[-1]
    return module.apply({"params": {"scale": jnp.ones(c), "bias": jnp.zeros(c)}}, x)


def plain_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """lax's convolution, SAME."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_upsample_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Every pixel four times, then the convolution."""
    return plain_conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel)


def cases() -> dict[str, tuple[Callable, Callable, tuple[jax.Array, ...]]]:
    """name -> (ours, plain, arguments), at the shapes of the shipped model."""
    key = iter(jax.random.split(jax.random.key(0), 20))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(key), shape)

    out = {}
    for h, c in ((8, 64), (64, 16)):
        x, groups = normal(80, h, h, c), layers.num_groups(c)
        out[f"group norm, 80 x {h} x {h} x {c}"] = (
            lambda x, g=groups: group_norm(x, g),
            lambda x, g=groups: plain_group_norm(x, g),
            (x,),
        )
    for h in (2, 4, 8):
        arguments = (normal(80, h, h, 128), normal(3, 3, 128, 128))
        out[f"3x3 convolution, 80 x {h} x {h} x 128"] = (layers.conv2d, plain_conv, arguments)
    for h, c in ((4, 128), (32, 32)):
        arguments = (normal(80, h, h, c), normal(3, 3, c, c))
        out[f"doubling and 3x3 convolution, 80 x {h} x {h} x {c}"] = (
            layers.upsample_conv,
            plain_upsample_conv,
            arguments,
        )
    return out


def seconds(functions: list[Callable], arguments: tuple, repeats: int) -> list[float]:
    """Median seconds of each function, taken in turn."""
    compiled = [jax.jit(f).lower(*arguments).compile() for f in functions]
    times: list[list[float]] = [[] for _ in compiled]
    for _ in range(repeats + 2):
        for own, run in zip(times, compiled):
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            own.append(time.perf_counter() - start)
    return [statistics.median(own[2:]) for own in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    rows = []
    for name, (ours, plain, inputs) in cases().items():
        difference = float(jnp.abs(ours(*inputs) - plain(*inputs)).max())
        row = {"case": name, "largest_difference": difference}
        for kind in ("forward", "with gradient"):
            pair = [ours, plain]
            if kind == "with gradient":
                every = tuple(range(len(inputs)))
                pair = [jax.grad(lambda *a, f=f: jnp.square(f(*a)).sum(), argnums=every) for f in pair]
            own, other = seconds(pair, inputs, arguments.repeats)
            row[kind] = {
                "ours_ms": round(1e3 * own, 3),
                "plain_ms": round(1e3 * other, 3),
                "ratio": round(other / own, 2),
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    machine = {"cores": os.cpu_count(), "backend": jax.default_backend(), "jax": jax.__version__}
    files.write_json(HERE / "layers.json", {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
