"""Does this libtpu take the flags of libtpu/*.args, and does each change a program? Needs no TPU.

    pip install '.[tpu]' && python experiments/launch/check_flags.py [--generation=v5e] [--flag=--xla_tpu_...=...]

compiles one small training step (four sharded layers, forward and backward) for a described slice of 4 chips: without
flags, and with each set. libtpu reads its flags when it is loaded, so every compile has a process of its own. A flag
that it does not know ends the compile, and this command with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(__file__).resolve().parent / "libtpu"
SLICES = {
    "v3": "v3:2x2",
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}


def flags_of(generation: str) -> list[str]:
    """Of its file: what stands before # in each line."""
    lines = (FOLDER / f"{generation}.args").read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def compiled(topology: str, flags: list[str]) -> str:
    """A fingerprint of the compiled program.

    Raises:
      ValueError: with the compiler's last line.
    """
    environment = {
        **os.environ,
        "LIBTPU_INIT_ARGS": " ".join(flags),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, __file__, "--compile", topology]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise ValueError(next((line for line in lines if "Unknown command line flag" in line), lines[-1]))
    return done.stdout.strip()


def _compile(topology: str) -> str:
    """In the child: the step's optimised program, without the places in the source that it names."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nuwaxl_jax.cost import topologies

    devices = topologies.describe(topology).devices
    mesh = jax.sharding.Mesh(np.array(devices), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    width, rows = 1024, 64 * len(devices)
    layout = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    def loss(weights, x):
        for weight in weights:
            x = jax.lax.with_sharding_constraint(jax.nn.gelu(x @ weight), layout("fsdp"))
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(weights, x):
        return [w - 1e-3 * g for w, g in zip(weights, jax.grad(loss)(weights, x))]

    axes = [("fsdp",), (None, "fsdp")] * 2
    weights = [jax.ShapeDtypeStruct((width, width), jnp.bfloat16, sharding=layout(*a)) for a in axes]
    x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=layout("fsdp"))
    text = jax.jit(step).lower(weights, x).compile().as_text()
    return hashlib.sha256(re.sub(r"metadata=\{[^}]*\}", "", text).encode()).hexdigest()[:16]


def main() -> int:
    """Exit status 1 where a flag is refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generation", choices=sorted(SLICES), help="default: all")
    parser.add_argument("--flag", action="append", help="try these instead of the file's")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        print(_compile(options.compile))
        return 0
    code = 0
    for generation in [options.generation] if options.generation else SLICES:
        plain = compiled(SLICES[generation], [])
        for flag in options.flag or flags_of(generation):
            try:
                same = compiled(SLICES[generation], [flag]) == plain
                print(
                    f"{generation} {flag}: {'the same program as without' if same else 'another program'}", flush=True
                )
            except ValueError as error:
                print(f"{generation} {flag}: refused: {error}", flush=True)
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
