"""What the studies in this folder share: arms trained and evaluated by the command, seed by seed, and their tables.

An arm is a config: overrides of the study's preset. All arms of a seed start from the same weights (the shipped
T-KLVAE, and a denoiser's image network trained on single frames with that seed, the part that the paper takes
pre-trained), train for the same number of steps on the same clips, and tell the same held-out stories. What is finished
is kept: results.json of the study has a row an arm, seed and length, and the same command goes on where it stopped.

    python experiments/STUDY/run.py [--only="ARM;ARM"] [--seeds=0,1,2] [--work=runs/studies] [--dry_run] [--table]
    python experiments/STUDY/run.py --config=configs/videos.py --set=data.path=VIDEOS --set=...    # another data set
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

from nuwaxl_jax import files

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What a dry run changes: everything at its smallest, in seconds; its figures mean nothing.
_DRY = (
    *("vae.channel_mults=(1, 1)", "unet.channel_mults=(1,)", "unet.prompt_levels=(True,)"),
    *(f"train.{stage}.num_steps=2" for stage in ("image_vae", "vae", "image_denoiser", "denoiser")),
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
      name: in tables and file names.
      train: overrides, FIELD=VALUE, of its training and of its evaluation.
      sample: overrides of its evaluation alone.
      way: of telling, of evaluation.stories.GENERATORS.
      like: the arm whose weights it samples; '' trains its own.
    """

    name: str
    train: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    way: str = "nuwa_xl"
    like: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """Attributes:
    folder: of the study; results.json and plot.png are written there.
    arms: the first is what the others are compared with.
    stages: that an arm trains.
    start: 'image': arms start from the shipped T-KLVAE and a denoiser's image network, trained with their seed; 'vae':
      from the T-KLVAE alone; 'image_vae': from an image KL-VAE trained with their seed.
    frames: lengths of the videos that are told.
    shown: columns of the table: story scores, metrics, 'denoising_<level>', 'psnr', 'ssim', 'seconds', 'calls'.
    preset: of configs/toons.py.
    stories: told by each arm and seed.
    """

    folder: pathlib.Path
    arms: tuple[Arm, ...]
    frames: tuple[int, ...]
    shown: tuple[str, ...]
    stages: tuple[str, ...] = ("denoiser",)
    start: str = "image"
    preset: str = "study"
    stories: int = 8
    ways: Callable[[Arm], Sequence[str]] = lambda arm: ("ground_truth", arm.way)


def arguments_of(study: Study, description: str) -> argparse.Namespace:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"with ; between, of {'; '.join(arm.name for arm in study.arms)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--frames", default=",".join(map(str, study.frames)))
    parser.add_argument("--stories", type=int, default=study.stories)
    parser.add_argument("--config", default="", help=f"another than configs/toons.py:{study.preset}")
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE of every arm's config")
    parser.add_argument("--work", default=str(ROOT / "runs" / "studies"))
    parser.add_argument("--dry_run", action="store_true", help="the tiny preset, two steps, nothing written here")
    parser.add_argument("--table", action="store_true", help="print the table of what is finished")
    return parser.parse_args()


