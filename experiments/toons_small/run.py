"""Makes the shipped model again: trains it, exports it, scores it and draws its pictures.

    python experiments/toons_small/run.py [--work=runs/toons_small] [--kept=16000] [--set=FIELD=VALUE ...] [--publish]
    python experiments/toons_small/run.py --start=shipped --presets=motion --set=train.denoiser.num_steps=2000
    python experiments/toons_small/run.py --start=42420d7 --presets=motion --kept=8000 --stories=10 --publish

The last line makes the weights that ship again, out of those before them (README.md beside this file); `--start` is
`shipped`, a .safetensors file, or a commit of this repository, whose shipped weights are then taken.

`--presets` of configs/toons.py, one after another: the first trains all stages from nothing (with `--start` the
denoiser, from those weights), each further one goes on with the denoiser from the weights before it. Every step is a
command of the package in its own process, so what is interrupted goes on where it stopped, and what is finished is not
done again. `--kept`: clips whose latents are encoded once a preset and gone through again and again (0: trained from
frames). `--publish` puts the weights into the package, and record and pictures beside this file. What it did is in
<work>/made.json.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ASSET = ROOT / "nuwaxl_jax" / "assets" / "toons_small.safetensors"
STORY = ROOT / "stories" / "two_friends.txt"
VAE_STAGES = ("image_vae", "vae")
DENOISER_STAGES = ("image_denoiser", "denoiser")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default=str(ROOT / "runs" / "toons_small"))
    parser.add_argument("--presets", default="small,motion", help="of configs/toons.py, one after another")
    parser.add_argument("--start", default="", help="weights to go on from: shipped, a .safetensors file, or a commit")
    parser.add_argument("--kept", type=int, default=16000)
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE of every preset")
    parser.add_argument("--stories", type=int, default=20)
    parser.add_argument("--frames", type=int, default=0, help="of each video; 0 = the full tree")
    parser.add_argument("--publish", action="store_true")
    return parser.parse_args()


class Commands:
    """The package's command, with its times."""

    def __init__(self, work: pathlib.Path):
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, *flags: str) -> None:
        """Runs it unless `name` is done; ends with its status where that is not 0."""
        done = self.done()
        line = [sys.executable, "-m", "nuwaxl_jax.main", *flags]
        if name in done:
            if _without_cores(done[name]["command"]) != _without_cores(line[1:]):
                print(f"--work: {name} in {self.work} was made otherwise; choose another folder", file=sys.stderr)
                raise SystemExit(2)
            return
        print(f"{name}: {' '.join(line[1:])}", flush=True)
        begin = time.perf_counter()
        status = subprocess.run(line, cwd=ROOT, check=False).returncode
        if status:
            raise SystemExit(status)
        seconds = round(time.perf_counter() - begin)
        files.write_json(self.work / "made.json", done | {name: dict(command=line[1:], last_run_seconds=seconds)})

    def start_from(self, weights: pathlib.Path, made: pathlib.Path) -> None:
        """Keeps which weights these commands go on from; ends where others began, unless those were `made` here."""
        if not weights.is_file():
            print(f"--start: {weights} does not exist; `shipped`, a .safetensors file or a commit", file=sys.stderr)
            raise SystemExit(2)
        start = dict(file=weights.name, sha256=_digest(weights))
        done = self.done()
        before = done.get("start", start)
        if before["sha256"] != start["sha256"] and not (made.is_file() and _digest(made) == start["sha256"]):
            print(f"--start: {self.work} went on from other weights; choose another folder by --work", file=sys.stderr)
            raise SystemExit(2)
        files.write_json(self.work / "made.json", done | {"start": before})

    def done(self) -> dict:
        """What is finished, with its command."""
        file = self.work / "made.json"
        return json.loads(file.read_text()) if file.is_file() else {}


