"""Computes the figures in the findings' prose anew from the stored rows, and says which of them the rows do not give.

    python experiments/prose.py [STUDY ...]       # status 1 where one is wrong, or said to be of nothing

Beside a study's README lies `figures.txt`, a line a figure of its section 'Finding':

    FIGURE | METRIC [, METRIC ...] @ FRAMES [, FRAMES ...] | TERM [; TERM ...]
    421 ± 140 | fvd_spread_16 @ 3376 | window, the tree's weights - tree

FIGURE is the text as the prose has it. `a ± b` is a mean over seeds and half of its 95 % interval
(`study_table.interval`). A list, numbers with commas or `and` between them, is of one METRIC, length and TERM its seeds
in order; of several, their means, the terms changing fastest and the metrics slowest. One number is a mean. TERM is
`ARM`, `ARM - ARM` (seed by seed) or `ARM / ARM` (the same), an arm by its name, with ` @ FRAMES` where it is of another
length. METRIC is a figure of the rows, `seconds` of seconds.json, or `trend NAME`: the last quarter of the curve NAME
over the frames less its first. A line `FIGURE | stated | WHY` is of what is not computed here: the paper's numbers,
settings, rows of an earlier commit, the largest of several differences. A text that stands twice may have two lines.

Each number has to have a line, alone, in a list or with ±, but whole numbers up to 32 that are no percentage or factor,
lengths of videos, and what stands in code. A text that stands twice is looked for once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import study_table

HERE = pathlib.Path(__file__).resolve().parent
NUMBER = r"[+-]?\d+(?:\.\d+)?"
LENGTHS = (226, 256, 1024, 3376)
PLUS_MINUS = re.compile(rf"(?<![\w.]){NUMBER} ± {NUMBER}(?!\w)")
LIST = re.compile(rf"(?<![\w.]){NUMBER}(?:, {NUMBER})*(?:,? and {NUMBER}|, {NUMBER})(?![\w.]*\w)")
ALONE = re.compile(rf"(?<![\w.]){NUMBER}(?![\w.]*\w)")


_FACTORS = (" %", " times")  # what stands before them is no setting


def finding(folder: pathlib.Path) -> str:
    """The section 'Finding' of a study's README; '' without one."""
    file = folder / "README.md"
    found = re.search(r"^## Finding\n+(.*?)(?=^## |\Z)", file.read_text() if file.is_file() else "", re.M | re.S)
    return found.group(1).strip() if found else ""


def arms(folder: pathlib.Path) -> str:
    """What a study's README says of its arms, from '**Arms.**' to the section 'Finding'; '' where it does not."""
    file = folder / "README.md"
    found = re.search(r"^\*\*Arms\.\*\*.*?(?=^## Finding)", file.read_text() if file.is_file() else "", re.M | re.S)
    return found.group(0).strip() if found else ""


def plain(text: str) -> str:
    """Prose on one line, without code and targets of links; the cells of its tables end in `;`."""
    return " ".join(re.sub(r"`[^`]*`|\]\([^)]*\)", " _ ", text).replace("|", " ; ").split())


def figures(text: str) -> list[str]:
    """All `a ± b`, lists of numbers and numbers of prose that are no settings, each once."""
    text, found = plain(text), []
    for kind in (PLUS_MINUS, LIST, ALONE):
        for some in kind.finditer(text):
            numbers, after = re.findall(NUMBER, some.group()), text[some.end() : some.end() + 6]
            if after.startswith(_FACTORS) or not all(map(_is_setting, numbers)):
                found.append(some.group())
        text = kind.sub("_", text)
    return list(dict.fromkeys(found))


def _is_setting(number: str) -> bool:
    """Whether it is a whole number up to 32, without a sign, or a video's length."""
    return number.isdigit() and (int(number) <= 32 or int(number) in LENGTHS)