class Runner:
    """Trains and evaluates arms."""

    def __init__(self, study: Study, arguments: argparse.Namespace):
        self.study, self.arguments = study, arguments
        preset = "tiny" if arguments.dry_run else study.preset
        self.config = arguments.config or f"{ROOT}/configs/toons.py:{preset}"
        self.fields = (*(_DRY if arguments.dry_run else ()), *arguments.set)
        name = pathlib.Path(self.config).name.replace(":", "-").removesuffix(".py")
        self.work = pathlib.Path(arguments.work).resolve() / name
        # The study's own rows lie in its folder; what was asked otherwise is no row of theirs.
        own = not (arguments.dry_run or arguments.config or arguments.set) and arguments.stories == study.stories
        self.results = (study.folder if own else self._otherwise()) / "results.json"

    def _otherwise(self) -> pathlib.Path:
        """Where rows of another config, data set or number of stories lie."""
        what = json.dumps([self.config, self.fields, self.arguments.stories, self.arguments.dry_run])
        return self.work / self.study.folder.name / hashlib.sha256(what.encode()).hexdigest()[:10]

    def _command(self, mode: str, workdir: pathlib.Path, *flags: str) -> None:
        command = [sys.executable, "-m", "nuwaxl_jax.main", f"--mode={mode}", f"--workdir={workdir}", *flags]
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / f"{mode}.log", "a", encoding="utf-8") as log:
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
        if done.returncode:
            end = (workdir / f"{mode}.log").read_text(encoding="utf-8")[-1500:]
            raise SystemExit(f"{' '.join(command)}\nended with status {done.returncode}:\n{end}")

    def _train(self, workdir: pathlib.Path, seed: int, stages: Sequence[str], fields: Sequence[str]) -> None:
        chosen = (*self.fields, f"seed={seed}", f"train.stages={tuple(stages)!r}", *fields)
        devices = f"--cpu_devices={os.cpu_count()}"
        self._command("train", workdir, f"--config={self.config}", devices, *(f"--config.{field}" for field in chosen))

    def _start(self, seed: int) -> pathlib.Path:
        """The weights that the arms of a seed start from; made where they are not there yet."""
        file = self.work / f"{self.study.start}-{seed}.safetensors"
        if file.is_file():
            return file
        base = self.work / f"{self.study.start}-{seed}"
        if self.arguments.dry_run:
            self._train(base, seed, ("image_vae",), ())
            _call_export(base, "vae", file)
            return file
        vae = self.work / "vae.safetensors"
        if self.study.start == "image_vae":
            self._train(base, seed, ("image_vae",), ())
        else:
            if not vae.is_file():
                self._vae(vae)
            if self.study.start == "vae":
                return vae
            self._train(base, seed, ("image_denoiser",), (f"train.init_from={vae}",))
        _call_export(base, self.study.start, file, vae)
        return file

    def _vae(self, vae: pathlib.Path) -> None:
        """The shipped T-KLVAE by itself; where the config is of another size, one trained with it."""
        self.work.mkdir(parents=True, exist_ok=True)
        whole = "shipped"
        if self.config != f"{ROOT}/configs/toons.py:{self.study.preset}":
            self._train(self.work / "vae", 0, ("image_vae", "vae"), ())
            whole = str(self.work / "vae")
        _call_export(whole, "vae", vae)

    def workdir(self, arm: Arm, seed: int) -> pathlib.Path:
        """Of an arm's training; studies share the runs of equal arms."""
        what = json.dumps([sorted(arm.train), self.fields, self.study.stages, self.study.start])
        return self.work / f"run-{hashlib.sha256(what.encode()).hexdigest()[:10]}-{seed}"

    def run(self, arm: Arm, seed: int) -> None:
        """One arm with one seed: trains it and tells the stories at every length that is not in the results."""
        lengths = [int(n) for n in self.arguments.frames.split(",")]
        missing = [n for n in lengths if f"{arm.name}/{seed}/{n}" not in self.rows()]
        if not missing:
            return
        owner = next(other for other in self.study.arms if other.name == (arm.like or arm.name))
        start, begin = self._start(seed), time.perf_counter()
        workdir = self.workdir(owner, seed)
        self._train(workdir, seed, self.study.stages, (*owner.train, f"train.init_from={start}"))
        print(f"{arm.name}, seed {seed}: trained in {time.perf_counter() - begin:.0f} s, {workdir}", flush=True)
        for frames in missing:
            begin = time.perf_counter()
            flags = [
                f"--frames={frames}",
                f"--stories={self.arguments.stories}",
                "--others=0",
                "--blocks=8",
                "--stills=8",
            ]
            flags += [f"--ways={','.join(self.study.ways(arm))}", f"--real_scores={self.work / 'real'}"]
            flags += [f"--config.{field}" for field in arm.sample]
            flags += ["--nomeasure"] if self.arguments.dry_run else []
            if "denoiser" not in self.study.stages:
                weights = workdir / "vae.safetensors"
                _call_export(workdir, "vae", weights)
                flags.append(f"--weights={weights}")
            self._command("eval", workdir, *flags)
            row = self._row(arm, seed, json.loads((workdir / "eval" / "eval.json").read_text()))
            shown = {name: round(row[name], 4) for name in self.study.shown if name in row}
            files.write_json(self.results, self.rows() | {f"{arm.name}/{seed}/{frames}": row})
            print(f"{arm.name}, seed {seed}, {frames} frames: {time.perf_counter() - begin:.0f} s: {shown}", flush=True)

    def rows(self) -> dict[str, dict[str, float]]:
        """'arm/seed/frames' -> figures, of what is finished."""
        self.results.parent.mkdir(parents=True, exist_ok=True)
        return json.loads(self.results.read_text()) if self.results.is_file() else {}

    def _row(self, arm: Arm, seed: int, record: Mapping[str, Any]) -> dict[str, float]:
        told = record["stories"].get(arm.way, {})
        out = dict(told.get("summary", {}).get("mean", {}))
        vae = record["stories"].get("vae_ceiling", {})
        out |= {name: vae[name] for name in ("psnr", "ssim", "lpips") if name in vae}
        measured = record["metrics"].get(arm.way) or record["metrics"].get("vae_ceiling") or {}
        out |= {name: metric["value"] for name, metric in measured.items()}
        for level, errors in record["denoising"]["levels"].items():
            out[f"denoising_{level}"] = round(float(np.mean(errors)), 5)
        if "cost" in told:
            out |= {"seconds": told["cost"]["seconds"], "calls": told["cost"]["serial_denoiser_calls"]}
        curve = told.get("summary", {}).get("curve", {})
        out["curve"] = {name: curve[name] for name in ("frame", "exact", "scene", "position") if name in curve}
        return {name: value for name, value in out.items() if value is not None}


