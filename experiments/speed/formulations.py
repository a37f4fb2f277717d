"""Formulations that were tried for larger networks: the text encoder as a scan, attention by chunks of queries.

    python experiments/speed/formulations.py [--repeats 5] [--topology v5e:2x2]

The text encoder has twelve equal blocks (CLIP ViT-L/14's: width 768, 77 tokens). As a scan, over parameters stacked
inside the program (their tree stays as it is), its program is smaller; the stack is copied at every call. Attention
over 1024 tokens (32 x 32 latents) has 32 times more scores than inputs; taken by chunks of queries, and the scores
anew in the backward pass, it never holds them all. Medians, the formulations in turn. With a topology, compilation
for one of its TPUs alone. Writes formulations.json beside this file, the other device's rows kept.
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
from nuwaxl_jax import files
from nuwaxl_jax.cost import topologies
from nuwaxl_jax.models import layers
from nuwaxl_jax.models import text_encoder

HERE = pathlib.Path(__file__).parent
PROMPTS = 32  # a story's, padded


def scanned_blocks(encoder: text_encoder.TextEncoder, params: Any, x: jax.Array) -> jax.Array:
    """The encoder's blocks on states `[n, N, D]`, as a scan over their stacked parameters."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *_blocks(encoder, params))
    block, causal = text_encoder.TextBlock(encoder.num_heads), _causal(x)
    return jax.lax.scan(lambda x, own: (block.apply({"params": own}, x, causal), None), x, stacked)[0]


def unrolled_blocks(encoder: text_encoder.TextEncoder, params: Any, x: jax.Array) -> jax.Array:
    """As `TextEncoder` runs them, one after the other."""
    block, causal = text_encoder.TextBlock(encoder.num_heads), _causal(x)
    for own in _blocks(encoder, params):
        x = block.apply({"params": own}, x, causal)
    return x


def _blocks(encoder: text_encoder.TextEncoder, params: Any) -> list[Any]:
    return [params[f"block{i}"] for i in range(encoder.num_layers)]


def _causal(x: jax.Array) -> jax.Array:
    return jnp.tril(jnp.ones((x.shape[1],) * 2, bool))


def compare(name: str, functions: dict[str, Callable], arguments: tuple, repeats: int, device: Any) -> list[dict]:
    """Rows of forward and of gradient (of the sum of squares by every argument), one a formulation.

    repeats: 0 compiles alone. device: a described one to compile for, or None.
    """
    rows = []
    if device is not None:
        sharding = jax.sharding.SingleDeviceSharding(device)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)
    for kind in ("forward", "gradient"):
        compiled, own = [], []
        for formulation, function in functions.items():
            if kind == "gradient":
                every = tuple(range(len(arguments)))
                function = jax.grad(lambda *a, f=function: jnp.square(f(*a)).sum(), argnums=every)
            start = time.perf_counter()
            with layers.tracing_for(device.platform if device else ""):
                compiled.append(jax.jit(function).lower(*arguments).compile())
            row = dict(device=device.device_kind if device else "cpu", case=name, kind=kind, formulation=formulation)
            row["compile_s"] = round(time.perf_counter() - start, 2)
            row["temporary_mb"] = round(compiled[-1].memory_analysis().temp_size_in_bytes / 2**20, 1)
            own.append(row)
        times: list[list[float]] = [[] for _ in compiled]
        for _ in range(repeats + 1 if repeats else 0):
            for column, run in zip(times, compiled):
                start = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                column.append(time.perf_counter() - start)
        for row, column in zip(own, times):
            if column:
                row["ms"] = round(1e3 * statistics.median(column[1:]), 1)
            print(json.dumps(row), flush=True)
        rows += own
    return rows


def text_rows(repeats: int, device: Any) -> list[dict]:
    """Twelve blocks of width 768 on a story's prompts."""
    encoder = text_encoder.TextEncoder(vocab_size=512, max_tokens=77, width=768, num_layers=12, num_heads=12)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 77), jnp.int32))["params"]
    blocks = {name: params[name] for name in params if name.startswith("block")}
    x = jax.random.normal(jax.random.key(1), (PROMPTS, 77, 768))
    functions = {
        "unrolled": lambda p, x: unrolled_blocks(encoder, p, x),
        "scan": lambda p, x: scanned_blocks(encoder, p, x),
    }
    return compare(f"12 text blocks, {PROMPTS} x 77 x 768", functions, (blocks, x), repeats, device)


def attention_rows(frames: int, tokens: int, channels: int, heads: int, repeats: int, device: Any) -> list[dict]:
    """Self-attention over `tokens` of each frame."""
    qkv = tuple(jax.random.normal(jax.random.key(i), (frames, tokens, channels)) for i in range(3))
    functions: dict[str, Callable] = {"whole": lambda q, k, v: layers.plain_attention(q, k, v, heads)}
    for chunk in (512, 256, 128, 64):
        if chunk < tokens:
            functions[f"{chunk} queries"] = lambda q, k, v, n=chunk: layers.chunked_attention(q, k, v, heads, n)
    return compare(f"attention, {frames} x {tokens} x {channels}, {heads} heads", functions, qkv, repeats, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--topology", default="", help="a TPU to compile for, such as v5e:2x2; needs libtpu")
    arguments = parser.parse_args()
    device = topologies.describe(arguments.topology).devices[0] if arguments.topology else None
    repeats = 0 if device else arguments.repeats
    rows = []
    for tokens in (64, 256, 1024):
        rows += attention_rows(16, tokens, 256, 8, repeats, device)
    rows += text_rows(repeats, device)
    path = HERE / "formulations.json"
    record = json.loads(path.read_text()) if path.exists() else {"rows": []}
    kept = [row for row in record["rows"] if row["device"] != rows[0]["device"]]
    record = {"machine": {"cores": os.cpu_count(), "jax": jax.__version__}, "rows": kept + rows}
    files.write_json(path, record)


if __name__ == "__main__":
    main()
