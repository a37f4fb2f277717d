"""The figures in the studies' prose are those of their rows, and the program that says so can say otherwise."""

import json
import pathlib
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / "experiments"
STUDIES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/results.json"))


@pytest.fixture(scope="module")
def prose():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        import prose
    finally:
        sys.path.remove(str(EXPERIMENTS))
    return prose


@pytest.mark.parametrize("name", [name for name in STUDIES if (EXPERIMENTS / name / "figures.txt").is_file()])
def test_figures_of_the_prose_are_those_of_the_rows(name, prose):
    assert list(prose.lines(EXPERIMENTS / name)) and not prose.wrong(EXPERIMENTS / name)


def test_no_study_has_a_finding_without_its_figures(prose):
    page = prose.plain((EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8"))
    findings = {name: prose.plain(prose.finding(EXPERIMENTS / name)) for name in STUDIES}
    told = [name for name, finding in findings.items() if finding and finding in page]
    assert len(told) >= 8
    assert not [name for name in told if not (EXPERIMENTS / name / "figures.txt").is_file()]


def _study(folder, finding, *lines):
    rows = {"tree": (1.0, 2.0, 6.0), "window": (2.0, 2.0, 8.0)}
    cells = {f"{arm}/{seed}/226": {"fvd": fvd} for arm, values in rows.items() for seed, fvd in enumerate(values)}
    cells |= {f"tree/{seed}/1024": {"fvd": 10.0, "curve": {"exact": [1, 1, 0.5, 0.25]}} for seed in range(3)}
    (folder / "results.json").write_text(json.dumps(cells))
    (folder / "README.md").write_text(f"# Study\n\n99\n\n## Finding\n\n{finding}\n\n## More\n\n77\n")
    (folder / "figures.txt").write_text("# comment\n" + "\n".join(lines))
    return folder


@pytest.mark.parametrize(
    "figure, line",
    [
        ("3.0 ± 6.6", "fvd @ 226 | tree"),  # t of two degrees of freedom, 4.303, times the error sqrt(7) / sqrt(3)
        ("1.0 ± 2.5", "fvd @ 226 | window - tree"),
        ("+1, +0 and +2", "fvd @ 226 | window - tree"),
        ("-1, +0, -2", "fvd @ 226 | tree - window"),
        ("3.0, 4.0", "fvd @ 226 | tree; window"),
        ("3.0 and 10.0", "fvd @ 226, 1024 | tree"),
        ("2.0, 1.0, 1.33", "fvd @ 226 | window / tree"),
        ("7.0", "fvd @ 1024 | tree - tree @ 226"),
        ("-0.75", "trend exact @ 1024 | tree"),
    ],
)
def test_each_kind_of_figure_is_computed_from_the_rows(figure, line, prose, tmp_path):
    folder = _study(tmp_path, f"It is {figure}, at 226 frames of `window 99` in 3 seeds.", f"{figure} | {line}")
    assert prose.wrong(folder) == []
    other = figure[:-1] + str((int(figure[-1]) + 1) % 10)
    folder = _study(tmp_path, f"It is {other}.", f"{other} | {line}")
    [said] = prose.wrong(folder)
    assert said.startswith(f"{other}: ") and said.endswith(f"is {figure}")


def test_figures_without_a_line_and_lines_without_a_figure_are_told(prose, tmp_path):
    folder = _study(tmp_path, "It is 3.0 ± 6.6,\nthen 41 and 42;\n\n| a | 0.5 |\n|---|---|", "8 | fvd @ 226 | tree")
    said = prose.wrong(folder)
    assert said[:2] == ["8: not in the prose", "8: fvd @ 226, tree is 3"]
    assert said[2:] == [f"{figure}: no line of figures.txt" for figure in ("3.0 ± 6.6", "41 and 42", "0.5")]


@pytest.mark.parametrize("line", ["3.0 | fvd | tree", "3.0 | fvd @ 226", "3.0"])
def test_a_line_that_lacks_something_is_named(line, prose, tmp_path):
    with pytest.raises(ValueError, match="figures.txt, line 2: .*write FIGURE"):
        prose.wrong(_study(tmp_path, "It is 3.0.", line))


def test_an_interval_is_of_one_term(prose, tmp_path):
    [said] = prose.wrong(_study(tmp_path, "It is 3.0 ± 6.6.", "3.0 ± 6.6 | fvd @ 226 | tree; window"))
    assert said.endswith("is 0 numbers")


def test_a_study_without_figures_is_refused(prose, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prose.py", "table1", "table9"])
    with pytest.raises(SystemExit) as ended:
        prose.main()
    assert ended.value.code == 2 and "table9 has no figures.txt" in capsys.readouterr().err


def test_an_arm_that_is_not_there_is_told(prose, tmp_path):
    folder = _study(tmp_path, "It is 3.0.", "3.0 | fvd @ 226 | three")
    assert "no row of 'three' at 226 frames has 'fvd'" in prose.wrong(folder)[0]


def test_percentages_factors_and_numbers_after_links_need_a_line_and_three_arms_are_refused(prose, tmp_path):
    _study(tmp_path, "It grew by 31 % and 9 times, see [`there`](x) 99.5 of 16 frames.")
    said = prose.wrong(tmp_path)
    assert said == [f"{number}: no line of figures.txt" for number in ("31", "9", "99.5")]
    _study(tmp_path, "The tree is 3.0 off.", "3.0 | fvd @ 226 | tree - window - tree")
    [said] = prose.wrong(tmp_path)
    assert "names more than two arms" in said
