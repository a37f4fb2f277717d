"""How training and sampling scale over chips: read off programs compiled for v5e slices; wall times on virtual devices.

    pip install '.[tpu]'
    python experiments/scaling/run.py [--only=small/train] [--effort=0] [--again]   # predicted rows
    python experiments/scaling/run.py --measure [--repeats=5]                       # measured rows, no TPU compiler
    python experiments/scaling/run.py --table                                       # tables into README.md, plot.png

Predicted, a bound and not a measurement: a program is compiled for 1 to 256 chips of v5e, and its FLOP and collectives
a chip are divided by the published peaks. Weak scaling: the training step with the preset's clips on each chip. Strong
scaling: level 2, the 225 segments at stride 1 of a 3376-frame video, in one call.

Measured: the same kinds of programs run on 1, 2 and 4 virtual CPU devices of one process, on values at random. They
share the cores, so this shows what dividing costs and never a speed-up.

Rows are kept in results.json beside this file as they are made; the command goes on where it stopped.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
import view

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import partitioning
from nuwaxl_jax.cost import programs
from nuwaxl_jax.cost import report
from nuwaxl_jax.cost import topologies
from nuwaxl_jax.models import layers

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
CHIPS = {1: "2x2", 4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}  # -> v5e's shape; of the first, one chip is used
LEVEL, SEGMENTS = "sample/level_2", 225
MICROBATCH = {"small": (5, 1), "paper128": (1,)}  # the preset's own first
STEP = "train/denoiser"
MEASURED = (("tiny", STEP), ("tiny", LEVEL), ("small", STEP), ("small", "sample/level_1"))
DEVICES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Row:
    """A program to compile: preset, program, chips, and overrides of the config."""

    preset: str
    program: str
    chips: int
    overrides: dict[str, Any]


def rows() -> dict[str, Row]:
    """label -> row, in the order they are made."""
    out = {}
    for preset in ("small", "paper128"):
        for microbatch in MICROBATCH[preset]:
            for chips in CHIPS:
                if microbatch < MICROBATCH[preset][0] and chips * MICROBATCH[preset][0] <= SEGMENTS:
                    continue  # the preset's own fills the chips
                split = {"hierarchy.chunk": SEGMENTS, "hierarchy.microbatch": microbatch}
                out[f"{preset}/{LEVEL}, {microbatch} at once/{chips}"] = Row(preset, LEVEL, chips, split)
        if preset == "small":
            for chips in CHIPS:
                out[f"{preset}/{STEP}/{chips}"] = Row(preset, STEP, chips, _more_clips(preset, chips))
    for chips in tuple(CHIPS)[2:]:  # the paper's size does not fit on fewer: parameters lie over all chips
        batch = 4 * chips
        out[f"paper128/{STEP}/{chips}"] = Row(
            "paper128", STEP, chips, {"mesh.fsdp": chips, "train.denoiser.batch_size": batch}
        )
    return out


def _more_clips(preset: str, chips: int) -> dict[str, Any]:
    return {"train.denoiser.batch_size": load(preset, {}).train.denoiser.batch_size * chips}


def load(preset: str, overrides: dict[str, Any]):
    """A preset's config, validated."""
    family = "nuwaxl" if preset.startswith("paper") else "toons"
    spec = importlib.util.spec_from_file_location(family, ROOT / "configs" / f"{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(preset)
    config.update_from_flattened_dict(overrides)
    return config_lib.validate(config)


def predict(row: Row, effort: float) -> dict[str, Any]:
    """The report of a row's program, see `report.measure`."""
    whole = topologies.describe(f"v5e:{CHIPS[row.chips]}")
    topology = dataclasses.replace(whole, devices=whole.devices[: row.chips], chips=row.chips)
    config = load(row.preset, row.overrides)
    mesh = partitioning.make_mesh(**config.mesh.to_dict(), devices=topology.devices)
    jax.config.update("jax_exec_time_optimization_effort", effort)
    program = programs.make(config, row.program, mesh)
    made = report.measure(program, topology, config)
    jax.clear_caches()
    return dataclasses.asdict(row) | dict(effort=effort, versions=_versions()) | made


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "libtpu")
    return {n: importlib.metadata.version(n) for n in names if importlib.util.find_spec(n)}


def _values(info: Any, sharding: Any, rng: np.random.Generator) -> Any:
    """Small positive numbers, zeros for integers, where the program wants them."""
    if jnp.issubdtype(info.dtype, jnp.floating):
        value = rng.uniform(0, 0.02, info.shape).astype(info.dtype)
    else:
        value = np.zeros(info.shape, info.dtype)
    return jax.device_put(value, sharding) if sharding is not None else value


def measure(preset: str, name: str, devices: int, repeats: int) -> dict[str, Any]:
    """Median seconds of a program on the first of this process's virtual devices, warm."""
    config = load(preset, {})
    mesh = partitioning.make_mesh(devices=jax.devices()[:devices])
    program = programs.make(config, name, mesh)
    with layers.tracing_for("cpu"):
        compiled = program.compile()
    infos, tree = jax.tree.flatten(compiled.args_info)
    shardings = tree.flatten_up_to(compiled.input_shardings)
    rng = np.random.default_rng(0)
    values = [_values(info, sharding, rng) for info, sharding in zip(infos, shardings, strict=True)]
    arguments = list(tree.unflatten(values)[0])
    if name.startswith("sample"):  # (params, key, level, rounds, items)
        arguments[3] = jax.device_put(np.int32(program.rounds), arguments[3].sharding)
    seconds = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        if repeat >= 2:
            seconds.append(time.perf_counter() - start)
        if name.startswith("train"):
            arguments[0] = out[0]  # its state was donated
    jax.clear_caches()
    shown = dict(preset=preset, program=name, devices=devices, cores=os.cpu_count(), jax=jax.__version__)
    return shown | dict(settings=program.settings, seconds=statistics.median(seconds), all_seconds=seconds)


def finished() -> dict[str, dict[str, dict]]:
    """{'predicted', 'measured'}: label -> row."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"predicted": {}, "measured": {}}


def keep(kind: str, label: str, row: dict[str, Any]) -> None:
    record = finished()
    record[kind][label] = row
    files.write_json(RESULTS, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose label holds this")
    parser.add_argument("--effort", type=float, default=-1.0, help="of the compiler, -1 to 1; 0 is its own default")
    parser.add_argument("--again", action="store_true", help="make finished rows again")
    parser.add_argument("--measure", action="store_true", help="wall times on virtual CPU devices, nothing predicted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="write tables and plot of what is there alone")
    arguments = parser.parse_args()
    if arguments.measure:
        jax.config.update("jax_num_cpu_devices", max(DEVICES))
        for preset, name in MEASURED:
            for devices in DEVICES:
                label = f"{preset}/{name}/{devices}"
                if arguments.only in label and (arguments.again or label not in finished()["measured"]):
                    keep("measured", label, measure(preset, name, devices, arguments.repeats))
                    print(f"{label}: {finished()['measured'][label]['seconds']:.3f} s", flush=True)
    elif not arguments.table:
        for label, row in rows().items():
            if arguments.only in label and (arguments.again or label not in finished()["predicted"]):
                made = predict(row, arguments.effort)
                keep("predicted", label, made)
                print(f"{label}: {report.text(made)}", flush=True)
    view.write(finished(), tuple(rows()), HERE)


if __name__ == "__main__":
    main()
