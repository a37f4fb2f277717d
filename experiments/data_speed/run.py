"""What reading costs: sequential decoding, random access, training batches from mp4 and from a prepared set, memory.

    python experiments/data_speed/run.py [--frames 3400] [--hour_frames 90000] [--repeats 3] [--seconds 2]

Makes its own test video: moving figures under moving noise, 512x384, so that nothing compresses trivially. Everything
Makes its own test video: figures under moving noise, 512x384, so that nothing compresses trivially. Everything
is taken. Batches are those of the denoiser stage: clips of 16 frames at all three strides (225, 15, 1), 128 pixels a
side. Writes results.json beside this file and prints the tables; the videos go to a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import video_io
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.prepared import run as prepared_run
from nuwaxl_jax.data.prepared import source as prepared_source
from nuwaxl_jax.data.toons import source as toons_source

HERE = pathlib.Path(__file__).parent
SIZE, CLIP, STRIDES, FPS = 128, 16, (225, 15, 1), 25
PLANS = {"1 thread": dict(num_threads=1), "2 threads": dict(num_threads=2), "2 workers": dict(num_workers=2)}
BATCH, GOPS = 2, (12, 250)


def make_video(num: int, height: int, width: int, seed: int = 0):
    """Chunks of frames, uint8 [n, height, width, 3]: toons, a texture that drifts and grain that is new every frame."""
    rng = np.random.default_rng(seed)
    toons = toons_source.ToonsSource("train", frame_size=64, num_episodes=1, episode_frames=4096)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2), np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((width * 2, height * 2), Image.Resampling.BICUBIC), np.int16)
    grain = rng.normal(0, 3, (height * 2, width * 2)).astype(np.int16)
    for start in range(0, num, 64):
        count = min(64, num - start)
        out = np.empty((count, height, width, 3), np.uint8)
        for row, scene in enumerate(toons.frames(0, np.arange(start, start + count) % 4096)):
            base = np.asarray(Image.fromarray(scene).resize((width, height), Image.Resampling.BILINEAR), np.int16)
            t = start + row
            top, left = (t * 2) % height, (t * 3) % width
            drift = texture[top : top + height, left : left + width] // 8
            down, right = rng.integers(height), rng.integers(width)
            frame = base + (drift + grain[down : down + height, right : right + width])[..., None] - 16
            out[row] = frame.clip(0, 255)
        yield out


def timed(work, repeats: int = 1) -> float:
    """Median seconds of `work()`."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def decode(path: str, most: int, threads: int, scaled: bool) -> int:
    """Plain PyAV from the start; frames decoded."""
    count = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        for frame in container.decode(stream):
            if scaled:
                frame.reformat(SIZE * 4 // 3, SIZE, "rgb24", interpolation="AREA").to_ndarray()
            count += 1
            if count == most:
                break
    return count


def from_the_start(path: str, number: int) -> None:
    """Frame `number` as the simplest reader finds it."""
    with av.open(path) as container:
        for position, frame in enumerate(container.decode(video=0)):
            if position == number:
                frame.to_ndarray(format="rgb24")
                return


def by_seek(container, number: int) -> None:
    """Frame `number` of a constant rate by a seek for it alone."""
    stream = container.streams.video[0]
    target = int(number / FPS / stream.time_base)
    container.seek(target, stream=stream)
    for frame in container.decode(stream):
        if frame.pts >= target:
            frame.to_ndarray(format="rgb24")
            return


def sequential_and_random(paths: dict[str, str], frames: int, repeats: int) -> dict:
    """Frames a second by PyAV alone, of each encoding."""
    most, rng = min(frames, 500), np.random.default_rng(0)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            its = found[name]
            for threads, scaled in ((1, False), (1, True), (0, True)):
                what = f"sequential, {threads or 'all'} threads{', to 128 pixels' if scaled else ''}"
                its.setdefault(what, []).append(most / timed(lambda: decode(path, most, threads, scaled)))
            halfway = 1 / timed(lambda: from_the_start(path, frames // 2))  # what one costs on average
            its.setdefault("random, from the start", []).append(halfway)
            numbers = rng.integers(0, frames, 12).tolist()
            with av.open(path) as container:
                rate = 12 / timed(lambda: [by_seek(container, n) for n in numbers])
            its.setdefault("random, a seek each", []).append(rate)
    return {name: {what: round(statistics.median(v), 1) for what, v in its.items()} for name, its in found.items()}


def clips_by_stride(opened: dict, frames: int, repeats: int) -> dict:
    """Milliseconds to read a clip of 16 frames, by stride, on one thread."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in opened}
    rng = np.random.default_rng(1)
    for _ in range(repeats):
        for stride in STRIDES:
            starts = rng.integers(0, frames - (CLIP - 1) * stride, 3).tolist()
            for name, source in opened.items():
                for start in starts[: 1 if stride == STRIDES[0] and "250" in name else 3]:
                    index = start + stride * np.arange(CLIP)
                    took = timed(lambda: source.frames(0, index))
                    found[name].setdefault(f"stride {stride}", []).append(1000 * took)
    return {name: {what: round(statistics.median(v), 1) for what, v in its.items()} for name, its in found.items()}


def batches(opened: dict, repeats: int, seconds: float) -> dict:
    """Samples and MB of frames a second that `make_iterator` yields."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in opened}
    with contextlib.ExitStack() as stack:
        iterators = {}
        for plan, options in PLANS.items():
            for name, source in opened.items():
                config = config_lib.default()
                config.data.update(frame_size=SIZE, prefetch=1, **options)
                config.data.level_weights = (1.0, 1.0, 1.0)
                config.hierarchy.update(segment_length=CLIP, depth=3)
                config.train.denoiser.update(batch_size=BATCH, clip_length=CLIP)
                iterator = pipeline.make_iterator(config, "train", "denoiser", seed=0, source=source)
                stack.callback(iterator.close)
                iterators[plan, name] = iterator
                next(iterator)
        for _ in range(repeats):
            for (plan, name), iterator in iterators.items():
                for _ in range(2 if plan != "2 workers" else 3):  # what was read ahead
                    next(iterator)
                start, count = time.perf_counter(), 0
                while count < 5 or time.perf_counter() - start < seconds:
                    next(iterator)
                    count += 1
                found[name].setdefault(plan, []).append(BATCH * count / (time.perf_counter() - start))
    out = {}
    megabytes = CLIP * SIZE * SIZE * 3 / 1e6
    for name, its in found.items():
        medians = {plan: statistics.median(rates) for plan, rates in its.items()}
        out[name] = {
            plan: dict(samples_per_second=round(rate, 2), megabytes_per_second=round(rate * megabytes, 1))
            for plan, rate in medians.items()
        }
    return out


def child(task: str, path: str, out: str) -> None:
    """In a process of its own: prepares or reads, and prints the most memory it held."""
    config = config_lib.default()
    config.data.update(source="folder", path=path, frame_size=32)
    if task == "prepare":
        prepared_run.prepare(config, out, threads=2)
    else:
        kinds = {"read mp4": (videos.VideoSource, path), "read prepared": (prepared_source.PreparedSource, out)}
        kind, place = kinds[task]
        source, rng = kind(place, split="train", frame_size=32), np.random.default_rng(0)
        for _ in range(300):
            index = rng.integers(0, source.num_frames(0) - CLIP) + np.arange(CLIP)
            source.frames(0, index)
            source.captions(0, index)
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    print(json.dumps(dict(megabytes=round(int(line.split()[1]) / 1024, 1))))


def memory(folder: pathlib.Path, hour_frames: int) -> dict:
    """Most MB of resident memory of preparing and reading a minute and an hour of 64x48 video."""
    out = {}
    for name, frames in (("1 minute", 60 * FPS), (f"{hour_frames / FPS / 60:g} minutes", hour_frames)):
        place = folder / name.replace(" ", "_")
        place.mkdir()
        with video_io.VideoWriter(place / "long.mp4", FPS, gop=12, crf=30) as writer:
            noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
            for start in range(0, frames, 64):
                moved = [noise[t % 48 :, (2 * t) % 64 :][:48, :64] for t in range(start, min(start + 64, frames))]
                writer.write(np.stack(moved))
        lines = [dict(video="long.mp4", start=s, end=s + 3.0, text=f"at {s} s") for s in range(0, frames // FPS, 4)]
        (place / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        out[name] = dict(frames=frames)
        for task in ("prepare", "read mp4", "read prepared"):
            arguments = [sys.executable, __file__, "--child", task, str(place), f"{place}_out"]
            start = time.perf_counter()
            said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
            out[name][task] = json.loads(said.splitlines()[-1]) | dict(seconds=round(time.perf_counter() - start, 1))
    return out


def _row(*cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(title: str, rows: dict[str, dict]) -> list[str]:
    names = list(next(iter(rows.values())))
    return [
        _row(title, *names),
        "|---" * (len(names) + 1) + "|",
        *(_row(r, *its.values()) for r, its in rows.items()),
        "",
    ]


def show(results: dict) -> None:
    """Prints the tables."""
    lines = _table("PyAV, frames/s", results["decoding"]) + _table("a clip, ms", results["clips"])
    flat = {}
    for name, its in results["batches"].items():
        flat[name] = {plan: f"{v['samples_per_second']} ({v['megabytes_per_second']} MB/s)" for plan, v in its.items()}
    lines += _table("batches, samples/s", flat) + _table("preparing", results["preparing"])
    held = {}
    for name, its in results["memory"].items():
        held[name] = {task: f"{v['megabytes']} MB, {v['seconds']} s" for task, v in its.items() if task != "frames"}
    print("\n".join(lines + _table("most memory", held)))


def main(frames: int, hour_frames: int, repeats: int, seconds: float, out: pathlib.Path) -> None:
    began = time.perf_counter()
    results: dict = dict(
        machine=dict(
            cpu=platform.processor() or platform.machine(), cores=os.cpu_count(), python=platform.python_version()
        ),
        frames=frames,
        frame_size=SIZE,
        repeats=repeats,
        kilobytes_per_frame={},
    )
    with tempfile.TemporaryDirectory(prefix="data_speed_") as temporary:
        folder = pathlib.Path(temporary)
        paths, opened, results["preparing"] = {}, {}, {}
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            writers = []
            for gop in GOPS:
                (folder / f"gop{gop}").mkdir()
                (folder / f"gop{gop}" / "video.txt").write_text("two friends in the rain")
                path = paths[f"mp4, gop {gop}"] = str(folder / f"gop{gop}" / "video.mp4")
                writers.append(stack.enter_context(video_io.VideoWriter(path, FPS, gop=gop, crf=23)))
            for chunk in make_video(frames, 384, 512):
                for writer in writers:
                    writer.write(chunk)
        took = time.perf_counter() - start
        for name, path in paths.items():
            results["kilobytes_per_frame"][name] = round(os.path.getsize(path) / frames / 1e3, 1)
            opened[name] = videos.VideoSource(pathlib.Path(path).parent, split="train", frame_size=SIZE)
        print(f"{frames} frames made in {took:.0f} s: {results['kilobytes_per_frame']} KB a frame", flush=True)
        config = config_lib.default()
        config.data.update(source="folder", path=str(folder / "gop12"), frame_size=SIZE)
        for image in ("png", "jpeg"):
            start = time.perf_counter()
            report = prepared_run.prepare(config, folder / image, image=image)
            took = time.perf_counter() - start
            results["preparing"][image] = {
                "frames/s": round(frames / took, 1),
                "KB a frame": round(report["bytes"] / frames / 1e3, 1),
                "MB": round(report["bytes"] / 1e6, 1),
            }
            opened[f"prepared, {image}"] = prepared_source.PreparedSource(
                folder / image, split="train", frame_size=SIZE
            )
        results["decoding"] = sequential_and_random(paths, frames, repeats)
        results["clips"] = clips_by_stride(opened, frames, repeats)
        results["batches"] = batches(opened, repeats, seconds)
        results["memory"] = memory(folder, hour_frames)
    results["seconds"] = round(time.perf_counter() - began)
    files.write_json(out, results)
    show(results)
    print(f"{results['seconds']} s; written to {out}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--frames", type=int, default=3400)
        parser.add_argument("--hour_frames", type=int, default=90_000)
        parser.add_argument("--repeats", type=int, default=3)
        parser.add_argument("--seconds", type=float, default=2.0)
        parser.add_argument("--out", type=pathlib.Path, default=HERE / "results.json")
        arguments = parser.parse_args()
        if arguments.frames <= (CLIP - 1) * STRIDES[0]:
            parser.error(f"--frames must be over {(CLIP - 1) * STRIDES[0]}, a clip of the coarsest stride")
        main(**vars(arguments))