def _digest(file: pathlib.Path) -> str:
    """SHA-256 of its bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _without_cores(command: list[str]) -> list[str]:
    """How many cores made something is no part of what was made."""
    return [part for part in command if not part.startswith("--cpu_devices=")]


def train(commands: Commands, arguments: argparse.Namespace, weights: pathlib.Path) -> None:
    """Every preset, in <work>/<preset>; the last one's weights are in `weights`."""
    start = _weights(arguments.start, commands.work) if arguments.start else None
    presets = arguments.presets.split(",")
    known = _toons()._PRESETS
    if len(set(presets)) < len(presets) or not set(presets) <= set(known):  # said before the first one's hours
        print(f"--presets={arguments.presets}: each once, of {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    for preset in presets:
        out = weights if preset == presets[-1] else commands.work / f"{preset}.safetensors"
        _part(commands, arguments, preset, start, out)
        start = out


def _toons() -> types.ModuleType:
    """configs/toons.py, which lies in no package."""
    spec = importlib.util.spec_from_file_location("toons", ROOT / "configs" / "toons.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _part(
    commands: Commands,
    arguments: argparse.Namespace,
    preset: str,
    start: pathlib.Path | None,
    out: pathlib.Path,
) -> None:
    """One preset, from `start` or from nothing, exported to `out`."""
    run = f"--workdir={commands.work / preset}"
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    common = [f"--config={ROOT}/configs/toons.py:{preset}", *(f"--config.{field}" for field in arguments.set)]
    common += [run, f"--cpu_devices={mine}"]
    if start is None:
        commands("vae", "--mode=train", *common, f"--config.train.stages={VAE_STAGES!r}")
    stages = DENOISER_STAGES if start is None else DENOISER_STAGES[1:]
    common += [f"--config.train.stages={stages!r}", *([f"--config.train.init_from={start}"] if start else [])]
    if arguments.kept:
        common.append(f"--config.data.cache={commands.work / f'{preset}_latents'}")
        commands(f"{preset}_latents", "--mode=data", "--cache", f"--items={arguments.kept}", *common)
    commands(f"{preset}_denoiser", "--mode=train", *common)
    commands(f"{preset}_weights", "--mode=export", run, f"--weights={out}")


def _weights(start: str, work: pathlib.Path) -> pathlib.Path:
    """The file to start from; a commit's shipped weights are written into `work`, and stay there."""
    file = pathlib.Path(start)
    if start == "shipped":
        return ASSET
    if file.exists() or not re.fullmatch("[0-9a-f]{7,40}", start):
        return file.resolve()
    taken = work / f"{ASSET.stem}-{start}{ASSET.suffix}"
    if not taken.is_file():
        place = f"{start}:{ASSET.relative_to(ROOT).as_posix()}"
        shown = subprocess.run(["git", "-C", str(ROOT), "show", place], capture_output=True, check=False)
        if shown.returncode:
            said = (shown.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[0]
            print(f"--start: git show {place} says: {said}; it takes a clone with its history", file=sys.stderr)
            raise SystemExit(2)
        files.write_bytes(taken, shown.stdout)
    return taken


def show(commands: Commands, arguments: argparse.Namespace, weights: pathlib.Path) -> None:
    """Scores, and the video of README."""
    told = [f"--weights={weights}", f"--workdir={commands.work / 'told'}", f"--frames={arguments.frames}"]
    commands("scores", "--mode=eval", f"--stories={arguments.stories}", *told)
    commands("video", "--mode=sample", f"--story={STORY}", *told)


def publish(work: pathlib.Path, weights: pathlib.Path, start: pathlib.Path | None) -> None:
    """Weights into the package, records and pictures beside this file; the commands without places of this machine."""
    import pictures

    for name in ("eval.json", "curves.png", "story0.png"):
        shutil.copy(work / "told" / "eval" / name, HERE / name)
    made = (work / "made.json").read_text()
    for place, name in ((str(work), "WORK"), (f"{ROOT}/", ""), *([(f"{start.parent}/", "")] if start else [])):
        made = made.replace(place, name)
    files.write_json(HERE / "made.json", json.loads(made))
    pictures.draw(work / "told" / "two_friends.mp4")
    files.write_bytes(ASSET, weights.read_bytes())
    print(f"{ASSET}: {ASSET.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    arguments = parse()
    work = pathlib.Path(arguments.work).resolve()
    commands = Commands(work)
    weights = work / ASSET.name
    if arguments.start:
        commands.start_from(_weights(arguments.start, work), weights)
    train(commands, arguments, weights)
    show(commands, arguments, weights)
    if arguments.publish:
        publish(work, weights, _weights(arguments.start, work) if arguments.start else None)


if __name__ == "__main__":
    main()
