"""Writes RESULTS.md beside this file: every study's table beside the paper's own numbers, from the stored data alone.

    python experiments/results_page.py [--check]

`--check` writes nothing and ends with status 1 where the page is not what the data give.
"""

import argparse
import importlib.util
import json
import pathlib
import sys

sys.path[:0] = map(str, pathlib.Path(__file__).resolve().parents[:2])  # the code here, and no copy that is installed
from nuwaxl_jax import files
import prose
import study_telling

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE / "RESULTS.md"
STUDIES = ("table1", "table2a", "table2b", "table2c", "table2d", "ours", "shipped")
HEAD = f"""# Results

Made by `python experiments/results_page.py` from the data in these folders. The command above each table makes its
numbers. Those in the text beneath are computed anew from the same rows by `python experiments/prose.py`, which reads
from each study's `figures.txt` what they are of, and which of them are stated and not
computed (the paper's, settings, rows of earlier commits).

**What can be compared with the paper, and what cannot.** The paper's numbers are of FlintstonesHD, which was never
released, with networks, training and evaluation sizes that it does not state. Ours are of toons, a procedural
cartoon, at 64x64 pixels, with small networks trained on CPU cores, for minutes each (that of the last study for
hours). No number of ours stands beside one of theirs as the same quantity. What can be compared is the *order* of
arms and the *direction* in which figures move. Figures are means over seeds, with 95 % intervals by Student's t from
three on; B-FVD uses the true I3D and a few stories only, so its level is biased (see the distances of other real
stories) and only arms of one table and length compare. Avg-FID needs FID's weights, which were not at hand:
`frechet_stills` is the same distance of I3D's features of single frames.

**How arms are read.** {study_telling.PROTOCOL}
"""


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


def _finding(folder: pathlib.Path) -> list[str]:
    """The section 'Finding' of a study's README."""
    found = prose.finding(folder)
    return [found, ""] if found else []


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
    wrong = [f"{d}: {k}" for d, moved in module.verdicts(record["rows"]).items() for k, ok in moved.items() if not ok]
    protocol = record["protocol"]
    judged = sum(map(len, module.verdicts(record["rows"]).values()))
    told = f"""{protocol["stories"]} rendered stories of {protocol["frames"]} frames, damaged. Distances from themselves
undamaged and, `{module.TO_OTHERS[1:]}`, from as many other real stories. Bold: had to get worse, than undamaged or than
the milder damage of its kind, and did. Of {judged} such figures moved the wrong way:
{"; ".join(wrong) if wrong else "none"}."""
    return [
        *lines,
        told,
        "",
        module.table(record["rows"]),
        "",
        *_finding(HERE / "metrics"),
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
    lines += _seconds(module, HERE / name) + _finding(HERE / name)
    if (HERE / name / "plot.png").is_file():
        lines += [f"![{name}]({name}/plot.png)", ""]
    if (HERE / name / "stories.png").is_file():
        lines += ["The first story, 16 frames of the longest video, by every arm of the first seed:", ""]
        lines += [f"![{name}, a story]({name}/stories.png)", ""]
    return lines + _paper(name, paper)


def page() -> str:
    """The whole page."""
    paper = json.loads((HERE / "paper.json").read_text())
    lines = [HEAD, *metrics_section()]
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
