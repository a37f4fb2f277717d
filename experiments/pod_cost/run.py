"""What presets cost on TPU slices, read off programs compiled without one; and whether that has grown since.

    pip install '.[tpu]'
    python experiments/pod_cost/run.py [--only=paper128/v5e-16] [--effort=0] [--again] [--table]
    python experiments/pod_cost/run.py --check [--only=small/v5e-16]

A row is one program of one preset on one slice, compiled by `--mode=compile` in a process of its own (toons' programs
of a slice in one); finished rows are kept in results.json beside this file, so the command goes on where it stopped,
and two may run at once on different rows. `--table` prints the table alone. A row of the paper's size takes minutes
and several GiB at the compiler's lowest effort (the default here), and far more at effort 0.

`--check` stores nothing: it compiles what is stored once more and ends with status 1 and a line a growth where memory
or a collective's bytes are more by 5 % (nuwaxl_jax/cost/growth.py). After a change that is worth it, `--again` renews.
"""

import argparse
import itertools
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
from typing import Iterable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax.cost import growth
from nuwaxl_jax.cost import report
from nuwaxl_jax.cost import topologies

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
SLICES = ("v5e-16", "v4-8", "v6e-64", "v5p-64", "v5e-64", "v5e-256")
PRESETS = ("paper128", "paper256")
PROGRAMS = ("train/denoiser", "sample/level_2", "decode", "train/vae")
# toons: small enough for every program, and for compiling them again at every change.
TOONS = {"small": ("v5e-16", "v5e-256", "v4-8"), "tiny": ("v5e-16",)}
TOONS_PROGRAMS = ("train/vae", "train/denoiser", "sample/level_0", "sample/level_1", "sample/level_2")
BATCH = 64  # clips of the presets' step
# The ablation that ran out of memory in the paper (Table 2d): segments of 32 frames. The preset as it is, then
# one change each.
_ALL = ("train.denoiser.trainable=",)
LONG = (
    ("as it is", ()),
    ("text encoder trained too", _ALL),
    ("blocks recomputed", ("unet.remat=blocks",)),
    ("one clip a chip at a time", ("train.denoiser.accumulate=4",)),
)

Row = tuple[str, str, str, tuple[str, ...]]  # preset, slice, program, overrides


def _devices(slice_name: str) -> int:
    generation, shape = topologies.resolve(slice_name)
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    return chips * topologies.CHIPS[generation].devices


def _base(slice_name: str) -> tuple[str, ...]:
    """Parameters sharded over all chips; at least one clip a chip."""
    devices = _devices(slice_name)
    larger = (f"train.denoiser.batch_size={devices}",) if devices > BATCH else ()
    return (f"mesh.fsdp={devices}", f"train.vae.batch_size={max(16, devices)}", *larger)


def _toons(slice_name: str) -> tuple[str, ...]:
    """Parameters sharded over 4 chips, clips over all: collectives along both axes; two clips a chip."""
    clips = 2 * _devices(slice_name)
    return ("mesh.fsdp=4", *(f"train.{stage}.batch_size={clips}" for stage in ("vae", "denoiser")))


def rows() -> dict[str, Row]:
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
    for name in ("v5e-256", "v5e-16", "v4-8"):  # level 2 is the largest; the others for these alone
        for program in ("sample/level_0", "sample/level_1"):
            out[f"paper128/{name}/{program}"] = "paper128", name, program, _base(name)
    smaller = (*_base("v5e-16"), "train.denoiser.accumulate=4")
    out["paper256 on v5e-16, one clip a chip at a time"] = "paper256", "v5e-16", "train/denoiser", smaller
    out["paper256 on v4-8, one clip a chip at a time"] = (
        "paper256",
        "v4-8",
        "train/denoiser",
        (*_base("v4-8"), "train.denoiser.accumulate=16"),
    )
    for name in ("v5e-16", "v5e-64"):
        recomputed = (*_base(name), "vae.remat=blocks")
        out[f"paper256 on {name}, T-KLVAE's blocks recomputed"] = "paper256", name, "train/vae", recomputed
    out["L=32, sampling"] = "paper128", "v5e-16", "sample/level_2", (*_base("v5e-16"), *long)
    for preset, slices in TOONS.items():
        for name in slices:
            for program in TOONS_PROGRAMS:
                out[f"{preset}/{name}/{program}"] = preset, name, program, _toons(name)
    return out


