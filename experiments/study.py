"""What the studies in this folder share: arms trained and evaluated by the command, seed by seed, and their tables.

An arm is a config: overrides of the study's preset. All arms of a seed start from the same weights (the shipped
T-KLVAE, and a denoiser's image network trained on single frames with that seed, the part that the paper takes
pre-trained), train for the same number of steps on the same clips, and tell the same held-out stories. Arms whose
examples are the same train from the same kept latents (`--kept` clips, gone through again and again). What is finished
is kept: results.json of the study has a row an arm, seed and length, and the same command goes on where it stopped.
Equal arms of two studies are one run, trained and told once (its folder under `--work`, with rows.json; to have it anew
remove the folder and the rows).

    python experiments/STUDY/run.py [--only="ARM;ARM"] [--seeds=0,1,2] [--work=runs/studies] [--dry_run] [--table]
    python experiments/STUDY/run.py --jobs=2    # two arms at a time, each on its share of the cores; without seconds
    python experiments/STUDY/run.py --anew      # all again, apart, and how far the rows are from those that are kept
    python experiments/STUDY/run.py --inception=FILE.pth --clip=FOLDER    # Avg-FID and CLIP too; rows of their own
    python experiments/STUDY/run.py --config=configs/videos.py:study --set=data.path=VIDEOS    # another data set
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the code here, as the commands below have it, and not a copy that is installed

from nuwaxl_jax import files
from nuwaxl_jax.evaluation import versions
import study_arguments
import study_export
import study_table
import study_telling

# Fields that training examples follow from (training/caching.py): arms that agree in them share kept latents.
_EXAMPLES = ("data.", "vae.", "mtd.", "hierarchy.segment_length", "hierarchy.depth", "hierarchy.handover", "text.token")
_EXAMPLES += ("train.denoiser.clip_length", "train.denoiser.dtype")

# What a dry run changes: everything at its smallest, in seconds; its figures mean nothing. Of finished weights: steps.
# Segments stay as long as arms take them to be, and videos are at most so long: a little more than two segments.
_DRY_FRAMES = 40
_DRY = (
    *("hierarchy.segment_length=16", "train.vae.clip_length=16", "train.denoiser.clip_length=16"),
    "data.episode_frames=4096",
    *("vae.channel_mults=(1, 1)", "unet.channel_mults=(1,)", "unet.prompt_levels=(True,)"),
    *(f"train.{stage}.num_steps=2" for stage in ("image_vae", "vae", "image_denoiser", "denoiser")),
)
_DRY_OF_WEIGHTS = ("sampler.steps=(2, 2, 1)", "sampler.window_steps=1")


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
    stages: that an arm trains; none: arms tell with the weights of `--weights`, and a seed is that of their noise.
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


arguments_of = study_arguments.arguments_of


class Runner:
    """Trains and evaluates arms."""

    def __init__(self, study: Study, arguments: argparse.Namespace):
        self.study, self.arguments = study, arguments
        preset = "tiny" if arguments.dry_run else study.preset
        self.config = arguments.config or f"{ROOT}/configs/toons.py:{preset}"
        dry = (_DRY if study.stages else _DRY_OF_WEIGHTS) if arguments.dry_run else ()
        self.fields = (*dry, *arguments.set)
        longest = _DRY_FRAMES if arguments.dry_run else sys.maxsize
        self.lengths = sorted({min(int(n), longest) for n in arguments.frames.split(",")})
        name = pathlib.Path(self.config).name.replace(":", "-").removesuffix(".py")
        self.work = pathlib.Path(arguments.work).resolve() / ("anew" if arguments.anew else "") / name
        # The study's own rows lie in its folder; what was asked otherwise is no row of theirs.
        given = {name: getattr(arguments, name) for name in ("inception", "clip")}
        self._networks = tuple(f"--{name}={pathlib.Path(v).resolve()}" for name, v in given.items() if v)
        own = not (arguments.dry_run or arguments.config or arguments.set or self._networks)
        own = own and (arguments.stories, arguments.kept) == (study.stories, study_arguments.KEPT)
        self.weights, self._told_by = "", ()  # the file of finished weights; its hash, for what is kept is of its bytes
        if not study.stages:
            from nuwaxl_jax import weights

            own = own and arguments.weights == "shipped"
            self.weights = str(weights.find(arguments.weights).resolve())
            if not pathlib.Path(self.weights).is_file():
                raise SystemExit(f"--weights: {self.weights} is not there; name a file that --mode=export has written")
            self._told_by = (weights.digest(self.weights),)
        self.comparable = own and arguments.anew  # with the rows that are kept
        self.results = (study.folder if own and not arguments.anew else self._otherwise()) / "results.json"
        # What arms start from is of the config and the data too; the preset's own has no name beside its seed.
        mine = not (self.fields or arguments.config)
        of = hashlib.sha256(json.dumps([self.config, self.fields]).encode()).hexdigest()[:10]
        self.begun = self.work if mine else self.work / f"start-{of}"
        self._locks: dict[Any, threading.Lock] = collections.defaultdict(threading.Lock)
        self._cores: queue.Queue[tuple[int, ...]] = queue.Queue()  # of jobs that are not at work
        self._mine = threading.local()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        for job in range(arguments.jobs):
            self._cores.put(tuple(cores[job :: arguments.jobs]))

    def _otherwise(self) -> pathlib.Path:
        """Where rows of another config, data set or number of stories lie."""
        asked = self.arguments
        what = json.dumps(
            [self.config, self.fields, asked.stories, asked.kept, asked.dry_run, *self._told_by, *self._networks]
        )
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
        flags = [f"--config={self.config}", *(f"--config.{field}" for field in chosen)]
        if tuple(stages) == ("denoiser",) and self.arguments.kept:
            what = json.dumps([sorted(f for f in fields if f.startswith(_EXAMPLES)), self.fields, self.study.start])
            folder = self.work / f"latents-{hashlib.sha256(what.encode()).hexdigest()[:10]}-{seed}"
            flags.append(f"--config.data.cache={folder}")
            self._command("data", workdir, "--cache", f"--items={self.arguments.kept}", *flags)
        devices = len(getattr(self._mine, "cores", ())) or os.cpu_count()
        self._command("train", workdir, *flags, f"--cpu_devices={devices}")

    def _start(self, seed: int) -> pathlib.Path:
        """The weights that the arms of a seed start from; made where they are not there yet."""
        with self._locks["start", seed]:
            return self._started(seed)

    def _started(self, seed: int) -> pathlib.Path:
        file = self.begun / f"{self.study.start}-{seed}.safetensors"
        if file.is_file():
            return file
        base = self.begun / f"{self.study.start}-{seed}"
        if self.arguments.dry_run:
            self._train(base, seed, ("image_vae",), ())
            study_export.call(base, "vae", file)
            return file
        vae = self.begun / "vae.safetensors"
        if self.study.start == "image_vae":
            self._train(base, seed, ("image_vae",), ())
        else:
            with self._locks["vae"]:
                if not vae.is_file():
                    self._vae(vae)
            if self.study.start == "vae":
                return vae
            self._train(base, seed, ("image_denoiser",), (f"train.init_from={vae}",))
        study_export.call(base, self.study.start, file, vae)
        return file

    def _vae(self, vae: pathlib.Path) -> None:
        """The shipped T-KLVAE by itself; where the config is of another size, one trained with it."""
        self.begun.mkdir(parents=True, exist_ok=True)
        whole = "shipped"
        if self.config != f"{ROOT}/configs/toons.py:{self.study.preset}":
            self._train(self.begun / "vae", 0, ("image_vae", "vae"), ())
            whole = str(self.begun / "vae")
        study_export.call(whole, "vae", vae)

    def workdir(self, arm: Arm, seed: int) -> pathlib.Path:
        """Of an arm's training; studies share the runs of equal arms."""
        what = [sorted(arm.train), self.fields, self.study.stages, self.study.start, self.arguments.kept]
        what = json.dumps([*what, *self._told_by, *filter(None, [self.arguments.config])])
        return self.work / f"run-{hashlib.sha256(what.encode()).hexdigest()[:10]}-{seed}"

    def run(self, arm: Arm, seed: int) -> None:
        """One arm with one seed: trains it and tells the stories at every length that is not in the results."""
        missing = [n for n in self.lengths if f"{arm.name}/{seed}/{n}" not in self.rows()]
        if not missing:
            return
        owner = next(other for other in self.study.arms if other.name == (arm.like or arm.name))
        workdir = self.workdir(owner, seed)
        if self.study.stages:
            start, begin = self._start(seed), time.perf_counter()
            with self._locks[workdir]:
                self._train(workdir, seed, self.study.stages, (*owner.train, f"train.init_from={start}"))
            print(f"{arm.name}, seed {seed}: trained in {time.perf_counter() - begin:.0f} s, {workdir}", flush=True)
        for frames in missing:
            begin = time.perf_counter()
            with self._locks[workdir]:  # arms that share a run share its eval folder
                row = self._told(arm, workdir, seed, frames)
            shown = {name: round(row[name], 4) for name in self.study.shown if name in row}
            with self._locks["rows"]:
                files.write_json(self.results, self.rows() | {f"{arm.name}/{seed}/{frames}": row})
            print(f"{arm.name}, seed {seed}, {frames} frames: {time.perf_counter() - begin:.0f} s: {shown}", flush=True)

    def run_all(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Every arm of `names` with every seed, `jobs` at a time; ends at the first that fails."""

        failed = threading.Event()  # what waits would begin before it can be called off

        def job(work: Callable[..., Any], *arguments: Any) -> None:
            if failed.is_set():
                return
            self._mine.cores = self._cores.get()
            if self._mine.cores and self.arguments.jobs > 1:
                os.sched_setaffinity(0, self._mine.cores)  # of this thread, and of the processes that it starts
            try:
                work(*arguments)
            except BaseException:
                failed.set()
                raise
            finally:
                self._cores.put(self._mine.cores)

        arms = [arm for arm in self.study.arms if arm.name in names]
        with futures.ThreadPoolExecutor(self.arguments.jobs) as pool:
            ahead = seeds if self.arguments.jobs > 1 and self.study.stages else ()
            began = [pool.submit(job, self._start, seed) for seed in ahead]
            trained = [(arm, seed) for seed in seeds for arm in arms if not arm.like]
            sampled = [(arm, seed) for arm in arms if arm.like for seed in seeds]  # those of one run: not side by side
            began += [pool.submit(job, self.run, arm, seed) for arm, seed in (*trained, *sampled)]
            done, left = futures.wait(began, return_when=futures.FIRST_EXCEPTION)
            for future in left:
                future.cancel()
            for future in done:
                future.result()

    def _told(self, arm: Arm, workdir: pathlib.Path, seed: int, frames: int) -> dict[str, float]:
        """The row of one arm and length, from the run's rows.json where an equal arm of any study has been told."""
        file = workdir / "rows.json"
        rows = json.loads(file.read_text()) if file.is_file() else {}
        key = json.dumps([*self._asked(arm, frames), *self._networks, versions.ALL, self.arguments.jobs > 1])
        if key not in rows:
            row, protocol = self._tell(arm, workdir, seed, frames)
            rows[key] = {"row": row, "protocol": protocol}
            files.write_json(file, rows)
        self._keep_protocol(f"{frames}", rows[key]["protocol"])
        return rows[key]["row"]

    def _keep_protocol(self, what: str, protocol: dict[str, Any]) -> None:
        with self._locks["protocols"]:
            study_telling.keep_protocol(self.results.with_name("protocols.json"), what, protocol)

    def _tell(self, arm: Arm, workdir: pathlib.Path, seed: int, frames: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the row of one arm and length, how it was read): `--mode=eval` of its run."""
        flags = [*self._flags(workdir, frames, self.study.ways(arm)), f"--config.seed={seed}"]
        flags += [f"--config.{field}" for field in arm.sample]
        self._command("eval", workdir, *flags)
        picture = self._picture(arm, workdir, frames)
        picture.parent.mkdir(exist_ok=True)
        files.write_bytes(picture, (workdir / "eval" / "story0.png").read_bytes())
        record = json.loads((workdir / "eval" / "eval.json").read_text())
        row = study_telling.row(arm.way, record)
        if self.arguments.jobs > 1:
            row.pop("seconds", None)  # of a machine that did something else too
        return row, study_telling.protocol(record["metrics"])

    def _asked(self, arm: Arm, frames: int) -> list[Any]:
        """What is told of a run."""
        return [sorted(arm.sample), self.study.ways(arm), frames, self.arguments.stories]

    def _picture(self, arm: Arm, workdir: pathlib.Path, frames: int) -> pathlib.Path:
        """16 frames of the first story: its own above, the told ones below."""
        name = hashlib.sha256(json.dumps(self._asked(arm, frames)).encode()).hexdigest()[:16]
        return workdir / "pictures" / f"{name}.png"

    def pictures(self, seed: int) -> dict[str, pathlib.Path]:
        """Arm -> `_picture` of the longest videos, of those that are there."""
        out = {}
        for arm in self.study.arms:
            owner = next(other for other in self.study.arms if other.name == (arm.like or arm.name))
            file = self._picture(arm, self.workdir(owner, seed), self.lengths[-1])
            out |= {arm.name: file} if file.is_file() else {}
        return out

    def _flags(self, workdir: pathlib.Path, frames: int, ways: Sequence[str], others: int = 0) -> list[str]:
        """Of `--mode=eval` with the weights in `workdir`, or those that are told with."""
        flags = study_telling.flags(frames, self.arguments.stories, ways, self.work / "real", others)
        flags += ["--nomeasure"] if self.arguments.dry_run else list(self._networks)
        if not self.study.stages:
            flags += [f"--weights={self.weights}", *(f"--config.{f}" for f in self.fields)]
        elif "denoiser" not in self.study.stages:
            weights = workdir / "vae.safetensors"
            study_export.call(workdir, "vae", weights)
            flags.append(f"--weights={weights}")
        return flags

    def floors(self, arm: Arm, seed: int) -> None:
        """What the distances are of other real stories, a row a length; no network of `arm` takes part, its run is the
        place where it is measured."""
        owner = next(other for other in self.study.arms if other.name == (arm.like or arm.name))
        workdir = self.workdir(owner, seed)
        there = workdir.is_dir() and not self.arguments.dry_run
        for frames in self.lengths if there else ():
            key = f"{study_table.FLOOR}/0/{frames}"
            if key in self.rows():
                continue
            self._command("eval", workdir, *self._flags(workdir, frames, ("ground_truth",), self.arguments.stories))
            record = json.loads((workdir / "eval" / "eval.json").read_text())
            self._keep_protocol(f"{frames}, {study_table.FLOOR}", study_telling.protocol({"": record["others"]}))
            row = study_telling.floor(record)
            files.write_json(self.results, self.rows() | {key: row})
            print(f"{study_table.FLOOR}, {frames} frames: {row}", flush=True)

    def rows(self) -> dict[str, dict[str, float]]:
        """'arm/seed/frames' -> figures, of what is finished."""
        self.results.parent.mkdir(parents=True, exist_ok=True)
        return json.loads(self.results.read_text()) if self.results.is_file() else {}


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
        seeds = [int(n) for n in arguments.seeds.split(",")]
        runner.run_all(wanted, seeds)
        failed = None
        try:
            runner.floors(next(arm for arm in study.arms if arm.name in wanted), seeds[0])
        except SystemExit as error:  # a data set may have no other real stories: the arms have their table all the same
            failed = error
    rows = runner.rows()
    print(study_table.table(study, rows))
    if runner.comparable:
        print(study_table.apart(study, json.loads((study.folder / "results.json").read_text()), rows))
    if rows and not arguments.table:
        import study_plot

        study_plot.draw(study, rows).save(runner.results.with_name("plot.png"))
        told = runner.pictures(seeds[0])
        if told:
            study_plot.stories(told).save(runner.results.with_name("stories.png"))
    if not arguments.table and failed:
        raise failed
