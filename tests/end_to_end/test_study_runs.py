"""What studies share and what they must not: runs of equal arms, and the weights that arms start from."""

import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _load(path):
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _untrained(study, tmp_path, monkeypatch):
    """(a study, its runner for four stories of 256 frames, which trains nothing)."""
    module = _load(ROOT / "experiments" / study / "run.py")
    monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", "--frames=256", "--stories=4"])
    runner = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
    runner.results = tmp_path / study / "results.json"
    monkeypatch.setattr(runner, "_start", lambda seed: tmp_path / "start")
    monkeypatch.setattr(runner, "_train", lambda workdir, *_: workdir.mkdir(parents=True, exist_ok=True))
    return module, runner


def test_equal_arms_of_two_studies_are_trained_and_told_once(tmp_path, monkeypatch):
    told = []

    def run(study, name):
        module, runner = _untrained(study, tmp_path, monkeypatch)
        monkeypatch.setattr(
            runner, "_tell", lambda arm, *_: told.append((study, arm.name)) or ({"exact": len(told)}, {})
        )
        runner.run(next(arm for arm in module.STUDY.arms if arm.name == name), 0)
        [row] = (value for key, value in runner.rows().items() if key.startswith(f"{name}/"))
        return row["exact"]

    assert run("table1", "tree") == run("table2c", "depth 3") == run("table2d", "16 frames") == 1
    assert run("ours", "half the steps") == 2 and run("table2c", "depth 2") == 3  # sampled, or trained, otherwise
    assert told == [("table1", "tree"), ("ours", "half the steps"), ("table2c", "depth 2")]


def test_rows_of_an_equal_arm_are_refused_where_they_were_read_otherwise(tmp_path, monkeypatch):
    def run(study, name, weights):
        module, runner = _untrained(study, tmp_path, monkeypatch)
        monkeypatch.setattr(runner, "_tell", lambda *_: ({"exact": 1.0}, {"b_fvd_16": {"weights": weights}}))
        runner.run(next(arm for arm in module.STUDY.arms if arm.name == name), 0)

    run("table2c", "depth 3", "old")
    run("table2d", "8 frames", "new")
    with pytest.raises(SystemExit, match="b_fvd_16 of 256 frames has been read with another weights"):
        run("table2d", "16 frames", "new")  # table2c's row, of the old weights


def test_arms_start_from_weights_of_their_own_data_and_sizes(tmp_path, monkeypatch):
    module = _load(ROOT / "experiments" / "table2b" / "run.py")
    trained = []

    def start(*more):
        monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", *more])
        runner = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
        monkeypatch.setattr(runner, "_train", lambda workdir, *_: trained.append(workdir))
        monkeypatch.setattr(module.study.study_export, "call", lambda source, what, file, vae=None: file.touch())
        return runner._start(0)

    videos = "--config=configs/videos.py:study"
    asked = [(), (videos, "--set=data.path=A"), (videos, "--set=data.path=B"), ("--dry_run", videos)]
    files = []
    for more in asked:
        monkeypatch.setattr(
            pathlib.Path, "touch", lambda file: (file.parent.mkdir(parents=True, exist_ok=True), file.write_text(""))
        )
        files.append(start(*more))
    assert len(set(files)) == len(files) and files[0] == tmp_path / "toons.py-study" / "image-0.safetensors"
    before = len(trained)
    assert start(videos, "--set=data.path=A") == files[1] and len(trained) == before


def test_where_no_other_real_stories_are_the_arms_have_their_table_and_the_command_fails(tmp_path, monkeypatch, capsys):
    module, _ = _untrained("table2b", tmp_path, monkeypatch)
    study, runner_of = module.study, module.study.Runner
    monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", "--set=seed=3", "--only=up", "--seeds=0"])
    monkeypatch.setattr(runner_of, "run_all", lambda *_: None)
    monkeypatch.setattr(runner_of, "rows", lambda _: {"up/0/226": {"exact": 0.25, "curve": {}}})
    monkeypatch.setattr(runner_of, "pictures", lambda *_: {})

    def refuse(*_):
        raise SystemExit("16 test videos are wanted, 10 are there")

    monkeypatch.setattr(runner_of, "floors", refuse)
    monkeypatch.setitem(sys.modules, "study_plot", type("P", (), {"draw": lambda *_: _Nothing()}))
    with pytest.raises(SystemExit, match="10 are there"):
        study.main(module.STUDY, "")
    assert "| up | 226 | 1 | 0.25 |" in capsys.readouterr().out


class _Nothing:
    """A picture that is not kept."""

    def save(self, path):
        self.path = path


def test_pictures_stay_where_readers_of_videos_change(tmp_path, monkeypatch):
    module, runner = _untrained("table2b", tmp_path, monkeypatch)
    arm = module.STUDY.arms[0]
    before = runner._picture(arm, tmp_path, 226)
    told = []
    monkeypatch.setattr(runner, "_tell", lambda *_: told.append(1) or ({"exact": 1.0}, {}))
    for _ in range(2):
        runner._told(arm, tmp_path, 0, 226)
    monkeypatch.setattr(module.study.versions, "ALL", {"story_score": 99})
    runner._told(arm, tmp_path, 0, 226)
    assert len(told) == 2 and runner._picture(arm, tmp_path, 226) == before