def groups(wanted: Iterable[str]) -> Iterator[dict[str, Row]]:
    """Those rows, by the process that compiles them: toons' of one slice together, others alone."""
    every = rows()
    key = lambda label: every[label][:2] if every[label][0] in TOONS else label
    for _, labels in itertools.groupby(wanted, key):
        yield {label: every[label] for label in labels}


def _finished() -> dict[str, dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _compile(group: dict[str, Row], effort: float) -> dict[str, dict]:
    """The reports of rows of one preset, slice and overrides; {'error': ...} where the command refused one."""
    [(preset, name, overrides)] = {(p, n, o) for p, n, _, o in group.values()}
    family = "toons" if preset in TOONS else "nuwaxl"
    parts = ",".join(program for _, _, program, _ in group.values())
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "cost.json"
        command = [
            *(sys.executable, "-m", "nuwaxl_jax.main", "--mode=compile", f"--out={out}", f"--effort={effort}"),
            *(f"--config={ROOT}/configs/{family}.py:{preset}", f"--topology={name}", f"--parts={parts}"),
            *(f"--config.{override}" for override in overrides),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        record = json.loads(out.read_text())
    shown = dict(
        effort=effort,
        preset=preset,
        slice=name,
        chips=record["chips"],
        overrides=list(overrides),
        versions=record["versions"],
    )
    made = {row["program"]: shown | row for row in record["programs"]}
    return {label: made[program] for label, (_, _, program, _) in group.items()}


def _renewal(label: str) -> str:
    return f"python experiments/pod_cost/run.py --again --only={shlex.quote(label)}"


def check(group: dict[str, Row], effort: float) -> list[str]:
    """What of these rows has grown since they were stored, in words."""
    stored = _finished()
    lines = [
        line for label in group if label not in stored for line in growth.growths(label, None, {}, _renewal(label))
    ]
    group = {label: row for label, row in group.items() if label in stored}
    for label, new in (_compile(group, effort) if group else {}).items():
        before = stored[label]
        differ = growth.other_versions(before["versions"], new["versions"])
        same = [before[name] == new[name] for name in ("effort", "overrides")]
        if differ or not all(same):
            why = differ or "stored with another effort or other overrides"
            lines.append(f"{label}: not comparable, {why}; store it anew: {_renewal(label)}")
        else:
            lines += growth.growths(label, before, new, _renewal(label))
    return lines


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
    parser.add_argument("--only", default="", help="rows whose label holds this, or one of these, with ; between")
    parser.add_argument("--effort", type=float, default=-1.0, help="of the compiler, -1 to 1; 0 is its own default")
    parser.add_argument("--again", action="store_true", help="compile finished rows again")
    parser.add_argument("--table", action="store_true", help="print the table of the finished rows alone")
    parser.add_argument("--check", action="store_true", help="compile stored rows again; status 1 where one has grown")
    arguments = parser.parse_args()
    finished = _finished()
    if arguments.table:
        print(table(finished))
        return
    wanted = [label for label in rows() if any(part in label for part in arguments.only.split(";"))]
    if arguments.check:
        lines = []
        for group in groups(label for label in wanted if label in finished or rows()[label][0] in TOONS):
            found = check(group, arguments.effort)
            print(*(found or [f"{label}: not grown" for label in group]), sep="\n", flush=True)
            lines += found
        raise SystemExit(1 if lines else 0)
    for group in groups(label for label in wanted if arguments.again or label not in finished):
        made = _compile(group, arguments.effort)
        files.write_json(RESULTS, _finished() | made)
        for label, row in made.items():
            print(f"{label}: " + report.text(row).replace("\n", f"\n{'':8}"), flush=True)
    print(table(_finished()))


if __name__ == "__main__":
    main()
