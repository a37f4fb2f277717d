"""Seconds of Table 1's arms: one video at a time, all devices, until its latents are made, compiling apart.

    python experiments/table1/seconds.py [--frames=16,256,1024,3376] [--repeats=3] [--cpu_devices=0]

Networks are the study's, untrained: how long they take does not depend on what they have learnt. All arms of
a length are run by turns in one process, so that what else the machine does meets all of them; nothing else should run.
Writes seconds.json beside this file, which the results page shows; lengths that are there are not run again.
"""

import argparse
import ast
from collections.abc import Callable
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time

import jax
import ml_collections
import numpy as np
from run import STUDY
import study
import study_table

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.evaluation import stories
from nuwaxl_jax.hierarchy import sample
from nuwaxl_jax.hierarchy import story as story_lib

HERE = pathlib.Path(__file__).resolve().parent
STORY = HERE.parents[1] / "stories" / "two_friends.txt"
RESULTS = HERE / "seconds.json"


def config_of(arm: study.Arm) -> ml_collections.ConfigDict:
    """What the arm is told with."""
    spec = importlib.util.spec_from_file_location("toons", HERE.parents[1] / "configs" / "toons.py")
    presets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(presets)
    config = presets.get_config(STUDY.preset)
    for field in (*arm.train, *arm.sample):
        name, value = field.split("=", 1)
        config.update_from_flattened_dict({name: ast.literal_eval(value)})
    config.update_from_flattened_dict(dict(stories.GENERATORS[arm.way]))
    config_lib.validate_training(config)
    return config


def bundle_of(networks: networks_lib.Networks) -> networks_lib.Params:
    """Untrained weights, of noise: nothing has to be compiled for them."""
    rng = np.random.default_rng(0)

    def noise(init: Callable[[jax.Array], networks_lib.Params]) -> networks_lib.Params:
        shapes = jax.eval_shape(init, jax.random.key(0))
        return jax.tree.map(lambda leaf: rng.normal(scale=0.02, size=leaf.shape).astype(leaf.dtype), shapes)

    channels = networks.latent_shape[-1]
    scaled = dict(latent_shift=np.zeros(channels, np.float32), latent_scale=np.ones(channels, np.float32))
    return dict(vae=noise(networks.init_vae), denoisers=(noise(networks.init_denoiser),), **scaled)


def measure(num_frames: int, repeats: int) -> dict[str, dict[str, float]]:
    """arm -> seconds (median), of all repeats, and denoiser calls, of one video of `num_frames`.

    Arms that another's weights tell with other noise alone are left out: they take as long.
    """
    prompts, index = story_lib.Story.load(STORY).frame_prompts(num_frames)
    mesh = partitioning.make_mesh()
    ready = {}
    for arm in (arm for arm in STUDY.arms if not arm.sample or not all("temperature" in f for f in arm.sample)):
        config = config_of(arm)
        networks = networks_lib.build(config)
        ready[arm.name] = (config, networks, bundle_of(networks))
    out = {name: dict(runs=[]) for name in ready}
    for turn in range(repeats + 1):  # the first compiles
        for name, (config, networks, bundle) in ready.items():
            begin = time.perf_counter()
            made = sample.generate(config, networks, bundle, prompts, index[None], mesh=mesh, progress=False)
            seconds = time.perf_counter() - begin
            if turn:
                out[name]["runs"].append(round(seconds, 3))
            out[name] |= {"calls": made.serial_depth, "calls_here": made.denoiser_calls}
    return {name: row | {"seconds": statistics.median(row["runs"])} for name, row in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default=",".join(map(str, STUDY.frames)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu_devices", type=int, default=0, help="0 = one a core")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices or os.cpu_count())
    machine = dict(
        cores=os.cpu_count(),
        devices=jax.device_count(),
        backend=jax.default_backend(),
        jax=jax.__version__,
        processor=platform.machine(),
    )
    record = {"machine": machine, "frames": {}}
    if RESULTS.is_file():
        before = json.loads(RESULTS.read_text())
        if before["machine"] == machine:
            record = before
    for frames in arguments.frames.split(","):
        if frames not in record["frames"]:
            record["frames"][frames] = measure(int(frames), arguments.repeats)
            files.write_json(RESULTS, record)
            print(frames, record["frames"][frames], flush=True)
    print(study_table.seconds(STUDY, record))


if __name__ == "__main__":
    main()
