"""Do characters go where their captions send them? Level 1 alone, from the true frames of the level above.

    python experiments/levels/motion.py [--weights shipped ...] [--stories 8] [--segments 8] [--guidance 1.5]
        [--temperature 0.7] [--cpu_devices 0]

Frames at stride 15 are made between true frames at stride 225, on stories of the validation split, and read back; once
with their captions, and once more from the same noise with left and right exchanged in every caption. Every stretch of
a character's presence within a shot and a segment that touches a given frame is taken.

  follows   half the difference of both videos' places along x, by least squares, as a share of the truth's way from
            where the given frames alone would put the character (the line between two of them, or the place at the
            one): what the words left and right do. About 1 where they are heeded, 0 where they are not, and both
            videos share their noise, so that liveliness by chance is no part of it. With the 95 % interval of resampled
            stretches.
  walks     the share of captions' walks that go their way, by a unit or more; exchanged: that go it nevertheless.
  height    the correlation of heights above the ground, true and made: jumps.

Writes motion.json beside this file (what is there of other weights, measured alike, stays), and a picture: each
segment's truth, what was made, what the exchange made.
"""

import argparse
import os
import pathlib
import sys

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.data.toons import source as toons_source
from nuwaxl_jax.data.toons import world
from nuwaxl_jax.evaluation import codec
from nuwaxl_jax.evaluation import levels
from nuwaxl_jax.evaluation import story_reader

HERE = pathlib.Path(__file__).parent
LEVEL = 1
LEAST = 1.0  # units that a walk goes between the frames that are compared, to be counted
_SIDES = {"left": "right", "right": "left"}
_WALKS = {"walks left": -1, "walks right": 1}


def exchanged(caption: str) -> str:
    """The caption with left and right exchanged."""
    return " ".join(_SIDES.get(word, word) for word in caption.split(" "))


def tracks(truths: list[world.FrameTruth], readings: list[list[story_reader.FrameReading]]) -> list[dict]:
    """Stretches of one segment in which a character is seen in every video.

    Each has frame numbers `at` [n], the walk's direction `walk` [n] (0 is none), and places `x` and `y` [1 + V, n] in
    the truth and in the V videos.
    """
    found: dict[tuple, list] = {}
    for j, truth in enumerate(truths):
        for who in truth.characters:
            seen = [[c for c in of[j].characters if (c.shape, c.colour) == (who.shape, who.colour)] for of in readings]
            if who.action in world.CROSSING or not all(seen):
                continue
            made = [max(of, key=lambda c: c.iou) for of in seen]
            row = (j, _WALKS.get(who.action, 0), *(c.x for c in (who, *made)), *(c.y for c in (who, *made)))
            found.setdefault((truth.shot, who.shape, who.colour), []).append(row)
    out = []
    for rows in found.values():
        table = np.array(rows)  # [n, 2 + 2 (1 + V)]
        for part in np.split(table, np.flatnonzero(np.diff(table[:, 0]) != 1) + 1):
            x, y = np.split(part[:, 2:].T, 2)
            out.append(dict(at=part[:, 0].astype(int), walk=part[:, 1], x=x, y=y))
    return out


def judge(track: dict, last: int) -> dict | None:
    """`ways`: the truth's from where the given frames alone put the character, and half the difference of the videos'
    places [2, n]; `heights` [2, n]; `walks`: the videos' ways of each walk, signed by the caption [m, 2]."""
    at, x, walk = track["at"], track["x"], track["walk"]
    ends = [i for i in (0, len(at) - 1) if at[i] in (0, last)]
    inner = ~np.isin(at, (0, last))
    if not ends or inner.sum() < 2:
        return None
    line = np.interp(at, at[ends], x[0, ends])
    walks = []
    for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(walk) != 0) + 1):
        way = walk[run[0]] * (x[:, run[-1]] - x[:, run[0]])
        if way[0] >= LEAST:
            walks.append(way[1:].tolist())
    ways = np.stack([x[0] - line, (x[1] - x[2]) / 2])
    return dict(ways=ways[:, inner], heights=track["y"][:2, inner], walks=walks)


