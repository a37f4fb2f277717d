"""What keeping latents saves: the denoiser's training from frames and from `--mode=data --cache`, side by side.

    python experiments/speed/cache.py [--steps=30] [--repeats=3]

Whole runs of the command, configs/toons.py:small from the shipped weights, by turns; the rate is that of the second
half of each run's steps. Writes cache.json beside this file.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import weights

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
BATCH = 8


def command(*arguments: str) -> float:
    """Seconds of the package's own command."""
    start = time.perf_counter()
    line = [sys.executable, "-m", "nuwaxl_jax.main", "--config=configs/toons.py:small", *arguments]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    steps, rates = arguments.steps, {"frames": [], "kept latents": []}
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        common = (
            *(f"--config.train.init_from={weights.find('shipped')}", "--config.train.stages=('denoiser',)"),
            *(f"--config.train.denoiser.num_steps={steps}", f"--config.train.denoiser.log_every={steps // 2}"),
        )
        cache = f"--config.data.cache={folder / 'cache'}"
        items = steps * BATCH
        seconds = command("--mode=data", "--cache", f"--items={items}", f"--workdir={folder / 'none'}", *common, cache)
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.array_record"))
        for repeat in range(arguments.repeats):
            for kind, more in (("frames", ()), ("kept latents", (cache,))):
                workdir = folder / f"{kind} {repeat}"
                command("--mode=train", f"--workdir={workdir}", *common, *more)
                lines = (workdir / "denoiser" / "metrics.jsonl").read_text().splitlines()
                rates[kind].append(json.loads(lines[-1])["steps_per_second"])
                print(f"{kind}: {rates[kind][-1]:.3f} steps/s", flush=True)
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    record = dict(steps=steps, examples=items, megabytes=size / 1e6, encoding_seconds=seconds, rates=rates)
    record |= dict(medians=medians, ratio=medians["kept latents"] / medians["frames"])
    files.write_json(HERE / "cache.json", record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