class Rows:
    """The stored rows of one study, by arm, length and name.

    Args:
      folder: of the study.
    """

    def __init__(self, folder: pathlib.Path):
        record = json.loads((folder / "results.json").read_text())
        if "rows" in record:  # of the metrics: damages in the place of arms, all of one length
            record = {f"{arm}/0/{record['protocol']['frames']}": row for arm, row in record["rows"].items()}
        self._rows: Mapping[str, Any] = record
        clock = folder / "seconds.json"
        self._seconds = json.loads(clock.read_text())["frames"] if clock.is_file() else {}

    def by_seed(self, arm: str, frames: str, metric: str) -> dict[str, float]:
        """Seed -> figure.

        Raises:
          KeyError: no row has it.
        """
        if metric == "seconds":
            return {"0": self._seconds[frames][arm]["seconds"]}
        if metric.startswith("trend "):
            curves = study_table.by_seed(self._rows, arm, int(frames), "curve")
            out = {seed: _trend(curve[metric.removeprefix("trend ")]) for seed, curve in curves.items()}
        else:
            out = study_table.by_seed(self._rows, arm, int(frames), metric)
        if not out:
            raise KeyError(f"no row of {arm!r} at {frames} frames has {metric!r}")
        return dict(sorted(out.items(), key=lambda item: int(item[0])))

    def term(self, text: str, frames: str, metric: str) -> list[float]:
        """Figures of a TERM by seed, of the seeds that all its arms have."""
        parts = re.split(r" ([-/]) ", text)
        if len(parts) > 3:
            raise KeyError(f"{text!r} names more than two arms")
        arms = []
        for part in parts[::2]:
            arm, _, own = part.partition(" @ ")
            arms.append(self.by_seed(arm.strip(), own.strip() or frames, metric))
        seeds = [seed for seed in arms[0] if all(seed in arm for arm in arms)]
        values = [arms[0][seed] for seed in seeds]
        if len(arms) == 2:
            other = [arms[1][seed] for seed in seeds]
            values = [a - b if parts[1] == "-" else a / b for a, b in zip(values, other, strict=True)]
        return values


def _trend(curve: list[float]) -> float:
    """Mean of the last quarter less that of the first."""
    quarter = len(curve) // 4
    return float(np.mean(curve[-quarter:]) - np.mean(curve[:quarter]))


def rounded(value: float, like: str) -> str:
    """`value` with as many decimals as the number `like`, and with a `+` where that has a sign."""
    text = f"{value:.{len(like.partition('.')[2])}f}"
    return f"+{text}" if like[0] in "+-" and value >= 0 else text


def computed(figure: str, what: str, terms: str, rows: Rows) -> str:
    """The figure's text with the numbers that the rows give."""
    metrics, _, lengths = what.partition("@")
    every = itertools.product(
        *(map(str.strip, part.split(by)) for part, by in ((metrics, ","), (lengths, ","), (terms, ";")))
    )
    values = [rows.term(term, frames, metric) for metric, frames, term in every]
    numbers = re.findall(NUMBER, figure)
    if "±" in figure:
        given = list(study_table.interval(values[0])) if len(values) == 1 else []
    elif len(values) > 1 or len(numbers) == 1:
        given = [float(np.mean(of)) for of in values]
    else:
        given = values[0]
    if len(given) != len(numbers):
        return f"{len(given)} numbers"
    texts = iter([rounded(value, like) for value, like in zip(given, numbers, strict=True)])
    return re.sub(NUMBER, lambda _: next(texts), figure)


def lines(folder: pathlib.Path) -> Iterator[list[str]]:
    """The three parts of each line of a study's figures.txt."""
    file = folder / "figures.txt"
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 3 or not all(parts) or not (parts[1] == "stated" or "@" in parts[1]):
            raise ValueError(f"{file.name}, line {number}: {line!r}; write FIGURE | METRIC @ FRAMES | TERM")
        yield parts


def wrong(folder: pathlib.Path) -> list[str]:
    """A line each: figures that the rows give otherwise, that the prose does not have, that no line explains."""
    text = finding(folder)
    flat, out, explained = plain(text), [], set()
    rows = Rows(folder)
    for figure, what, terms in lines(folder):
        explained.add(figure)
        if not re.search(rf"(?<![\w.]){re.escape(figure)}(?![\w])", flat):
            out.append(f"{figure}: not in the prose")
        if what == "stated":
            continue
        try:
            found = computed(figure, what, terms, rows)
        except KeyError as error:
            found = str(error.args[0])
        if found != figure:
            out.append(f"{figure}: {what}, {terms} is {found}")
    return out + [f"{figure}: no line of figures.txt" for figure in figures(text) if figure not in explained]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY")
    known = sorted(file.parent.name for file in HERE.glob("*/figures.txt"))
    asked = parser.parse_args().studies or known
    if unknown := set(asked) - set(known):
        parser.error(f"STUDY: {', '.join(sorted(unknown))} has no figures.txt; choose from {', '.join(known)}")
    bad = 0
    for name in asked:
        told = list(lines(HERE / name))
        mistakes = wrong(HERE / name)
        stated = sum(what == "stated" for _, what, _ in told)
        print(f"{name}: {len(told) - stated} figures of the rows, {stated} stated, {len(mistakes)} wrong")
        for line in mistakes:
            print(f"  {line}")
        bad += len(mistakes)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