def follows(judged: list[dict]) -> float:
    """The least-squares share over some stretches."""
    true, response = np.concatenate([of["ways"] for of in judged], axis=1)
    return float(true @ response / (true @ true))


def summary(judged: list[dict]) -> dict:
    """The row of all stretches."""
    rng = np.random.default_rng(0)
    again = [follows([judged[k] for k in rng.integers(len(judged), size=len(judged))]) for _ in range(2000)]
    true, made = np.concatenate([of["heights"] for of in judged], axis=1)
    walks = np.array(sum((of["walks"] for of in judged), [])) >= LEAST  # [m, 2]
    return dict(
        stretches=len(judged),
        follows=round(follows(judged), 3),
        interval=np.percentile(again, (2.5, 97.5)).round(3).tolist(),
        number_of_walks=len(walks),
        walks=round(float(walks[:, 0].mean()), 3),
        walks_exchanged=round(float(walks[:, 1].mean()), 3),
        height=round(float(np.corrcoef(true, made)[0, 1]), 3),
    )


def measure(name: str, arguments: argparse.Namespace) -> dict:
    """One file's row."""
    bundle, config, _ = weights_lib.load(weights_lib.find(name))
    networks = networks_lib.build(config)
    for field in ("guidance", "temperature"):
        values = list(config.sampler[field])
        values[LEVEL] = getattr(arguments, field) if getattr(arguments, field) is not None else values[LEVEL]
        config.sampler[field] = tuple(values)
    last = config.hierarchy.segment_length - 1
    stride = last ** (config.hierarchy.depth - 1 - LEVEL)
    index = np.arange(stride * last * arguments.segments + 1)
    source = toons_source.ToonsSource("valid", frame_size=config.data.frame_size, num_episodes=arguments.stories)
    judged, rows = [], []
    for i in range(arguments.stories):
        frames, truths = source.frames(i, index[::stride]), source.truth(i, index[::stride])
        given = np.zeros((len(index), *networks.latent_shape), np.float32)
        given[::stride] = codec.encode_video(networks, bundle, frames)
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        captions, made = source.captions(i, index), []
        for told in (captions, [exchanged(caption) for caption in captions]):
            latents = levels.make_levels(config, networks, bundle, given, told, key, first=LEVEL, last=LEVEL)
            made.append(codec.decode_video(networks, bundle, latents))
        readings = [story_reader.read_frames(video) for video in made]
        for start in range(0, last * arguments.segments, last):
            part = slice(start, start + last + 1)
            judged += [judge(track, last) for track in tracks(truths[part], [of[part] for of in readings])]
            if i < 2 and start < 3 * last:
                rows += [frames[part], made[0][part], made[1][part]]
        print(f"{name}: story {i + 1} of {arguments.stories}", flush=True)
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    Image.fromarray(picture).save(HERE / f"motion_{pathlib.Path(name).stem}.png")
    sampler = dict(guidance=config.sampler.guidance[LEVEL], temperature=config.sampler.temperature[LEVEL])
    return sampler | summary([of for of in judged if of])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["shipped"])
    parser.add_argument("--stories", type=int, default=8)
    parser.add_argument("--segments", type=int, default=8, help="of 16 frames, a story")
    parser.add_argument("--guidance", type=float, help="of level 1; by default the weights' own")
    parser.add_argument("--temperature", type=float, help="of level 1; by default the weights' own")
    parser.add_argument("--cpu_devices", type=int, default=0, help="0 = one a core")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices or os.cpu_count())
    record = dict(stories=arguments.stories, segments=arguments.segments, split="valid", weights={})
    for name in arguments.weights:
        row = measure(name, arguments)
        print(f"{name}: {row}", flush=True)
        record["weights"][pathlib.Path(name).stem] = row
    files.write_json(HERE / "motion.json", files.joined(HERE / "motion.json", record, "weights"))


if __name__ == "__main__":
    main()