def _call_export(source: str | pathlib.Path, what: str, file: pathlib.Path, vae: str | pathlib.Path = "") -> None:
    """`_export` in a process of its own: it holds no memory while arms train."""
    script = [sys.executable, str(pathlib.Path(__file__).resolve()), str(source), what, str(file), str(vae)]
    subprocess.run(script, cwd=ROOT, check=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95 % interval by Student's t over seeds); 0 of one value."""
    from scipy import stats

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def table(study: Study, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row an arm and length; means over seeds, with 95 % intervals by Student's t."""
    lines = ["| arm | frames | seeds | " + " | ".join(study.shown) + " |", "|---" * (len(study.shown) + 3) + "|"]
    lengths = sorted({int(key.rsplit("/", 1)[1]) for key in rows})
    for arm in study.arms:
        for frames in lengths:
            own = [row for key, row in rows.items() if key.startswith(f"{arm.name}/") and key.endswith(f"/{frames}")]
            if not own:
                continue
            cells = []
            for name in study.shown:
                values = [row[name] for row in own if name in row]
                mean, half = interval(values) if values else (None, 0.0)
                cells.append("-" if mean is None else f"{mean:.4g}" + (f" ± {half:.2g}" if half else ""))
            lines.append(f"| {arm.name} | {frames} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(study: Study, description: str) -> None:
    """The command of a study."""
    arguments = arguments_of(study, description)
    runner = Runner(study, arguments)
    if not arguments.table:
        wanted = arguments.only.split(";") if arguments.only else [arm.name for arm in study.arms]
        unknown = set(wanted) - {arm.name for arm in study.arms}
        if unknown:
            raise SystemExit(
                f"--only: {sorted(unknown)[0]} is no arm; choose of {'; '.join(a.name for a in study.arms)}"
            )
        for seed in (int(n) for n in arguments.seeds.split(",")):
            for arm in study.arms:
                if arm.name in wanted:
                    runner.run(arm, seed)
    rows = runner.rows()
    print(table(study, rows))
    if rows and not arguments.table:
        import study_plot

        study_plot.draw(study, rows, interval).save(runner.results.with_name("plot.png"))


def _export(source: str, what: str, file: str, vae: str) -> None:
    """Writes a VAE by itself, or (`what` is 'image') the denoiser's image network of a run beside the VAE `vae`."""
    from nuwaxl_jax import weights
    from nuwaxl_jax.training import checkpoint
    from nuwaxl_jax.training import export
    from nuwaxl_jax.training import lineage

    card = {"made": "experiments/study.py", "of": what}
    if what == "image":
        bundle, _, _ = weights.load(vae)
        config = export.read_config(source)
        bundle["denoisers"] = (checkpoint.restore_ema(source, "image_denoiser"),)
    elif source == "shipped":
        bundle, config, _ = weights.load(weights.find("shipped"))
        bundle["denoisers"] = ()
    else:
        config = export.read_config(source)
        bundle = {"vae": lineage.vae_of(config, source), **lineage.latent_stats(config, source), "denoisers": ()}
    weights.save(file, bundle, config, card, dtype="float32")


if __name__ == "__main__":
    _export(*sys.argv[1:])
