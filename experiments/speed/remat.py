"""Memory and time of a training gradient under each rematerialisation policy, at the shipped sizes.

    python experiments/speed/remat.py [--repeats 5] [--stages vae,denoiser] [--topology v5e:2x2]

Each row is one stage of `config.default()` (its batch, clip and losses) and one policy: bytes that the backward pass
keeps of the forward one (parameters not counted), temporary bytes of the compiled gradient (its peak beside arguments
and results), seconds to compile, milliseconds a gradient, the policies in turn, medians; and the largest difference of
a gradient from the one without rematerialisation. With a topology, compilation for one of its TPUs alone. Writes
remat.json beside this file, rows of other devices and stages kept.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Callable

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax.cost import topologies
from nuwaxl_jax.models import layers
from nuwaxl_jax.training import tasks

HERE = pathlib.Path(__file__).parent
POLICIES = ("none", "products", "blocks")
STAGES = ("image_vae", "vae", "image_denoiser", "denoiser")


def gradient_of(stage: str, policy: str) -> tuple[Callable, tuple[Any, ...]]:
    """(params -> loss and gradient as a function of (params, frozen, batch, keys), arguments) of one stage."""
    config = config_lib.default()
    config.unet.remat = config.vae.remat = policy
    task = tasks.build(config, stage)
    section, size = config.train[stage], config.data.frame_size
    clips, length = section.batch_size, section.clip_length
    batch = dict(
        frames=jax.random.randint(jax.random.key(0), (clips, length, size, size, 3), 0, 256, jnp.int32),
        tokens=jax.random.randint(jax.random.key(1), (clips, length, config.text.max_tokens), 3, 60),
        level=jnp.arange(clips) % config.hierarchy.depth,
    )
    batch["frames"] = batch["frames"].astype(jnp.uint8)
    channels = jnp.ones(config.vae.latent_channels)
    frozen = dict(latent_shift=0.0 * channels, latent_scale=channels, vae=task.networks.init_vae(jax.random.key(2)))
    params = task.init(jax.random.key(3))
    # Away from the zeros of initialisation, so that every branch has a gradient.
    params = jax.tree.map(lambda p: p + 0.02 * jnp.sin(1.0 + jnp.arange(p.size)).reshape(p.shape), params)
    batch = {name: batch[name] for name in task.fields}
    return jax.value_and_grad(task.loss, has_aux=True), (
        params,
        frozen,
        batch,
        jax.random.split(jax.random.key(4), clips),
    )


def kept_bytes(stage: str, policy: str) -> int:
    """Bytes that the backward pass keeps, without parameters."""
    config = config_lib.default()
    config.unet.remat = config.vae.remat = policy
    loss = tasks.build(config, stage).loss
    _, (params, *rest) = gradient_of(stage, policy)
    kept = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, *rest)[0], p)[1], params)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return total - sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def study(stage: str, repeats: int, device: Any) -> list[dict]:
    """One row a policy; device: a described one to compile for, or None."""
    rows, compiled, arguments = [], [], None
    for policy in POLICIES:
        function, arguments = gradient_of(stage, policy)
        if device is not None:
            sharding = jax.sharding.SingleDeviceSharding(device)
            arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
        start = time.perf_counter()
        with layers.tracing_for(device.platform if device else ""):
            compiled.append(jax.jit(function).lower(*arguments).compile())
        rows.append(
            {
                "device": device.device_kind if device else "cpu",
                "stage": stage,
                "policy": policy,
                "compile_s": round(time.perf_counter() - start, 1),
                "temporary_mb": round(compiled[-1].memory_analysis().temp_size_in_bytes / 2**20, 1),
                "kept_mb": round(kept_bytes(stage, policy) / 2**20, 1),
            }
        )
        if device is not None:
            print(json.dumps(rows[-1]), flush=True)
    if device is not None:
        return rows
    gradients = [run(*arguments)[1] for run in compiled]
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients[0]))
    times: list[list[float]] = [[] for _ in compiled]
    for _ in range(repeats + 1):
        for own, run in zip(times, compiled):
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            own.append(time.perf_counter() - start)
    for row, own, gradient in zip(rows, times, gradients):
        difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), gradient, gradients[0])
        row["gradient_ms"] = round(1e3 * statistics.median(own[1:]), 1)
        row["difference"] = float(f"{max(jax.tree.leaves(difference)) / scale:.1e}")  # over the largest entry
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--topology", default="", help="a TPU to compile for, such as v5e:2x2; needs libtpu")
    arguments = parser.parse_args()
    device = topologies.describe(arguments.topology).devices[0] if arguments.topology else None
    path = HERE / "remat.json"
    for stage in arguments.stages.split(","):
        rows = study(stage, arguments.repeats, device)
        record = json.loads(path.read_text()) if path.exists() else {"rows": []}
        same = (rows[0]["device"], stage)
        kept = [row for row in record["rows"] if (row["device"], row["stage"]) != same]
        files.write_json(path, {"machine": {"cores": os.cpu_count(), "jax": jax.__version__}, "rows": kept + rows})


if __name__ == "__main__":
    main()
