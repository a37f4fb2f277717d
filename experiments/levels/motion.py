"""Do characters go where their captions send them? Level 1 alone, from the true frames of the level above.

    python experiments/levels/motion.py [--weights shipped ...] [--stories 8] [--segments 8] [--guidance 1.5]
        [--temperature 0.7] [--cpu_devices 0]

Frames at stride 15 are made between true frames at stride 225, on stories of the validation split, and read back. Every
stretch of a character's presence within a shot and a segment that touches a given frame is taken: where it is along x,
less where the given frames alone would put it (the line between two of them, or the place at the one), in the truth
and in what was made. Their correlation is 1 where captions are followed, and 0 where a character moves, however
lively, by chance; `walks` is the share of walks that go the way of the caption, `height` the correlation of heights.
Writes motion.json beside this file, and a picture: each segment's truth above what was made.
"""

import argparse
import os
import pathlib

import jax
import numpy as np
from PIL import Image

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


def tracks(truths: list[world.FrameTruth], readings: list[story_reader.FrameReading]) -> list[dict]:
    """Stretches of one segment: frame numbers `at`, true and made `x` and `y` [2, n], and `walk`, -1, 1 or 0 [n]."""
    found: dict[tuple, list] = {}
    for j, (truth, reading) in enumerate(zip(truths, readings)):
        for who in truth.characters:
            seen = [c for c in reading.characters if (c.shape, c.colour) == (who.shape, who.colour)]
            if who.action in world.CROSSING or not seen:
                continue
            made = max(seen, key=lambda c: c.iou)
            walk = {"walks left": -1, "walks right": 1}.get(who.action, 0)
            found.setdefault((truth.shot, who.shape, who.colour), []).append((j, who.x, made.x, who.y, made.y, walk))
    out = []
    for rows in found.values():
        frame, *rest = np.array(rows).T
        for part in np.split(np.arange(len(frame)), np.flatnonzero(np.diff(frame) != 1) + 1):
            x, y, walk = np.array(rest[0:2])[:, part], np.array(rest[2:4])[:, part], rest[4][part]
            out.append(dict(at=frame[part].astype(int), x=x, y=y, walk=walk))
    return out


def judge(track: dict, last: int) -> tuple[list, list, list]:
    """Pairs (true, made) of ways from where given frames put a character, of heights, and ways of walks, signed."""
    at, (x, made), walk = track["at"], track["x"], track["walk"]
    ends = [i for i in (0, len(at) - 1) if at[i] in (0, last)]
    inner = ~np.isin(at, (0, last))
    if not ends or inner.sum() < 2:
        return [], [], []
    line = np.interp(at, at[ends], x[ends])
    ways = np.stack([x - line, made - line], axis=1)[inner].tolist()
    walks = []
    for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(walk) != 0) + 1):
        first, final = run[0], run[-1]
        if walk[first] and walk[first] * (x[final] - x[first]) >= LEAST:
            walks.append(float(walk[first] * (made[final] - made[first])))
    return ways, track["y"].T[inner].tolist(), walks


def picture(rows: list[np.ndarray], path: pathlib.Path) -> None:
    """Rows of frames [16, H, W, 3], one above the other."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)


def measure(name: str, arguments: argparse.Namespace) -> dict:
    """One file's row."""
    bundle, config, _ = weights_lib.load(weights_lib.find(name))
    networks = networks_lib.build(config)
    for field in ("guidance", "temperature"):
        values = list(config.sampler[field])
        values[LEVEL] = getattr(arguments, field) if getattr(arguments, field) is not None else values[LEVEL]
        config.sampler[field] = tuple(values)
    stride = (config.hierarchy.segment_length - 1) ** (config.hierarchy.depth - 1 - LEVEL)
    last = config.hierarchy.segment_length - 1
    index = np.arange(stride * last * arguments.segments + 1)
    at = index[::stride]
    source = toons_source.ToonsSource("valid", frame_size=config.data.frame_size, num_episodes=arguments.stories)
    ways, heights, walks, rows = [], [], [], []
    for i in range(arguments.stories):
        frames, truths = source.frames(i, at), source.truth(i, at)
        latents = np.zeros((len(index), *networks.latent_shape), np.float32)
        latents[at] = codec.encode_video(networks, bundle, frames)
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        latents = levels.make_levels(
            config, networks, bundle, latents, source.captions(i, index), key, first=LEVEL, last=LEVEL
        )
        made = codec.decode_video(networks, bundle, latents)
        readings = story_reader.read_frames(made)
        for start in range(0, last * arguments.segments, last):
            part = slice(start, start + last + 1)
            for track in tracks(truths[part], readings[part]):
                for kept, more in zip((ways, heights, walks), judge(track, last)):
                    kept.extend(more)
            if i < 2 and start < 4 * last:
                rows += [frames[part], made[part]]
        print(f"{name}: story {i + 1} of {arguments.stories}", flush=True)
    picture(rows, HERE / "motion.png")
    ways, heights = np.array(ways), np.array(heights)
    return dict(
        guidance=config.sampler.guidance[LEVEL],
        temperature=config.sampler.temperature[LEVEL],
        frames=len(ways),
        correlation=round(float(np.corrcoef(ways.T)[0, 1]), 3),
        units_true=round(float(np.sqrt(np.mean(ways[:, 0] ** 2))), 2),
        units_made=round(float(np.sqrt(np.mean(ways[:, 1] ** 2))), 2),
        height=round(float(np.corrcoef(heights.T)[0, 1]), 3),
        walks_number=len(walks),
        walks=round(float(np.mean(np.array(walks) >= LEAST)), 3),
    )


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
    file = HERE / "motion.json"
    rows = {}
    for name in arguments.weights:
        rows[pathlib.Path(name).stem] = row = measure(name, arguments)
        print(f"{name}: {row}", flush=True)
    files.write_json(file, rows)


if __name__ == "__main__":
    main()
