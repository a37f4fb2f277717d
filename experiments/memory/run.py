"""Does the memory of sampling grow with the video? Its peak, from 226 to 50,626 frames.

    python experiments/memory/run.py [--frames=226,3376,50626]

Each row is one run of `--mode=sample` in a process of its own, watched every 50 ms. The networks are those of
configs/toons.py:tiny with segments of 16 frames and four levels (50,626 frames need them), as initialised, and a
segment takes one denoiser step: what could grow with the video is large beside them. Finished rows are kept in
results.json beside this file; `--again` makes them anew.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import video_io
from nuwaxl_jax import weights

from configs import toons  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
STORY = ROOT / "stories" / "two_friends.txt"


def _resident(pid: int) -> tuple[float, float]:
    """(private, mapped from files) MiB in memory now."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"(Rss\w+):\s+(\d+) kB", text)}
    return (kib.get("RssAnon", 0) + kib.get("RssShmem", 0)) / 1024, kib.get("RssFile", 0) / 1024


def make_weights(path: pathlib.Path) -> None:
    """A model of depth 4, as initialised."""
    config = toons.get_config("tiny")
    config.hierarchy.update(depth=4, segment_length=16, chunk=45, microbatch=5)
    for stage in ("vae", "denoiser"):
        config.train[stage].clip_length = 16
    sampler = {name: (*value, value[-1]) for name, value in config.sampler.items() if isinstance(value, tuple)}
    config.sampler.update(sampler | dict(steps=(1, 1, 1, 1)))
    config.data.level_weights = (*config.data.level_weights, 1.0)
    config.unet.condition_fill = (*config.unet.condition_fill, config.unet.condition_fill[-1])
    config.data.episode_frames = 50_626
    config.diffusion.line_std = (*config.diffusion.line_std, config.diffusion.line_std[-1])
    networks, key = networks_lib.build(config), jax.random.key(0)
    channels = networks.latent_shape[-1]
    scale = dict(latent_shift=np.zeros(channels, np.float32), latent_scale=np.ones(channels, np.float32))
    vae, denoiser = jax.jit(networks.init_vae)(key), jax.jit(networks.init_denoiser)(key)
    weights.save(path, dict(scale, vae=vae, denoisers=(denoiser,)), config, {"note": "as initialised"})


def measure(frames: int, model: pathlib.Path) -> dict[str, float]:
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--mode=sample", f"--story={STORY}", f"--workdir={folder}", f"--weights={model}", f"--frames={frames}"]
        # No program from an earlier run: compiling is a part of what a first run needs.
        environment = dict(os.environ, NUWAXL_CACHE="off", JAX_PLATFORMS="cpu")
        command = [sys.executable, "-m", "nuwaxl_jax.main", *flags]
        start, private, mapped = time.monotonic(), [0.0], [0.0]
        with open(os.path.join(folder, "log"), "w+") as log:
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            while child.poll() is None:
                try:
                    now = _resident(child.pid)
                except (OSError, ProcessLookupError):
                    break
                private.append(now[0])
                mapped.append(now[1])
                time.sleep(0.05)
            log.seek(0)
            assert child.wait() == 0, log.read()[-2000:]
        with video_io.VideoReader(os.path.join(folder, f"{STORY.stem}.mp4")) as reader:
            assert reader.info.num_frames == frames
        size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("latents.npy"))
    return dict(
        frames=frames,
        private_mib=round(max(private)),
        mapped_mib=round(max(mapped)),
        private_mib_over_time=[round(private[i * (len(private) - 1) // 20]) for i in range(1, 21)],
        latents_mib=round(size / 2**20, 1),
        seconds=round(time.monotonic() - start, 1),
    )


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        "| frames | private memory, peak, MiB | mapped from files, peak, MiB | latents on disk, MiB | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows.values(), key=lambda row: row["frames"]):
        names = ("private_mib", "mapped_mib", "latents_mib", "seconds")
        lines.append(f"| {row['frames']:,} | " + " | ".join(f"{row[name]:,}" for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="226,3376,50626")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    model = pathlib.Path(tempfile.mkdtemp()) / "depth4.safetensors"
    make_weights(model)
    for frames in map(int, arguments.frames.split(",")):
        if str(frames) not in record["rows"] or arguments.again:
            record["rows"][str(frames)] = measure(frames, model)
            record["machine"] = dict(cores=os.cpu_count(), python=platform.python_version())
            files.write_json(RESULTS, record)
            print(json.dumps(record["rows"][str(frames)]), flush=True)
    print(table(record["rows"]))


if __name__ == "__main__":
    main()
