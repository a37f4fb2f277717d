"""Seconds of the tree against the sliding window, and of every stage of the main job.

    python experiments/speed/run.py [--frames 16,226,1024,3376] [--repeats 3] [--weights shipped] [--cpu_devices 0]

Both strategies run the same networks, the same story and the same sampler settings of the finest level, one after the
other in one process, alternating, over all devices (a CPU shows as one a core, as in the main job; one video's window
cannot use more than one); compilation is measured apart. Writes results.json and plot.png beside this file.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.hierarchy import decode
from nuwaxl_jax.hierarchy import sample
from nuwaxl_jax.hierarchy import story as story_lib

HERE = pathlib.Path(__file__).parent
STORY = HERE.parents[1] / "stories" / "two_friends.txt"
STRATEGIES = ("diffusion_over_diffusion", "autoregressive")


def measure(config, networks, bundle, strategy: str, num_frames: int, repeats: int) -> dict:
    """Medians over `repeats` warm runs of one strategy at one length."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.hierarchy.strategy = strategy
    prompts, index = story_lib.Story.load(STORY).frame_prompts(num_frames)
    mesh = partitioning.make_mesh()
    first = time.perf_counter()
    made = sample.generate(config, networks, bundle, prompts, index[None], mesh=mesh, progress=False)
    first = time.perf_counter() - first
    runs, levels = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        made = sample.generate(config, networks, bundle, prompts, index[None], mesh=mesh, progress=False)
        runs.append(time.perf_counter() - start)
        levels.append([t["seconds"] for t in made.timings])
    return {
        "frames": num_frames,
        "strategy": strategy,
        "first_run_seconds": round(first, 2),  # with compilation
        "seconds": round(statistics.median(runs), 3),
        "all_seconds": [round(r, 3) for r in runs],
        "level_seconds": [round(statistics.median(column), 3) for column in zip(*levels)],
        "segments": [t["segments"] for t in made.timings],
        "denoiser_calls_here": made.denoiser_calls,  # one after another, on this machine
        "serial_denoiser_calls": made.serial_depth,  # a level at once
    }


def decode_seconds(networks, bundle, num_frames: int, repeats: int) -> float:
    """Median seconds to decode `num_frames` of latents."""
    latents = np.random.default_rng(0).normal(size=(num_frames, *networks.latent_shape)).astype(np.float32)
    runs = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in decode.decode_frames(networks, bundle, latents):
            pass
        runs.append(time.perf_counter() - start)
    return round(statistics.median(runs[1:]), 3)


def plot(rows: list[dict]) -> None:
    """Seconds and serial denoiser calls over the length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    for strategy in STRATEGIES:
        own = [r for r in rows if r["strategy"] == strategy]
        frames, label = [r["frames"] for r in own], strategy.replace("_", " ")
        left.plot(frames, [r["seconds"] for r in own], marker="o", label=label)
        right.plot(frames, [r["serial_denoiser_calls"] for r in own], marker="o", label=label)
    left.set(title="seconds to sample, this machine", xlabel="frames")
    right.set(title="denoiser calls one after another,\na level at once", xlabel="frames", yscale="log")
    left.legend()
    figure.savefig(HERE / "plot.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="16,226,1024,3376")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--cpu_devices", type=int, default=0, help="0 = one a core")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices or os.cpu_count())
    bundle, config, card = weights_lib.load(weights_lib.find(arguments.weights))
    networks = networks_lib.build(config)
    machine = {
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "processor": platform.machine(),
    }
    record = {"machine": machine, "weights": card, "sampler": config.sampler.to_dict(), "rows": []}
    results = HERE / "results.json"
    if results.exists():  # an interrupted study continues, a study of other weights starts anew
        before = json.loads(results.read_text())
        if before["weights"]["sha256"] == card["sha256"] and before["machine"] == machine:
            record["rows"] = before["rows"]
    rows = record["rows"]
    for num_frames in map(int, arguments.frames.split(",")):
        for strategy in STRATEGIES:
            if any(r["frames"] == num_frames and r["strategy"] == strategy for r in rows):
                continue
            rows.append(measure(config, networks, bundle, strategy, num_frames, arguments.repeats))
            rows[-1]["decode_seconds"] = decode_seconds(networks, bundle, num_frames, 1)
            print(rows[-1], flush=True)
            files.write_json(results, record)
    plot(rows)


if __name__ == "__main__":
    main()
