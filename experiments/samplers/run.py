"""Quality against denoiser calls, by sampler, on held-out toons stories.

    python experiments/samplers/run.py [--stories 2] [--steps 4,8,16,32,64,100] [--methods ddim,dpmpp_2m,ddpm]

Two questions a story, as the tree is made of two kinds of level:

  keyframes  levels 0 and 1, made with n steps each: the 226 frames at stride 15 of the whole video, scored by the
             story reader (right scene, colour, shape; identity);
  between    level 2 alone from the true frames at stride 15, n steps: 226 frames at stride 1, their PSNR to the truth
             and how much neighbouring frames differ.

Guidance and temperatures are the weights' own; ddpm and ddim with eta = 1 are the same sampler, and ddim with eta = 0
is Euler's on the probability flow. Rows are kept as they are made (results.json beside this file), and are not made
again. Calls count guidance's two.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.evaluation import image_metrics
from nuwaxl_jax.evaluation import levels
from nuwaxl_jax.evaluation import codec
from nuwaxl_jax.evaluation import held_out
from nuwaxl_jax.evaluation import story_score
from nuwaxl_jax.hierarchy import segments

HERE = pathlib.Path(__file__).parent
STRIDE = 15


def keyframes(config, networks, bundle, source, story: int, key) -> dict:
    """Scores of the frames at stride 15 of a whole video."""
    captions = source.captions(story, np.arange(3376))
    shape = (3376, *networks.latent_shape)
    latents = levels.make_levels(config, networks, bundle, np.zeros(shape, np.float32), captions, key, 0, 1)
    video = codec.decode_video(networks, bundle, latents)
    score = story_score.story_score(video, captions[::STRIDE], segment_length=config.hierarchy.segment_length)
    return {name: score[name] for name in ("scene", "colour", "shape", "identity")}


def between(config, networks, bundle, source, story: int, key) -> dict:
    """Scores of 226 frames at stride 1 between true ones."""
    index = np.arange(226)
    frames, captions = source.frames(story, index), source.captions(story, index)
    truth = codec.encode_video(networks, bundle, frames)
    latents = levels.make_levels(config, networks, bundle, truth, captions, key, 2)
    video = codec.decode_video(networks, bundle, latents)
    score = story_score.story_score(video, captions, segment_length=config.hierarchy.segment_length)
    psnr = float(image_metrics.psnr(frames, video).mean())
    return {name: score[name] for name in ("shape", "step", "difference_inside", "border_ratio")} | {"psnr": psnr}


def table(rows: list[dict]) -> str:
    """Means over stories, in Markdown."""
    lines = []
    for part in ("keyframes", "between"):
        these = [row for row in rows if row["part"] == part]
        if not these:
            continue
        names = list(these[0]["score"])
        lines += [
            f"| {part}: method | steps | calls a segment | " + " | ".join(names) + " |",
            "|---" * (3 + len(names)) + "|",
        ]
        for method, steps in sorted({(r["method"], r["steps"]) for r in these}):
            group = [r for r in these if (r["method"], r["steps"]) == (method, steps)]
            means = [np.mean([r["score"][n] for r in group if r["score"][n] is not None]) for n in names]
            shown = " | ".join(f"{m:.4f}" if m < 2 else f"{m:.2f}" for m in means)
            lines.append(f"| {method} | {steps} | {group[0]['calls']} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Quality against calls, a line a sampler, a dot a story."""
    from matplotlib import figure

    shown = (("keyframes", "shape", "keyframes with the right shape"), ("between", "psnr", "PSNR between, dB"))
    picture = figure.Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (part, name, label) in zip(picture.subplots(1, 2), shown):
        for number, method in enumerate(sorted({row["method"] for row in rows})):
            points = [(r["calls"], r["score"][name]) for r in rows if (r["part"], r["method"]) == (part, method)]
            calls = sorted({call for call, _ in points})
            axes.plot(*zip(*points), ".", color=f"C{number}", alpha=0.4)
            means = [np.mean([value for call, value in points if call == at]) for at in calls]
            axes.plot(calls, means, color=f"C{number}", label=method)
        axes.set(xscale="log", xlabel="denoiser calls a segment", ylabel=label)
        axes.legend()
    picture.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=2)
    parser.add_argument("--steps", default="4,8,16,32,64,100")
    parser.add_argument("--methods", default="ddim,dpmpp_2m,ddpm")
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--cpu_devices", type=int, default=0, help="0 = one a core")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices or os.cpu_count())
    bundle, config, card = weights_lib.load(weights_lib.find(arguments.weights))
    networks = networks_lib.build(config)
    source = held_out.HeldOut(config, arguments.stories, 3376)
    record = {"weights": card["sha256"], "guidance": list(config.sampler.guidance), "rows": []}
    record["temperature"] = list(config.sampler.temperature)
    if (HERE / "results.json").exists():
        before = json.loads((HERE / "results.json").read_text())
        if {k: before[k] for k in record if k != "rows"} == {k: record[k] for k in record if k != "rows"}:
            record["rows"] = before["rows"]
    done = {(r["part"], r["method"], r["steps"], r["story"]) for r in record["rows"]}
    for story in range(arguments.stories):
        key = jax.random.fold_in(jax.random.key(config.seed), story)
        for steps in (int(n) for n in arguments.steps.split(",")):
            for method in arguments.methods.split(","):
                config.sampler.update(method=method, steps=(steps,) * config.hierarchy.depth)
                for part, level, score in (("keyframes", 1, keyframes), ("between", 2, between)):
                    if (part, method, steps, story) in done:
                        continue
                    begin = time.perf_counter()
                    found = score(config, networks, bundle, source, story, key)
                    row = dict(part=part, method=method, steps=steps, story=story, score=found)
                    row |= dict(calls=segments.denoiser_calls(config, level), seconds=time.perf_counter() - begin)
                    record["rows"].append(row)
                    files.write_json(HERE / "results.json", record)
                    print(json.dumps(row), flush=True)
    print(table(record["rows"]))
    plot(record["rows"], HERE / "plot.png")


if __name__ == "__main__":
    main()
