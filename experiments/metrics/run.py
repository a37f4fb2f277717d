"""Do the metrics see what is wrong with a video? Toons stories, damaged in known ways, against themselves and others.

    pip install '.[metrics]'
    python experiments/metrics/run.py [--stories=10] [--frames=226] [--table]

Each damage is done to the same held-out stories; what is measured is kept in --work as it comes, so the command goes on
where it stopped. results.json and plot.png beside this file hold the figures and the pictures; `--table` prints the
table of results.json alone. `--dry_run` does two stories of 32 frames and writes nothing here.
"""

import argparse
from collections.abc import Sequence
import itertools
import json
import os
import pathlib
import sys
from typing import Any
from typing import Callable

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the code here, and no copy that is installed
from nuwaxl_jax import config as config_lib
from nuwaxl_jax import files
from nuwaxl_jax import provenance
from nuwaxl_jax.evaluation import held_out
from nuwaxl_jax.evaluation import image_metrics
from nuwaxl_jax.evaluation import intervals
from nuwaxl_jax.evaluation import ledger as ledger_lib
from nuwaxl_jax.evaluation import measures as measures_lib
from nuwaxl_jax.evaluation import protocols
from nuwaxl_jax.evaluation import story_score
from nuwaxl_jax.evaluation import versions

HERE = pathlib.Path(__file__).parent
SHOWN = ("scene", "colour", "shape", "exact", "identity", "step", "action", "border_ratio")
SEED = 7
OTHERS_FROM = 64  # number of the first of the other stories


