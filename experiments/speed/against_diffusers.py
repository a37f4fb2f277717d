"""Our U-Net against diffusers' on the CPU, same small spec, float32, in one process, alternating.

    pip install '.[parity]'; python experiments/speed/against_diffusers.py [--repeats 7]

  image  the image part against `UNet2DConditionModel`, 16 images: the same function (tests/importing), layer by layer;
  video  the MTD U-Net against `UNet3DConditionModel`, 1 clip of 16 frames: not the same network (four temporal
         convolutions a residual block there, one here; injections here), the same widths.

Forward alone, and forward with the gradient of the mean square by all parameters. Compiling is not counted, two calls
warm up. Writes against_diffusers.json beside this file.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import host_memory
from nuwaxl_jax.models import mtd_unet

HERE = pathlib.Path(__file__).parent
CHANNELS, MULTS, BLOCKS, HEADS, WIDTH, SIDE, FRAMES, TOKENS = 64, (1, 2, 4), 2, 4, 128, 16, 16, 20


def theirs(kind: type, inputs: tuple) -> tuple[dict, int]:
    """(forward, training) as calls, and the number of parameters."""
    down = ("CrossAttnDownBlock2D",) * len(MULTS) if kind is diffusers.UNet2DConditionModel else None
    blocks = dict(down_block_types=down, up_block_types=("CrossAttnUpBlock2D",) * len(MULTS)) if down else {}
    if not down:
        blocks = dict(
            down_block_types=("CrossAttnDownBlock3D",) * len(MULTS), up_block_types=("CrossAttnUpBlock3D",) * len(MULTS)
        )
    module = kind(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(CHANNELS * m for m in MULTS),
        layers_per_block=BLOCKS,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS if down else CHANNELS // HEADS,
        **blocks,
    )

    def forward():
        with torch.no_grad():
            module(*inputs).sample.sum().item()

    def training():
        module.zero_grad()
        torch.square(module(*inputs).sample).mean().backward()

    return dict(forward=forward, training=training), sum(p.numel() for p in module.parameters())


def ours(x: np.ndarray, text: np.ndarray, video: bool) -> tuple[dict, int]:
    """As `theirs`; x [N, h, w, c], text [N, n, D]."""
    module = mtd_unet.MTDUNet(
        out_channels=4,
        channels=CHANNELS,
        channel_mults=MULTS,
        num_res_blocks=BLOCKS,
        num_heads=HEADS,
        prompt_levels=(True,) * len(MULTS),
        ff_mult=4,
        downsample_padding="symmetric",
        gelu="exact",
    )
    clip, text_clip, mask = x[None], text[None], np.zeros((1, *x.shape[:-1], 1), np.float32)
    t, level = jnp.array([500]), jnp.array([0])
    shapes = jax.eval_shape(module.init, jax.random.key(0), clip, t, text_clip, clip, mask, level)["params"]
    params = jax.tree.map(lambda s: 0.02 * np.sin(np.arange(s.size, dtype=np.float32)).reshape(s.shape), shapes)

    def apply(params):
        if video:
            return module.apply({"params": params}, clip, t, text_clip, clip, mask, level)
        return module.apply({"params": params}, x, jnp.full(len(x), 500), text, method="denoise_images")

    run, grad = jax.jit(apply), jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(apply(p)))))
    params = jax.device_put(params)
    calls = dict(
        forward=lambda: jax.block_until_ready(run(params)), training=lambda: jax.block_until_ready(grad(params))
    )
    used = jax.tree.leaves(params)
    return calls, sum(p.size for p in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    host_memory.keep_freed_pages()
    torch.set_num_threads(os.cpu_count())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(FRAMES, SIDE, SIDE, 4)).astype(np.float32)
    text = rng.normal(size=(FRAMES, TOKENS, WIDTH)).astype(np.float32)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    clip = torch.from_numpy(x.transpose(3, 0, 1, 2)[None].copy())
    pairs = {
        "image": (
            theirs(diffusers.UNet2DConditionModel, (images, torch.tensor(500), torch.from_numpy(text))),
            ours(x, text, video=False),
        ),
        "video": (
            theirs(diffusers.UNet3DConditionModel, (clip, torch.tensor(500), torch.from_numpy(text[:1]))),
            ours(x, text, video=True),
        ),
    }
    record = {"cores": os.cpu_count(), "torch": torch.__version__, "jax": jax.__version__}
    for name, ((their_calls, their_size), (our_calls, our_size)) in pairs.items():
        record[name] = {"parameters": {"diffusers": their_size, "nuwaxl_jax": our_size}}
        for what in ("forward", "training"):
            seconds: dict[str, list[float]] = {"diffusers": [], "nuwaxl_jax": []}
            for i in range(arguments.repeats + 2):
                for whose, calls in (("diffusers", their_calls), ("nuwaxl_jax", our_calls)):
                    begin = time.perf_counter()
                    calls[what]()
                    if i >= 2:
                        seconds[whose].append(time.perf_counter() - begin)
            medians = {whose: statistics.median(of) for whose, of in seconds.items()}
            ratio = medians["diffusers"] / medians["nuwaxl_jax"]
            record[name][what] = {"median_seconds": medians, "times_faster": ratio, "seconds": seconds}
            print(f"{name}, {what}: {medians}, ours {ratio:.2f} times as fast", flush=True)
    files.write_json(HERE / "against_diffusers.json", record)


if __name__ == "__main__":
    main()
