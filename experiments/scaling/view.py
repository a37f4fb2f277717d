"""Tables of run.py's rows in README.md, and plot.png."""

import math
import pathlib
from typing import Any, Iterable

from nuwaxl_jax.cost import report

ICI = 200e9  # bytes a second into a v5e chip: 1600 Gbit/s, cloud.google.com/tpu/docs/v5e (read in 2026)
MARKS = ("<!-- tables -->", "<!-- end of tables -->")


def seconds_of(row: dict[str, Any]) -> dict[str, float]:
    """Lower bounds of a compiled program's seconds, by what limits them.

    compute: FLOP by the peak. collectives: what a chip must get from others, (n - 1) / n of what they move, by the
    published bandwidth of its links, as if all of it could be used at once. Traffic with the chip's own memory is no
    part of it: at the compiler's lowest effort it is far more than it need be.
    """
    moved = sum(made["bytes"] for made in row["collectives"].values())
    return dict(compute=row["bound_seconds"]["compute"], collectives=moved * (1 - 1 / row["chips"]) / ICI)


def bound(row: dict[str, Any]) -> float:
    """Seconds that the program cannot take less than."""
    return max(seconds_of(row).values())


def _filled(row: dict[str, Any]) -> float:
    """Of the places for segments in a call, the share that holds one."""
    settings = row["settings"]
    return settings["segments"] / settings["segments_a_call"]


def series(predicted: dict[str, dict], order: Iterable[str]) -> dict[str, list[dict]]:
    """Rows by label without its chips, fewest chips first; rows that were refused left out."""
    out: dict[str, list[dict]] = {}
    for label in order:
        row = predicted.get(label)
        if row is not None and "flops" in row:
            out.setdefault(label.rpartition("/")[0], []).append(row)
    return out


def predicted_table(predicted: dict[str, dict], order: Iterable[str]) -> str:
    """Markdown."""
    lines = [
        "| program | chips | FLOP a chip | read and written a chip | collectives a chip | memory a chip | not below "
        "| at this traffic | filled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, found in series(predicted, order).items():
        for row in found:
            kinds = (f"{kind} {report.count(made['bytes'])}B" for kind, made in sorted(row["collectives"].items()))
            filled = f"{100 * _filled(row):.0f} %" if row["program"].startswith("sample") else ""
            lines.append(
                f"| {label} | {row['chips']} | {report.count(row['flops'])}FLOP | {report.count(row['bytes'])}B "
                f"| {', '.join(kinds) or 'none'} | {report.gib(row['memory']['total'])} | {bound(row):.3g} s "
                f"| {max(bound(row), row['bound_seconds']['memory']):.3g} s | {filled} |"
            )
    return "\n".join(lines)


def measured_table(measured: dict[str, dict]) -> str:
    """Markdown."""
    lines = ["| program | virtual devices | clips or places a call | measured | against one |", "|---|---|---|---|---|"]
    for label, row in measured.items():
        one = measured.get(f"{label.rpartition('/')[0]}/1", row)["seconds"]
        settings = row["settings"]
        size = settings.get("batch_size") or settings["segments_a_call"]
        lines.append(
            f"| {label.rpartition('/')[0]} | {row['devices']} | {size} | {row['seconds']:.3g} s "
            f"| {row['seconds'] / one:.2f} |"
        )
    return "\n".join(lines)


def plot(record: dict[str, dict[str, dict]], order: Iterable[str], path: pathlib.Path) -> None:
    """Bounds of a step, bounds of a level, measured seconds."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(13, 4), dpi=110, layout="constrained")
    steps, levels, measured = picture.subplots(1, 3)
    found = series(record["predicted"], order)
    for number, (label, rows) in enumerate((k, v) for k, v in found.items() if v[0]["program"].startswith("train")):
        chips, name = [row["chips"] for row in rows], label.replace("/train/", " ")
        for kind, style in (("compute", "-o"), ("collectives", "--s")):
            points = [(c, seconds_of(row)[kind]) for c, row in zip(chips, rows) if seconds_of(row)[kind] > 0]
            steps.plot(*zip(*points), style, color=f"C{number}", label=f"{name}: {kind}")
    for number, (label, rows) in enumerate((k, v) for k, v in found.items() if v[0]["program"].startswith("sample")):
        chips, times = [row["chips"] for row in rows], [bound(row) for row in rows]
        levels.plot(chips, times, "-o", color=f"C{number}", label=label.replace("/sample/level_2", ""))
        levels.plot(chips, [times[0] * chips[0] / c for c in chips], ":", color=f"C{number}")
    steps.set(title="a training step, the same clips a chip\npredicted from peaks, a bound", xlabel="v5e chips")
    levels.set(title="level 2 of 3376 frames, 225 segments\npredicted from peaks, a bound (dotted: ideal)")
    levels.set(xlabel="v5e chips")
    for axes in (steps, levels):
        axes.set(xscale="log", yscale="log", xlim=(0.8, 320), ylabel="seconds, not below")
        axes.set_xticks([1, 4, 16, 64, 256], labels=["1", "4", "16", "64", "256"])
        axes.minorticks_off()
        low, high = (math.log10(end) for end in axes.get_ylim())
        axes.set_ylim(10.0 ** math.floor(low), 10.0 ** math.ceil(high))  # whole decades: those are what is labelled
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
    labels = dict.fromkeys(label.rpartition("/")[0] for label in record["measured"])
    for label in labels:
        rows = [row for name, row in record["measured"].items() if name.rpartition("/")[0] == label]
        against = [row["seconds"] / rows[0]["seconds"] for row in rows]
        measured.plot([row["devices"] for row in rows], against, "-o", label=f"{label} ({rows[0]['seconds']:.2g} s)")
    measured.set(title="measured on virtual CPU devices of 2 cores\noverhead, not speed-up", xlabel="virtual devices")
    measured.set(ylabel="seconds against one device", xlim=(0.8, 4.2), ylim=(0, None))
    measured.set_xticks([1, 2, 4])
    measured.grid(alpha=0.3)
    if labels:
        measured.legend(fontsize=8, loc="lower right")
    picture.savefig(path)


def write(record: dict[str, dict[str, dict]], order: tuple[str, ...], folder: pathlib.Path) -> None:
    """README.md's part between the marks, and plot.png."""
    text = "\n\n".join(
        (
            "**Predicted, a bound, not measured** (v5e, published peaks):",
            predicted_table(record["predicted"], order),
            "**Measured on virtual CPU devices, 2 cores: shows overhead, not speed-up** (medians):",
            measured_table(record["measured"]),
        )
    )
    readme = folder / "README.md"
    before, _, rest = readme.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
    plot(record, order, folder / "plot.png")