def blur(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian, of so many pixels."""
    return ndimage.gaussian_filter(frames, sigma=(0, sigma, sigma, 0))


def noise(frames: np.ndarray, deviation: float) -> np.ndarray:
    """White, of so many grey levels."""
    added = np.random.default_rng(SEED).normal(scale=deviation, size=frames.shape)
    return np.clip(frames + added, 0, 255).round().astype(np.uint8)


def swap_colours(frames: np.ndarray) -> np.ndarray:
    """Red is blue and blue is red."""
    return frames[..., ::-1].copy()


def freeze(frames: np.ndarray) -> np.ndarray:
    """The first frame for ever."""
    return np.broadcast_to(frames[:1], frames.shape).copy()


def slow(frames: np.ndarray, times: int) -> np.ndarray:
    """Each frame so many times, from the first on."""
    return frames[np.arange(len(frames)) // times]


def shuffle_blocks(frames: np.ndarray, block: int = 16) -> np.ndarray:
    """Whole blocks in another order; what is left over stays at the end."""
    count = len(frames) // block
    order = np.random.default_rng(SEED).permutation(count)
    moved = frames[: count * block].reshape(count, block, *frames.shape[1:])[order]
    return np.concatenate([moved.reshape(-1, *frames.shape[1:]), frames[count * block :]])


def shuffle_frames(frames: np.ndarray, block: int = 16) -> np.ndarray:
    """Frames in another order, within each block alone."""
    rng = np.random.default_rng(SEED)
    order = [first + rng.permutation(min(block, len(frames) - first)) for first in range(0, len(frames), block)]
    return frames[np.concatenate(order)]


def flicker(frames: np.ndarray, every: int, gain: float) -> np.ndarray:
    """Every so many frames one that is brighter: what joins of segments look like when they fail."""
    out = frames.copy()
    out[every::every] = np.clip(frames[every::every] * gain, 0, 255).round().astype(np.uint8)
    return out


TO_OTHERS = "_to_others"  # ends the names of distances to other real stories; others are to the undamaged ones
OTHERS = "other_stories"  # in the place of a damage
DISTANCES = ("b_fvd_16", "fvd_spread_16", "frechet_stills")
_SEEN = ("b_fvd_16_to_others", "frechet_stills_to_others")
# Damage -> (what does it, what must be worse than undamaged). From the undamaged stories themselves any damage is
# further than they are, so distances have to grow from other real stories, and PSNR and SSIM are judged by `WORSE`.
DAMAGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], tuple[str, ...]]] = {
    "blur, 0.5 pixels": (lambda v: blur(v, 0.5), _SEEN),
    "blur, 1 pixel": (lambda v: blur(v, 1.0), _SEEN),
    "blur, 2 pixels": (lambda v: blur(v, 2.0), (*_SEEN, "shape")),
    "noise, 10 grey levels": (lambda v: noise(v, 10.0), _SEEN),
    "swapped colours": (swap_colours, (*_SEEN, "colour", "exact")),
    "frozen": (freeze, ("b_fvd_16_to_others", "fvd_spread_16_to_others", "action")),
    "half speed": (lambda v: slow(v, 2), ("b_fvd_16_to_others", "exact")),
    # A block is a real one wherever it stands: no distance of blocks from other stories sees it.
    "blocks shuffled": (shuffle_blocks, ("step", "exact")),
    "frames shuffled in blocks": (shuffle_frames, ("b_fvd_16_to_others", "step", "action")),
    "flicker every 15 frames, 10 % brighter": (lambda v: flicker(v, 15, 1.1), ("b_fvd_16_to_others", "border_ratio")),
    "flicker every 15 frames, 50 % brighter": (lambda v: flicker(v, 15, 1.5), ("b_fvd_16_to_others", "border_ratio")),
}
# Of one kind from mild to severe, and what must get worse at each step.
WORSE = (
    (("blur, 0.5 pixels", "blur, 1 pixel", "blur, 2 pixels"), ("b_fvd_16", "frechet_stills", "psnr", "ssim")),
    (
        ("flicker every 15 frames, 10 % brighter", "flicker every 15 frames, 50 % brighter"),
        ("b_fvd_16", "fvd_spread_16", "psnr", "ssim", "border_ratio"),
    ),
)
HIGHER_IS_BETTER = ("psnr", "ssim", *(name for name in SHOWN if name != "border_ratio"))


def measure(
    label: str,
    number: int,
    videos: held_out.HeldOut,
    measures: measures_lib.Measures,
    which: measures_lib.Frames,
    ledger: ledger_lib.Ledger,
) -> None:
    """One story with one damage, into the ledger."""
    name = _file(label)
    if ledger.read(name, number) is not None:
        return
    index = np.arange(which.num_frames)
    real, captions = videos.frames(number, index), videos.captions(number, index)
    made = DAMAGES[label][0](real) if label in DAMAGES else real
    score = story_score.story_score(made, captions)
    fidelity = {kind: float(getattr(image_metrics, kind)(real, made).mean()) for kind in ("psnr", "ssim")}
    features = measures.read(made, captions, which)
    ledger.write(name, number, {"score": {k: score[k] for k in SHOWN} | fidelity}, features)


def _file(label: str) -> str:
    """The name of a damage in the ledger."""
    return label.replace(" ", "_").replace(",", "").replace("%", "percent")


# Distance -> (part of what is read of a video, what it is of these).
_PARTS = {
    "b_fvd_16": ("clips", protocols.b_fvd),
    "fvd_spread_16": ("spread", protocols.pooled),
    "frechet_stills": ("stills", protocols.pooled),
}


def _score_changes(before: str, after: str, stories: int, ledger: ledger_lib.Ledger) -> dict[str, Any]:
    """Score -> interval of its change from one damage to another, stories resampled."""
    read = [[ledger.read(_file(of), i)["score"] for i in range(stories)] for of in (before, after)]
    out = {}
    for kind in read[1][0]:
        moved = [b[kind] - a[kind] for a, b in zip(*read) if a[kind] is not None and b[kind] is not None]
        out[kind] = intervals.rounded(intervals.of_mean(np.array(moved))) if moved else None
    return out


def changes(label: str, stories: int, ledger: ledger_lib.Ledger) -> dict[str, Any]:
    """Metric -> 95 % interval of damaged less undamaged, stories (and the others, for distances to them) resampled."""
    out = _score_changes("undamaged", label, stories, ledger)
    for kind, (part, distance) in _PARTS.items():
        read = [[ledger.arrays(_file(of), i)[part] for i in range(stories)] for of in ("undamaged", label, OTHERS)]
        both, others = np.stack(read[:2], axis=1), np.stack(read[2])  # those of one story are drawn together

        def further(both: np.ndarray, others: np.ndarray, distance: Callable = distance) -> float:
            return distance(others, both[:, 1]) - distance(others, both[:, 0])

        out[kind + TO_OTHERS] = intervals.rounded(intervals.of(further, both, others))
    return {kind: interval for kind, interval in out.items() if interval is not None}


def steps(label: str, stories: int, ledger: ledger_lib.Ledger) -> dict[str, Any]:
    """Metric -> 95 % interval of a damage less the milder one of its kind, of those that `WORSE` names."""
    found = {severe: (mild, kinds) for damages, kinds in WORSE for mild, severe in itertools.pairwise(damages)}
    if label not in found:
        return {}
    mild, kinds = found[label]
    out = _score_changes(mild, label, stories, ledger)
    for kind in set(kinds) & set(DISTANCES):
        part, distance = _PARTS[kind]
        read = [[ledger.arrays(_file(of), i)[part] for i in range(stories)] for of in ("undamaged", mild, label)]

        def further(three: np.ndarray, distance: Callable = distance) -> float:
            return distance(three[:, 0], three[:, 2]) - distance(three[:, 0], three[:, 1])

        out[kind] = intervals.rounded(intervals.of(further, np.stack(read, axis=1)))
    return {kind: out[kind] for kind in kinds if out.get(kind) is not None}


def gather(label: str, stories: int, others: int, which, measures, ledger, data) -> dict[str, float | None]:
    """Means of the scores, and distances from the undamaged stories."""
    name = _file(label)
    scores = [ledger.read(name, i)["score"] for i in range(stories)]
    means = {}
    for kind in scores[0]:
        values = [score[kind] for score in scores if score[kind] is not None]
        means[kind] = round(float(np.mean(values)), 4) if values else None
    real = [ledger.arrays("undamaged", i) for i in range(stories)]
    made = [ledger.arrays(name, i) for i in range(stories)] if label != "other_stories" else None
    if label == "other_stories":
        made = [ledger.arrays(name, i) for i in range(others)]
    paired = label != "other_stories"
    common = dict(data=data, subject={"damage": label})
    records = protocols.records(real, made, which, measures, paired=paired, **common)
    if paired:
        apart = [ledger.arrays("other_stories", i) for i in range(others)]
        found = protocols.records(apart, made, which, measures, paired=False, **common)
        records |= {f"{kind}{TO_OTHERS}": found[kind] for kind in DISTANCES if kind in found}
    return means | {kind: round(record["value"], 4) for kind, record in records.items()}


def _worse(kind: str, old: float, new: float) -> bool:
    """Whether `new` is the worse of two values."""
    if kind == "border_ratio":  # 1 is seamless
        return abs(np.log(new)) > abs(np.log(old))
    return new < old if kind in HIGHER_IS_BETTER else new > old


def _mark(kind: str, before: float | None, row: dict, asked: bool | None) -> str:
    """The cell of a damage, marked as `MARKS` says."""
    value = row.get(kind)
    if value is None:
        return "-"
    cell = f"{value + 0:.4g}"  # no -0
    if asked is not None:
        found = [row[of][kind] for of in ("change", "change_from_milder") if kind in row.get(of, {})]
        certain = found and not any(low <= 0 <= high for low, high in found)
        return f"~~{cell}~~" if not asked else f"**{cell}**" if certain else f"{cell} ?"
    if before is None or kind in DISTANCES:
        return cell
    return f"({cell})" if value == before else cell if _worse(kind, before, value) else f"*{cell}*"


def verdicts(rows: dict[str, dict]) -> dict[str, dict[str, bool]]:
    """Damage -> metric -> whether it moved the right way, of those that must."""
    out: dict[str, dict[str, bool]] = {label: {} for label in DAMAGES}

    def judge(label: str, before: str, kinds: Sequence[str]) -> None:
        for kind in kinds:
            new, old = rows[label].get(kind), rows[before].get(kind)
            if new is not None and old is not None:
                out[label][kind] = _worse(kind, old, new)

    for label, (_, wanted) in DAMAGES.items():
        judge(label, "undamaged", wanted)
    for steps, kinds in WORSE:
        for mild, severe in itertools.pairwise(steps):
            judge(severe, mild, kinds)
    return out


MARKS = """Bold: had to get worse, than undamaged or than the milder damage of its kind, and did; with a question mark
where the 95 % interval of the change (stories resampled) has 0; struck through: went the wrong way. What had not to
move: in brackets where it does not, in italics where the damaged stories look *better* by it."""


def table(rows: dict[str, dict]) -> str:
    """Markdown, marked as `MARKS` says."""
    kinds = (*DISTANCES, *(f"{kind}{TO_OTHERS}" for kind in DISTANCES), "psnr", "ssim", *SHOWN)
    moved = verdicts(rows)
    lines = ["| | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for label in ("undamaged", *DAMAGES, "other_stories"):
        before = rows["undamaged"] if label in DAMAGES else {}
        cells = [_mark(kind, before.get(kind), rows[label], moved.get(label, {}).get(kind)) for kind in kinds]
        lines.append(f"| {label.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def counts(rows: dict[str, dict]) -> dict[str, int]:
    """How many cells of the damages have which mark."""
    cells = [cell.strip() for line in table(rows).split("\n")[3:-1] for cell in line.split("|")[2:-1]]
    starts = {"bold": "**", "wrong": "~~", "unmoved": "(", "better": "*"}
    found = {name: sum(cell.startswith(start) for cell in cells) for name, start in starts.items()}
    found["better"] -= found["bold"]
    return found | {"chance": sum(cell.endswith("?") for cell in cells)}


def picture(videos: held_out.HeldOut) -> Image.Image:
    """Rows: damages. Columns: frames 0, 8, 15, 16, 40, 41 and 100 of the first story."""
    frames = videos.frames(0, np.arange(videos.num_frames))
    shown = [i for i in (0, 8, 15, 16, 40, 41, 100) if i < len(frames)]
    rows = [np.concatenate([v[i] for i in shown], axis=1) for v in (frames, *(d(frames) for d, _ in DAMAGES.values()))]
    return Image.fromarray(np.concatenate(rows, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=10)
    parser.add_argument("--frames", type=int, default=226)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--stills", type=int, default=8)
    parser.add_argument("--inception", default="", help="FID's weights; without, I3D at rest stands in")
    parser.add_argument("--work", default="runs/metrics", help="folder of what is measured so far")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--dry_run", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads((HERE / "results.json").read_text())["rows"]))
        return
    if arguments.dry_run:
        arguments.stories, arguments.frames, arguments.blocks, arguments.stills = 2, 32, 1, 1
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    config = config_lib.default()
    measures = measures_lib.Measures.load(inception=arguments.inception)
    which = measures_lib.choose(arguments.frames, 16, arguments.blocks, arguments.stills)
    videos = held_out.HeldOut(config, OTHERS_FROM + arguments.stories, arguments.frames)
    data = videos.protocol(arguments.stories)
    protocol = {"data": data, "measures": measures.protocol(), "frames": arguments.frames, "blocks": which.blocks}
    key = protocol | {"stills": which.stills, "damages": list(DAMAGES), "versions": versions.ALL}
    ledger = ledger_lib.Ledger(arguments.work, key)
    for number in range(arguments.stories):
        for label in ("undamaged", *DAMAGES):
            measure(label, number, videos, measures, which, ledger)
        other = OTHERS_FROM + number
        if ledger.read("other_stories", number) is None:
            frames, captions = (read(other, np.arange(arguments.frames)) for read in (videos.frames, videos.captions))
            score = story_score.story_score(frames, captions)
            features = measures.read(frames, captions, which)
            ledger.write("other_stories", number, {"score": {k: score[k] for k in SHOWN}}, features)
        print(f"story {number + 1} of {arguments.stories}", flush=True)
    labels = ("undamaged", *DAMAGES, "other_stories")
    numbers = arguments.stories, arguments.stories
    rows = {label: gather(label, *numbers, which, measures, ledger, data) for label in labels}
    for label in DAMAGES:
        rows[label]["change"] = changes(label, arguments.stories, ledger)
        rows[label]["change_from_milder"] = steps(label, arguments.stories, ledger)
    print(table(rows))
    print(MARKS, counts(rows), sep="\n")
    if not arguments.dry_run:
        protocol |= {"stories": arguments.stories, "stills": which.stills, "changes": intervals.METHOD}
        record = {"protocol": protocol, "code": provenance.code(), "rows": rows}
        files.write_json(HERE / "results.json", record)
        picture(videos).save(HERE / "plot.png")


if __name__ == "__main__":
    main()
