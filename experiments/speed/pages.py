"""What giving freed memory back costs a training run on a CPU: image_vae's steps with and without host_memory.

`late`: asked for when JAX has made its threads, which then keep arenas of their own.

    python experiments/speed/pages.py [--steps 150] [--repeats 2]

Each run is a process of its own, alternating. Writes pages.json beside this file.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
_PLAIN = "from nuwaxl_jax import host_memory, main; host_memory.keep_freed_pages = lambda: False; main.run()"
_LATE = "from nuwaxl_jax import host_memory, main; host_memory.cpu_alone = lambda platforms: False; main.run()"
_KEPT = "from nuwaxl_jax import main; main.run()"


def one(code: str, steps: int) -> dict:
    """Steps a second over the second half of a run, and its seconds of system time."""
    with tempfile.TemporaryDirectory() as workdir:
        arguments = (
            *("--mode=train", f"--config={ROOT}/configs/toons.py:quick", f"--workdir={workdir}", "--cpu_devices=2"),
            *("--config.train.stages=('image_vae',)", f"--config.train.image_vae.num_steps={steps}"),
            *("--config.train.image_vae.warmup_steps=20", f"--config.train.image_vae.log_every={steps // 2}"),
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_stime
        environment = dict(os.environ, JAX_PLATFORMS="cpu")
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment, capture_output=True)
        system = resource.getrusage(resource.RUSAGE_CHILDREN).ru_stime - before
        lines = (pathlib.Path(workdir) / "image_vae" / "metrics.jsonl").read_text().splitlines()
        rates = [row["steps_per_second"] for row in map(json.loads, lines) if "steps_per_second" in row]
    return dict(steps_per_second=rates[-1], system_seconds=round(system, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    rows: dict[str, list[dict]] = {"given back": [], "late": [], "kept": []}
    for _ in range(arguments.repeats):
        for name, code in (("given back", _PLAIN), ("late", _LATE), ("kept", _KEPT)):
            rows[name].append(one(code, arguments.steps))
            print(name, rows[name][-1], flush=True)
    medians = {name: statistics.median(row["steps_per_second"] for row in of) for name, of in rows.items()}
    record = {"rows": rows, "median_steps_per_second": medians, "ratio": medians["kept"] / medians["given back"]}
    files.write_json(HERE / "pages.json", record)
    print(f"{record['ratio']:.2f} times the steps a second")


if __name__ == "__main__":
    main()
