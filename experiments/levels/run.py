"""Which level of the tree loses what: the levels above it replaced by the truth.

    python experiments/levels/run.py [--stories 4] [--segments 4] [--weights shipped] [--cpu_devices 0]

For each held-out story, frames 0 to 225 x segments: the true video through the T-KLVAE; its latents at stride 15 with
straight lines between (no network); level 2 from the true stride-15 frames, as it is, from noise of standard deviation
1, and without the line between given frames in its prediction; levels 1 and 2 from the true stride-225
frames; all levels. Each is scored as in `--mode=eval`, and where the truth fixes most of a frame also by its PSNR.
Writes results.json beside this file.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.evaluation import image_metrics
from nuwaxl_jax.evaluation import levels
from nuwaxl_jax.evaluation import codec
from nuwaxl_jax.evaluation import held_out
from nuwaxl_jax.evaluation import story_score

HERE = pathlib.Path(__file__).parent
SHOWN = (
    "scene",
    "colour",
    "shape",
    "step",
    "action",
    "direction",
    "difference_inside",
    "difference_border",
    "border_ratio",
)


def straight_lines(latents: np.ndarray, stride: int) -> np.ndarray:
    """Latents [F, h, w, c] with every frame between two multiples of `stride` replaced by their blend."""
    at = np.arange(0, len(latents), stride)
    position = np.arange(len(latents)) / stride
    low = np.minimum(position.astype(int), len(at) - 2)
    share = (position - low)[:, None, None, None]
    return ((1 - share) * latents[at[low]] + share * latents[at[low + 1]]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=4)
    parser.add_argument("--segments", type=int, default=4, help="segments of level 1, of 226 frames each")
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--cpu_devices", type=int, default=0, help="0 = one a core")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices or os.cpu_count())
    bundle, config, card = weights_lib.load(weights_lib.find(arguments.weights))
    networks = networks_lib.build(config)
    noisy, free = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    noisy.sampler.temperature = (1.0,) * config.hierarchy.depth
    free.diffusion.line_std = (1.0,) * config.hierarchy.depth
    free_networks = networks_lib.build(free)
    source = held_out.HeldOut(config, arguments.stories, 3376)
    index = np.arange(225 * arguments.segments + 1)
    rows: dict[str, list[dict]] = {}
    for i in range(arguments.stories):
        frames, captions = source.frames(i, index), source.captions(i, index)
        truth = codec.encode_video(networks, bundle, frames)
        key = jax.random.fold_in(jax.random.key(config.seed), i)

        def make(config, networks, first):
            return levels.make_levels(config, networks, bundle, truth, captions, key, first)

        ways = {
            "truth through the T-KLVAE": lambda: truth,
            "straight lines between true stride-15 frames": lambda: straight_lines(truth, 15),
            "level 2 from true stride-15 frames": lambda: make(config, networks, 2),
            "the same from noise of temperature 1": lambda: make(noisy, networks, 2),
            "the same without the line": lambda: make(free, free_networks, 2),
            "levels 1, 2 from true stride-225 frames": lambda: make(config, networks, 1),
            "all levels": lambda: make(config, networks, 0),
        }
        for name, latents in ways.items():
            begin = time.perf_counter()
            video = codec.decode_video(networks, bundle, latents())
            score = story_score.story_score(video, captions, segment_length=config.hierarchy.segment_length)
            row = {k: score[k] for k in SHOWN} | {"psnr": float(image_metrics.psnr(frames, video).mean())}
            rows.setdefault(name, []).append(row)
            shown = {k: None if v is None else round(v, 4) for k, v in row.items()}
            print(f"story {i + 1}: {name}, {time.perf_counter() - begin:.0f} s: {shown}", flush=True)

    def mean(values):
        kept = [v for v in values if v is not None]
        return round(float(np.mean(kept)), 4) if kept else None

    means = {name: {k: mean([r[k] for r in of]) for k in (*SHOWN, "psnr")} for name, of in rows.items()}
    record = {"weights": card, "sampler": config.sampler.to_dict(), "frames": len(index), "means": means, "rows": rows}
    files.write_json(HERE / "results.json", record)
    print(json.dumps(means, indent=1))


if __name__ == "__main__":
    main()
