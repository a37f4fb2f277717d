"""The table of a study: means over seeds with their intervals, and which of them differ from the first arm's."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

_FEW = 3  # seeds from which an interval says something: of two, Student's t makes one thirteen times the error
_COUNTED = ("calls",)  # of no chance: never bold
_CIRCUMSTANCES = ("code", "seconds")  # of a row, and not of the video that it is of
FLOOR = "other real stories"  # in the place of an arm: their distances to the real ones that are told
_BESIDE = {"b_fvd_16": ("b_fvd_16_pooled",), "frechet_stills": ("avg_fid", "clip_similarity")}  # where there are any
LEGEND = (
    f"Means over seeds, from {_FEW} on ± half of their 95 % interval by Student's t; all seeds tell the same stories."
    " Bold: the differences to the first arm of the same length, seed by seed, have an interval without 0 (of twenty"
    " such cells one is bold by chance)."
)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of its 95 % interval by Student's t over seeds); 0 of fewer than three values, and of equal ones."""
    from scipy import stats

    values = np.asarray(values, float)
    if np.ptp(values) == 0:  # an arm without noise; the mean of equal numbers may be a rounding off them
        return float(values[0]), 0.0
    if len(values) < _FEW:
        return float(values.mean()), 0.0
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def by_seed(rows: Mapping[str, Mapping[str, Any]], arm: str, frames: int, name: str) -> dict[str, float]:
    """Seed -> figure, of the rows 'arm/seed/frames' that have it."""
    out = {}
    for key, row in rows.items():
        of, seed, length = key.rsplit("/", 2)
        if of == arm and length == str(frames) and name in row:
            out[seed] = row[name]
    return out


def differs(ours: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """Whether the paired difference over the seeds of both has a 95 % interval without 0; False of fewer than three."""
    seeds = sorted(set(ours) & set(others))
    if len(seeds) < _FEW:
        return False
    mean, half = interval([ours[seed] - others[seed] for seed in seeds])
    return abs(mean) > half


def shown(study: Any, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of `study.shown` and what stands beside it, what any row has: arms that ran side by side have no time of their
    own."""
    wanted = [each for name in study.shown for each in (name, *_BESIDE.get(name, ()))]
    return [name for name in wanted if any(name in row for row in rows.values())]


def apart(study: Any, kept: Mapping[str, Mapping[str, Any]], anew: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines that say by how much rows of a second run differ from the kept ones, a figure a line."""
    lines = [f"{len(set(kept) & set(anew))} of {len(kept)} kept rows were made again:"]
    for name in shown(study, kept):
        found = {
            key: (kept[key][name], anew[key][name]) for key in kept if name in kept[key] and name in anew.get(key, {})
        }
        parts = {key: abs(new - old) / max(abs(old), 1e-9) for key, (old, new) in found.items()}
        if parts and name not in ("seconds",):
            worst = max(parts, key=parts.__getitem__)
            old, new = found[worst]
            middle = float(np.median(list(parts.values())))
            lines.append(f"  {name}: median {middle:.1%}, at most {parts[worst]:.1%} ({worst}: {old:.4g} -> {new:.4g})")
    return "\n".join(lines)


def table(study: Any, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row an arm and length, a column a figure of `shown`."""
    names = shown(study, rows)
    lines = ["| arm | frames | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    lengths = sorted({int(key.rsplit("/", 1)[1]) for key in rows})
    for arm in (*(arm.name for arm in study.arms), FLOOR):
        for frames in lengths:
            seeds = sum(1 for key in rows if key.rsplit("/", 2)[0] == arm and key.endswith(f"/{frames}"))
            if not seeds:
                continue
            cells = []
            for name in names:
                values = by_seed(rows, arm, frames, name)
                if not values:
                    cells.append("-")
                    continue
                mean, half = interval(list(values.values()))
                text = f"{mean:.4g}" + (f" ± {half:.2g}" if half else "")
                first = by_seed(rows, study.arms[0].name, frames, name)
                cells.append(f"**{text}**" if name not in _COUNTED and differs(values, first) else text)
            lines.append(f"| {arm} | {frames} | {'-' if arm == FLOOR else seeds} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", LEGEND, *mixed(study, rows), *alike(study, rows)])


def alike(study: Any, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown lines: arms that have the same figures for every seed, so that a seed more says nothing more."""
    out = []
    for arm in study.arms:
        found: dict[str, list[Mapping[str, Any]]] = {}  # length -> rows
        for key, row in rows.items():
            of, _, frames = key.rsplit("/", 2)
            if of == arm.name:
                found.setdefault(frames, []).append({name: row[name] for name in row if name not in _CIRCUMSTANCES})
        same = [n for n, of_length in found.items() if len(of_length) > 1 and all(of_length[0] == r for r in of_length)]
        if same:
            out.append(f"{arm.name} ({', '.join(sorted(same, key=int))} frames)")
    if not out:
        return []
    return ["", "The same to the bit with every seed, as nothing in it is left to chance: " + "; ".join(out) + "."]


def mixed(study: Any, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown lines: arms whose rows of one seed are not of one training, and so differ by chance too.

    Rows are of one training where their denoising errors are equal, which follow from weights alone.
    """
    out = []
    for arm in study.arms if study.stages else ():  # without a training all are of one file
        found: dict[str, set[tuple[float, ...]]] = {}  # seed -> errors
        for key, row in rows.items():
            of, seed, _ = key.rsplit("/", 2)
            if of in (arm.name, arm.like):
                found.setdefault(seed, set()).add(tuple(row[n] for n in sorted(row) if n.startswith("denoising_")))
        apart = [seed for seed, errors in sorted(found.items()) if len(errors) > 1]
        if apart and any(key.startswith(f"{arm.name}/") for key in rows):
            out.append(f"{arm.name}{f' and {arm.like}' if arm.like else ''} (seeds {', '.join(apart)})")
    if not out:
        return []
    return ["", "Of one seed, but not of one training (another machine rounds otherwise): " + "; ".join(out) + "."]


def seconds(study: Any, record: Mapping[str, Any]) -> str:
    """Markdown: seconds of a video by arm and length, and how many times those of the first arm."""
    lengths = sorted(record["frames"], key=int)
    lines = ["| seconds | " + " | ".join(f"{n} frames" for n in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    first, *others = (arm.name for arm in study.arms if all(arm.name in record["frames"][n] for n in lengths))
    for arm in (first, *others):
        cells = []
        for n in lengths:
            own, of = (record["frames"][n][name]["seconds"] for name in (arm, first))
            cells.append(f"{own:.1f}" + (f" ({own / of:.1f}x)" if arm != first else ""))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
