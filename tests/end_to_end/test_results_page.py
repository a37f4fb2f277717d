"""The page of results: marks of damages, links, how rows are read, and rows that are made again."""

import importlib.util
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"


def _load(path):
    spec = importlib.util.spec_from_file_location(path.parent.name + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def telling(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return _load(EXPERIMENTS / "study_telling.py")


def test_links_of_the_page_lead_somewhere():
    page = (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page) if "//" not in link]
    assert len(links) > 10 and not [link for link in links if not (EXPERIMENTS / link).exists()]


def test_the_page_says_what_every_column_is():
    head, tables = (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8").split("## Table 1", 1)
    columns = {cell.strip() for line in re.findall(r"^\| arm \|.*$", tables, re.M) for cell in line.split("|")[4:-1]}
    told = " ".join(re.findall(r"^\| (`.*) \|", head, re.M))
    unknown = {c for c in columns if f"`{c}`" not in told and f"`_{c.rsplit('_', 1)[-1]}`" not in told}
    assert unknown <= {"psnr", "ssim", "seconds"}


def test_damages_are_marked_by_what_they_move():
    module = _load(EXPERIMENTS / "metrics" / "run.py")
    same = {kind: 1.0 for kind in ("psnr", "ssim", *module.SHOWN)}
    same |= {kind: 0.0 for kind in module.DISTANCES} | {f"{kind}_to_others": 100.0 for kind in module.DISTANCES}
    rows = {label: dict(same, change={}) for label in ("undamaged", *module.DAMAGES, "other_stories")}
    rows["frozen"] |= {"b_fvd_16_to_others": 90.0, "action": 0.5, "colour": 0.5, "fvd_spread_16_to_others": 130.0}
    rows["frozen"] |= {"frechet_stills_to_others": 99.0, "border_ratio": 0.9}
    rows["frozen"]["change"] = {"action": [-0.6, -0.4], "fvd_spread_16_to_others": [-1.0, 61.0]}
    header, _, *lines = module.table(rows).split("\n")
    [frozen] = [line for line in lines if line.startswith("| frozen |")]
    cells = dict(zip(header.split(" | ")[1:], frozen.removesuffix(" |").split(" | ")[1:]))
    assert cells["b_fvd_16_to_others"] == "~~90~~" and cells["fvd_spread_16_to_others"] == "130 ?"
    assert cells["action"] == "**0.5**" and cells["colour"] == "0.5" and cells["scene"] == "(1)"
    assert cells["frechet_stills_to_others"] == "*99*"
    assert cells["border_ratio |"] == "0.9"  # further from 1, the seamless one
    counts = module.counts(
        {"undamaged": rows["undamaged"], **{d: rows[d] for d in module.DAMAGES}, "other_stories": same}
    )
    assert (counts["bold"], counts["chance"], counts["better"]) == (1, 1, 1) and counts["wrong"] > 1


def test_no_damage_of_the_record_moved_the_wrong_way_where_it_had_to_be_seen():
    module = _load(EXPERIMENTS / "metrics" / "run.py")
    rows = json.loads((EXPERIMENTS / "metrics" / "results.json").read_text())["rows"]
    judged = [right for moved in module.verdicts(rows).values() for right in moved.values()]
    assert len(judged) == 39 and all(judged)


def test_rows_of_another_protocol_are_refused(telling, tmp_path):
    def record(**protocol):
        return telling.protocol({"nuwa_xl": {name: {"protocol": protocol} for name in ("b_fvd_16", "story_exact")}})

    file = tmp_path / "protocols.json"
    telling.keep_protocol(file, "226", record(videos=8, weights="a"))
    telling.keep_protocol(file, "1024", record(videos=4, weights="a"))
    telling.keep_protocol(file, "226", record(videos=8, weights="a"))
    assert json.loads(file.read_text())["226"] == {"b_fvd_16": {"videos": 8, "weights": "a"}}
    with pytest.raises(SystemExit, match="b_fvd_16 of 226 frames has been read with another weights"):
        telling.keep_protocol(file, "226", record(videos=8, weights="b"))
    assert set(json.loads(file.read_text())) == {"226", "1024"}


def test_rows_made_again_lie_apart_and_are_told_beside_those_kept(tmp_path, monkeypatch):
    module = _load(EXPERIMENTS / "table2b" / "run.py")
    table, places = module.study.study_table, {}
    for name, more in (("kept", ()), ("anew", ("--anew",)), ("fid", ("--inception=f.pth",))):
        monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", *more])
        runner = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
        places[name] = runner.results, runner.workdir(module.STUDY.arms[0], 0)
        network = f"--inception={pathlib.Path('f.pth').resolve()}"  # commands run in another folder
        assert (network in runner._flags(tmp_path, 226, ("nuwa_xl",))) == (name == "fid")
        assert runner.comparable == (name == "anew")
    monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", "--anew", "--stories=2"])
    assert not module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, "")).comparable
    assert len({results for results, _ in places.values()}) == 3
    assert places["anew"][1] != places["kept"][1] == places["fid"][1]  # trained again; with FID the same training, told
    kept = {f"up/{seed}/226": {"exact": 0.5, "b_fvd_16": 100.0, "b_fvd_16_pooled": 10.0} for seed in range(3)}
    anew = {"up/0/226": {"exact": 0.5, "b_fvd_16": 101.0}, "up/1/226": {"exact": 0.25, "b_fvd_16": 100.0}}
    said = table.apart(module.STUDY, kept, anew).split("\n")
    assert said[0] == "2 of 3 kept rows were made again:"
    assert "  exact: median 25.0%, at most 50.0% (up/1/226: 0.5 -> 0.25)" in said
    assert "  b_fvd_16: median 0.5%, at most 1.0% (up/0/226: 100 -> 101)" in said and len(said) == 3
    assert "b_fvd_16 | b_fvd_16_pooled |" in table.table(module.STUDY, kept)
