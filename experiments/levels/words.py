"""How much the denoiser heeds the words of motion, level by level and by noise level.

    python experiments/levels/words.py [--weights=shipped ...] [--clips=64] [--level=1] [--given=both] [--cpu_devices=0]

The error on held-out clips (validation split, given frames given, as in `--mode=eval`'s `denoising`, or with
`--given=first` the first alone, where nothing but the captions says which way a walk goes) with their captions, and
with two words exchanged in all of them: left and right, "jumps" and "stands". A network that does what its captions say
errs more under the wrong ones; by how much, in percent of its error, is what it knows of the word at that noise level.
Sampling starts at the noisiest. And how far apart the text encoder's states of a caption with one and with the other
word lie, in percent of their norm: what is 0 there no network behind it can tell apart. Writes words.json, or
words_first.json, beside this file; what is there of other weights, measured alike, stays.
"""

import argparse
import os
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import files
from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import weights as weights_lib
from nuwaxl_jax.data import pipeline
from nuwaxl_jax.evaluation import denoising

HERE = pathlib.Path(__file__).parent
PAIRS = (("left", "right"), ("jumps", "stands"))
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)  # of the diffusion's last timestep
BATCH = 8


def exchanged(networks: networks_lib.Networks, tokens: np.ndarray, first: str, second: str) -> np.ndarray:
    """Token ids int32 [..., N] with one word's in place of the other's, both ways."""
    empty = set(np.ravel(networks.tokenizer.encode("")).tolist())
    (a,), (b,) = (
        [int(i) for i in np.ravel(networks.tokenizer.encode(word)) if int(i) not in empty] for word in (first, second)
    )
    return np.where(tokens == a, b, np.where(tokens == b, a, tokens))


def apart(networks: networks_lib.Networks, params: dict, tokens: np.ndarray, other: np.ndarray) -> float:
    """Distance of two sets of captions' states where they differ, int32 [..., N], in percent of the first's norm."""
    differ = (tokens != other).any(-1)
    one, two = (np.asarray(networks.text_states(params, some[differ]), np.float64) for some in (tokens, other))
    return float(100 * np.linalg.norm(one - two) / np.linalg.norm(one))


def words(weights: str, level: int, clips: int, last: bool = True) -> dict:
    """One file's row: the error at each noise level, and what each exchange adds to it, in percent."""
    bundle, config, _ = weights_lib.load(weights_lib.find(weights))
    networks = networks_lib.build(config)
    one = config.copy_and_resolve_references()
    with one.unlocked():
        one.data.level_weights = tuple(float(k == level) for k in range(config.hierarchy.depth))
        one.data.num_workers = 0
        one.train.denoiser.clip_length = config.hierarchy.segment_length
    times = tuple(round(share * (config.diffusion.num_timesteps - 1)) for share in SHARES)
    errors_at = denoising.errors_at(networks, times, last=last)
    denoiser = bundle["denoisers"][level if len(bundle["denoisers"]) > 1 else 0]
    rows: dict[str, list] = {name: [] for name in ("true", *map("-".join, PAIRS))}
    distances: dict[str, list] = {name: [] for name in map("-".join, PAIRS)}
    iterator = pipeline.make_iterator(one, "valid", "denoiser", seed=77, batch_size=BATCH)
    try:
        for i in range(clips // BATCH):
            batch = {k: np.asarray(v) for k, v in next(iterator).items() if k in ("frames", "tokens", "level")}
            captions = {"-".join(pair): exchanged(networks, batch["tokens"], *pair) for pair in PAIRS}
            for name, tokens in captions.items():
                distances[name].append(apart(networks, denoiser["text"], batch["tokens"], tokens))
            for name, tokens in {"true": batch["tokens"], **captions}.items():
                told = batch | {"tokens": tokens}
                rows[name].append(np.asarray(errors_at(bundle, denoiser, told, jax.random.key(i))))
    finally:
        iterator.close()
    mean = {name: np.mean(values, axis=0, dtype=np.float64) for name, values in rows.items()}
    more = {name: (100 * (of / mean["true"] - 1)).round(2).tolist() for name, of in mean.items() if name != "true"}
    states = {name: round(float(np.mean(of)), 2) for name, of in distances.items()}
    return dict(timesteps=times, error=mean["true"].round(5).tolist(), percent_more=more, percent_apart=states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["shipped"])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--given", choices=("both", "first"), default="both")
    parser.add_argument("--cpu_devices", type=int, default=0, help="0 = one a core")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.cpu_devices or os.cpu_count())
    rows = {}
    for name in arguments.weights:
        rows[pathlib.Path(name).stem] = row = words(name, arguments.level, arguments.clips, arguments.given == "both")
        print(f"{name}: t {row['timesteps']}, error {row['error']}", flush=True)
        for pair, more in row["percent_more"].items():
            print(f"  {pair} exchanged: {more} % more, states {row['percent_apart'][pair]} % apart", flush=True)
    record = dict(level=arguments.level, clips=arguments.clips, split="valid", weights=rows)
    out = HERE / ("words.json" if arguments.given == "both" else "words_first.json")
    files.write_json(out, files.joined(out, record, "weights"))


if __name__ == "__main__":
    main()
