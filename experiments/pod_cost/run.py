"""What the paper-sized presets cost on TPU slices, read off programs compiled without one.

    pip install '.[tpu]'
    python experiments/pod_cost/run.py [--only=paper128/v5e-16] [--effort=0] [--again] [--table]

A row is one program of one preset on one slice, compiled in a process of its own by `--mode=compile`; finished rows are
kept in results.json beside this file, so the command goes on where it stopped, and two may run at once on different
rows. `--table` prints the table alone. A row takes minutes and several GiB at the compiler's lowest effort (the
default here), and far more at effort 0.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from nuwaxl_jax import files
from nuwaxl_jax.cost import report
from nuwaxl_jax.cost import topologies

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
SLICES = ("v5e-16", "v4-8", "v6e-64", "v5p-64", "v5e-64")
PRESETS = ("paper128", "paper256")
PROGRAMS = ("train/denoiser", "sample/level_2", "decode", "train/vae")
# The ablation that ran out of memory in the paper (Table 2d): segments of 32 frames. The preset as it is, then
# one change each.
_ALL = ("train.denoiser.trainable=",)
LONG = (
    ("as it is", ()),
    ("text encoder trained too", _ALL),
    ("blocks recomputed", ("unet.remat=blocks",)),
    ("one clip a chip at a time", ("train.denoiser.accumulate=4",)),
)


def _devices(slice_name: str) -> int:
    generation, shape = topologies.resolve(slice_name)
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    return chips * topologies.CHIPS[generation].devices


def _base(slice_name: str) -> tuple[str, ...]:
    """Parameters sharded over all chips; at least one clip a chip."""
    devices = _devices(slice_name)
    return (f"mesh.fsdp={devices}", f"train.vae.batch_size={max(16, devices)}")


def rows() -> dict[str, tuple[str, str, str, tuple[str, ...]]]:
    """label -> (preset, slice, program, overrides), the most wanted first."""
    out = {}
    long = ("hierarchy.segment_length=32", "train.denoiser.clip_length=32")
    for program in PROGRAMS:
        for preset in PRESETS:
            for name in SLICES:
                out[f"{preset}/{name}/{program}"] = preset, name, program, _base(name)
        if program == "train/denoiser":
            for label, overrides in LONG:
                out[f"L=32, {label}"] = "paper128", "v5e-16", program, (*_base("v5e-16"), *long, *overrides)
    out["paper128 on v5e-16, text encoder trained too"] = (
        "paper128",
        "v5e-16",
        "train/denoiser",
        (*_base("v5e-16"), *_ALL),
    )
    smaller = (*_base("v5e-16"), "train.denoiser.accumulate=4")
    out["paper256 on v5e-16, one clip a chip at a time"] = "paper256", "v5e-16", "train/denoiser", smaller
    out["paper256 on v4-8, one clip a chip at a time"] = (
        "paper256",
        "v4-8",
        "train/denoiser",
        (*_base("v4-8"), "train.denoiser.accumulate=16"),
    )
    recomputed = (*_base("v5e-16"), "vae.remat=blocks")
    out["paper256 on v5e-16, T-KLVAE's blocks recomputed"] = "paper256", "v5e-16", "train/vae", recomputed
    out["L=32, sampling"] = "paper128", "v5e-16", "sample/level_2", (*_base("v5e-16"), *long)
    return out


def _finished() -> dict[str, dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _compile(preset: str, name: str, program: str, overrides: tuple[str, ...], effort: float) -> dict:
    """The report of one row; {'error': ...} where the command refused."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "cost.json"
        command = [
            *(sys.executable, "-m", "nuwaxl_jax.main", "--mode=compile", f"--out={out}", f"--effort={effort}"),
            *(f"--config={ROOT}/configs/nuwaxl.py:{preset}", f"--topology={name}", f"--parts={program}"),
            *(f"--config.{override}" for override in overrides),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        record = json.loads(out.read_text())
    [row] = record["programs"]
    shown = dict(
        effort=effort,
        preset=preset,
        slice=name,
        chips=record["chips"],
        overrides=list(overrides),
        versions=record["versions"],
    )
    return shown | row


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    lines = [
        "| preset, slice | program | memory a device | arguments, temporaries | FLOP a device | bound | collectives |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in rows():
        row = results.get(label)
        if row is None:
            continue
        where = label if "," in label else f"{row['preset']}, {row['slice']}"
        if "error" in row:
            lines.append(f"| {where} | {row['program']} | {row['error']} | | | | |")
            continue
        memory = row["memory"]
        verdict = f"{report.gib(memory['total'])} of {report.gib(row['limit'])}"
        verdict = verdict if row["fits"] else f"**{verdict}: does not fit**"
        kinds = f"{report.gib(memory['arguments'])}, {report.gib(memory.get('temporaries'))}"
        work = f"{report.count(row['flops'])}FLOP" if "flops" in row else "not compiled"
        bound = f"{row['bound_seconds']['compute']:.3g} s" if row.get("bound_seconds") else ""
        made = ", ".join(f"{k} {v['count']:.0f}" for k, v in sorted(row.get("collectives", {}).items())) or "none"
        lines.append(f"| {where} | {row['program']} | {verdict} | {kinds} | {work} | {bound} | {made} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose label holds this")
    parser.add_argument("--effort", type=float, default=-1.0, help="of the compiler, -1 to 1; 0 is its own default")
    parser.add_argument("--again", action="store_true", help="compile finished rows again")
    parser.add_argument("--table", action="store_true", help="print the table of the finished rows alone")
    arguments = parser.parse_args()
    for label, row in rows().items():
        if arguments.table or arguments.only not in label or (label in _finished() and not arguments.again):
            continue
        made = _compile(*row, arguments.effort)
        files.write_json(RESULTS, _finished() | {label: made})
        print(f"{label}: " + report.text(made).replace("\n", f"\n{'':8}"), flush=True)
    print(table(_finished()))


if __name__ == "__main__":
    main()
