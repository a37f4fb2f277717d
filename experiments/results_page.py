"""Writes RESULTS.md beside this file: every study's table beside the paper's own numbers, from the stored data alone.

What stands above the first table is results_head.md.

    python experiments/results_page.py [--check]

`--check` writes nothing and ends with status 1 where the page is not what the data give.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import sys

sys.path[:0] = map(str, pathlib.Path(__file__).resolve().parents[:2])  # the code here, and no copy that is installed
from nuwaxl_jax import files
import prose
import study_telling

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE / "RESULTS.md"
STUDIES = ("table1", "table2a", "table2b", "table2c", "table2d", "ours", "shipped")
HEAD = HERE / "results_head.md"


def _load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _paper(name: str, paper: dict) -> list[str]:
    if name not in paper:
        return []
    columns, rows = paper[name]["columns"], paper[name]["rows"]
    lines = ["The paper's:", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return [*lines, *(f"| {label} | " + " | ".join(map(str, row)) + " |" for label, row in rows.items()), ""]


def _prose(folder: pathlib.Path) -> list[str]:
    """Of a study's README what its arms are and what was found, with links as they are from here."""

    def here(link: re.Match) -> str:
        target = link.group(1)
        outside = "//" in target or target.startswith("#")
        return link.group(0) if outside else f"]({os.path.normpath(f'{folder.name}/{target}')})"

    parts = [part for part in (prose.arms(folder), prose.finding(folder)) if part]
    return [line for part in parts for line in (re.sub(r"\]\(([^)\s]+)\)", here, part), "")]


def _seconds(module, folder: pathlib.Path) -> list[str]:
    """The table of a study's clock, where it was taken."""
    file = folder / "seconds.json"
    if not file.is_file():
        return []
    record = json.loads(file.read_text())
    machine = record["machine"]
    on = f"{machine['devices']} devices of {machine['backend']}, medians of the runs in `seconds.json`"
    return [
        f"`python experiments/{folder.name}/seconds.py` ({on}):",
        "",
        module.study.study_table.seconds(module.STUDY, record),
        "",
    ]


def metrics_section() -> list[str]:
    """The metrics against known damages."""
    module = _load(HERE / "metrics" / "run.py")
    file = HERE / "metrics" / "results.json"
    lines = ["## Do the metrics see what is wrong?", "", "`python experiments/metrics/run.py`", ""]
    if not file.is_file():
        return [*lines, "Not run yet.", ""]
    record = json.loads(file.read_text())
    counts, protocol = module.counts(record["rows"]), record["protocol"]
    judged = counts["bold"] + counts["chance"] + counts["wrong"]
    blocks = len(protocol["blocks"])
    told = f"""{protocol["stories"]} rendered stories of {protocol["frames"]} frames, damaged; {blocks} blocks of 16
frames are read of each. Distances are from the stories themselves undamaged and, `{module.TO_OTHERS[1:]}`, from as many
other real stories. {module.MARKS}
Of {judged} figures that had to get worse {counts["bold"]} did beyond chance, {counts["chance"]} within it and
{counts["wrong"]} went the wrong way; of the others {counts["unmoved"]} do not move, {counts["better"]} look better."""
    return [
        *lines,
        told,
        "",
        module.table(record["rows"]),
        "",
        *_prose(HERE / "metrics"),
        "![damages](metrics/plot.png)",
        "",
    ]


def study_section(name: str, paper: dict) -> list[str]:
    """One study."""
    module = _load(HERE / name / "run.py")
    title = module.__doc__.strip().splitlines()[0].rstrip(".")
    lines = [f"## {title}", "", f"`python experiments/{name}/run.py`", ""]
    file = HERE / name / "results.json"
    if file.is_file():
        lines += [module.study.study_table.table(module.STUDY, json.loads(file.read_text())), ""]
    else:
        lines += ["Not run yet.", ""]
    lines += _seconds(module, HERE / name) + _prose(HERE / name)
    if (HERE / name / "plot.png").is_file():
        lines += [f"![{name}]({name}/plot.png)", ""]
    if (HERE / name / "stories.png").is_file():
        lines += ["The first story, 16 frames of the longest video, by every arm of the first seed:", ""]
        lines += [f"![{name}, a story]({name}/stories.png)", ""]
    return lines + _paper(name, paper)


def page() -> str:
    """The whole page."""
    paper = json.loads((HERE / "paper.json").read_text())
    head = HEAD.read_text(encoding="utf-8").replace("PROTOCOL", study_telling.PROTOCOL)
    lines = [head, *metrics_section()]
    for name in STUDIES:
        lines += study_section(name, paper)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        raise SystemExit(0 if PAGE.is_file() and PAGE.read_text() == page() else f"{PAGE} is old; make it anew")
    files.write_bytes(PAGE, page().encode())
    print(PAGE)


if __name__ == "__main__":
    main()
