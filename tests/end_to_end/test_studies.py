"""The studies in experiments/: every arm is a config that can be trained, and a dry run goes from start to table."""

import ast
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

from flax import traverse_util
import jax
import numpy as np
from PIL import Image
import pytest
import safetensors

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import networks
from nuwaxl_jax.evaluation import stories
from nuwaxl_jax.hierarchy import strategies

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDIES = ("table1", "table2a", "table2b", "table2c", "table2d", "ours", "shipped")


def _load(path):
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_config_that_trains_and_a_way_that_is_told(name, toons_presets):
    study = _load(ROOT / "experiments" / name / "run.py").STUDY
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names) and study.folder == ROOT / "experiments" / name
    trained = set()
    for arm in study.arms:
        config = toons_presets.get_config(study.preset)
        stages = study.stages or ("denoiser",)  # finished weights: what trains such a network is a config too
        fields = [*arm.train, *arm.sample, f"train.stages={stages!r}"]
        flat = {}
        for field in fields:
            key, value = field.split("=", 1)
            config_lib.check_field(key)
            flat[key] = _value(value)
        config.update_from_flattened_dict(flat)
        config_lib.validate_training(config)
        assert arm.way in stories.WAYS and (not arm.like or arm.like in names)
        if not arm.like:
            assert arm.train not in trained, "two arms that are the same"
            trained.add(arm.train)


def test_every_arm_has_place_for_what_it_starts_from(toons_presets):
    def shapes(*fields):
        config = toons_presets.get_config("study")
        config.update_from_flattened_dict({key: _value(value) for key, value in (f.split("=", 1) for f in fields)})
        tree = jax.eval_shape(networks.build(config).init_denoiser, jax.random.key(0))
        return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}

    start = {
        path: shape for path, shape in shapes().items() if "level_embedding" not in path
    }  # as study_export.write has it
    studies = [_load(ROOT / "experiments" / name / "run.py").STUDY for name in STUDIES]
    kinds = ("unet.channel", "mtd.", "hierarchy.depth", "hierarchy.segment_length", "text.", "vae.latent")
    arms = {tuple(f for f in arm.train if f.startswith(kinds)) for s in studies if s.start == "image" for arm in s.arms}
    assert len(arms) > 4
    for fields in arms:
        made = shapes(*fields)
        assert {path: made[path] for path in start} == start, fields


@pytest.mark.parametrize("presets", ["toons", "videos"])
def test_arms_train_on_as_many_frames(presets):
    """A step's clips times the steps of all networks, within a hundredth (a third of 500 steps is no whole number)."""
    for name in ("table1", "table2b", "table2c", "table2d", "ours"):
        counts = {}
        for arm in _load(ROOT / "experiments" / name / "run.py").STUDY.arms:
            if arm.like:
                continue
            config = _load(ROOT / "configs" / f"{presets}.py").get_config("study")
            config.update_from_flattened_dict(dict((f.split("=", 1)[0], _value(f.split("=", 1)[1])) for f in arm.train))
            stage, levels = config.train.denoiser, config.hierarchy.depth
            networks_of = levels if config.mtd.weights == "per_level" else 1
            counts[arm.name] = stage.num_steps * stage.batch_size * stage.clip_length * networks_of
        first = next(iter(counts.values()))
        assert all(abs(count / first - 1) < 0.01 for count in counts.values()), (name, counts)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("asked", ["study", "dry run", "other videos"])
def test_every_arm_can_be_told_at_every_length(name, asked, monkeypatch, toons_presets, tmp_path):
    module = _load(ROOT / "experiments" / name / "run.py")
    more = {"dry run": ["--dry_run"], "other videos": ["--config=configs/videos.py:study"]}.get(asked, [])
    if not module.STUDY.stages and asked == "other videos":
        return  # finished weights carry their own
    monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", *more])
    runner = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
    assert runner.lengths and max(runner.lengths) <= (40 if asked == "dry run" else 3376)
    for arm in module.STUDY.arms:
        owner = next(other for other in module.STUDY.arms if other.name == (arm.like or arm.name))
        file, preset = runner.config.rsplit(":", 1)
        preset = preset if module.STUDY.stages else module.STUDY.preset  # finished weights come with theirs
        presets = toons_presets if pathlib.Path(file).name == "toons.py" else _load(ROOT / file)
        config = presets.get_config(preset)
        fields = (*runner.fields, *owner.train, *arm.sample, "data.path='videos'")
        fields += (f"train.stages={module.STUDY.stages or ('denoiser',)!r}",)
        config.update_from_flattened_dict({key: _value(value) for key, value in (f.split("=", 1) for f in fields)})
        config_lib.validate_training(config)
        strategy = stories.GENERATORS.get(arm.way, {}).get("hierarchy.strategy", "diffusion_over_diffusion")
        tree = config.hierarchy
        for frames in runner.lengths if arm.way in stories.GENERATORS else ():
            levels = strategies.plans(strategy, frames, tree.segment_length, tree.depth, tree.overlap)
            assert {int(i) for level in levels for i in level.frame_index.flat} >= set(range(frames))


@pytest.mark.parametrize("study, presets", [("ours", "toons"), ("ours", "videos"), ("shipped", "toons")])
def test_half_and_twice_the_steps_are(study, presets):
    study = _load(ROOT / "experiments" / study / "run.py").STUDY
    given = _load(ROOT / "configs" / f"{presets}.py").get_config(study.preset).sampler.steps
    arms = {arm.name: arm.sample for arm in study.arms}
    for name, times in (("half the steps", 0.5), ("twice the steps", 2)):
        assert _value(arms[name][0].removeprefix("sampler.steps=")) == tuple(round(n * times) for n in given)


def _value(text):
    """As flags read it: numbers, tuples and booleans, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _dry_run(study, arm, work, *flags):
    """What a dry run of one arm with one seed prints, and the row that it writes."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore")
    command = [sys.executable, str(ROOT / "experiments" / study / "run.py"), "--dry_run", f"--only={arm}"]
    command += ["--seeds=0", f"--work={work}", "--stories=1", "--frames=10", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"| {arm} | 10 | 1 |" in done.stdout
    [results] = work.rglob(f"{study}/*/results.json")
    [row] = json.loads(results.read_text()).values()
    return done.stdout, row


@pytest.mark.slow
def test_dry_runs_train_tell_and_tabulate_and_go_on_from_what_is_kept(tmp_path):
    flags = ("--jobs=2", "--kept=64")
    out, row = _dry_run("table2b", "down_up, line", tmp_path, *flags)
    assert "trained in" in out
    assert {"scene", "denoising_1", "calls"} <= set(row) and "seconds" not in row  # two jobs: no time of its own
    with safetensors.safe_open(next(tmp_path.rglob("image-0.safetensors")), "numpy") as start:
        names = list(start.keys())  # an arm's own start of temporal layers must count, and its number of levels
    assert any(name.startswith("vae/") for name in names)
    assert not [name for name in names if "temporal" in name or "level_embedding" in name]
    for study, arm in (("table1", "tree"), ("table2c", "depth 3"), ("table2d", "16 frames"), ("ours", "as it is")):
        assert _dry_run(study, arm, tmp_path, *flags)[1] == row  # one arm of five studies
    assert len(list(tmp_path.rglob("run-*/denoiser"))) == 1
    out, _ = _dry_run("table2b", "down_up, line", tmp_path, *flags)
    assert "trained in" not in out


@pytest.mark.slow
@pytest.mark.parametrize("study, arm, figures", [("table2a", "identity", {"psnr"}), ("shipped", "tree", {"calls"})])
def test_dry_runs_of_a_vae_and_of_finished_weights(study, arm, figures, tmp_path):
    _, row = _dry_run(study, arm, tmp_path)
    assert figures | {"scene", "weights"} <= set(row)


def test_the_page_of_results_is_what_the_data_give():
    page = _load(ROOT / "experiments" / "results_page.py")
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "python experiments/results_page.py"


def test_rows_of_another_data_set_or_size_are_no_rows_of_the_study(tmp_path, monkeypatch):
    module = _load(ROOT / "experiments" / "table2b" / "run.py")
    places = []
    for more in (
        [],
        ["--set=data.path=a"],
        ["--set=data.path=b"],
        ["--config=configs/videos.py"],
        ["--stories=2"],
        ["--kept=0"],
    ):
        monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", *more])
        places.append(module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, "")).results)
    assert places[0] == ROOT / "experiments" / "table2b" / "results.json" and len(set(places)) == len(places)
    assert all(tmp_path in place.parents for place in places[1:])


def test_an_arm_is_bold_where_its_differences_seed_by_seed_leave_out_0():
    module = _load(ROOT / "experiments" / "table2b" / "run.py")
    seeds = (0.2, 0.5, 0.9)  # what the seeds have in common is far larger than what the arms differ by
    rows = {}
    for seed, base in enumerate(seeds):
        rows[f"down_up/{seed}/226"] = {"exact": base}
        rows[f"up/{seed}/226"] = {"exact": base - 0.1 + 0.001 * seed}
        rows[f"none/{seed}/226"] = {"exact": base + (0.1, -0.1, 0.05)[seed]}
    text = module.study.study_table.table(module.STUDY, rows)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.split("\n")}
    mean, half = 0.5333, 4.302653 * 0.351188 / 3**0.5  # Student's t of two degrees of freedom; the seeds' spread
    assert f"| {mean:.4g} ± {half:.2g} |" in lines["down_up"]
    assert "**" in lines["up"] and "**" not in lines["none"] and "**" not in lines["down_up"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_make_nothing_bold_and_no_interval(seeds):
    module = _load(ROOT / "experiments" / "table2b" / "run.py")
    rows = {f"down_up/{seed}/226": {"exact": 0.1 + 0.001 * seed} for seed in range(seeds)}
    rows |= {f"up/{seed}/226": {"exact": 0.9} for seed in range(seeds)}
    lines = module.study.study_table.table(module.STUDY, rows).split("\n")
    assert lines[3].startswith(f"| up | 226 | {seeds} |") and "| 0.9 |" in lines[3] and "±" not in lines[2]


def test_an_arm_without_chance_has_no_interval_and_is_told_of():
    module = _load(ROOT / "experiments" / "table2b" / "run.py")
    rows = {f"down_up/{seed}/226": {"exact": 0.9 + 0.01 * seed} for seed in range(3)}
    same = lambda seed: {"exact": 0.7750001, "code": {"commit": str(seed)}, "seconds": 1.0 + seed}
    rows |= {f"up/{seed}/226": same(seed) for seed in range(3)}  # the float mean of three is not one of them
    lines = module.study.study_table.table(module.STUDY, rows).splitlines()
    assert lines[3] == "| up | 226 | 3 | **0.775** |"
    assert lines[-1].startswith("The same to the bit") and lines[-1].endswith(": up (226 frames).")
    rows["up/1/226"] = {"exact": 0.7750002}
    assert "to the bit" not in module.study.study_table.table(module.STUDY, rows)


def test_rows_of_one_seed_and_two_trainings_are_told_of():
    module = _load(ROOT / "experiments" / "table1" / "run.py")
    chance = iter(range(1000))
    row = lambda error: {"exact": 0.5 + 0.001 * next(chance), "denoising_0": error, "denoising_1": 0.2}
    rows = {f"{arm}/{seed}/{n}": row(0.1) for arm in ("tree", "hierarchy-2") for seed in range(3) for n in (16, 256)}
    rows |= {f"tree, full noise/{seed}/16": row(0.1) for seed in range(2)}
    assert module.study.study_table.mixed(module.STUDY, rows) == []
    rows["hierarchy-2/1/256"] = row(0.11)
    rows["tree, full noise/0/16"] = row(0.11)
    said = module.study.study_table.table(module.STUDY, rows).splitlines()[-1]
    assert said.endswith("hierarchy-2 (seeds 1); tree, full noise and tree (seeds 0).")


def test_other_real_stories_stand_below_the_arms_and_are_measured_once(tmp_path, monkeypatch):
    module = _load(ROOT / "experiments" / "table1" / "run.py")
    monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", "--frames=16,256"])
    runner = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
    runner.results, called = tmp_path / "results.json", []
    runner.floors(module.STUDY.arms[0], 0)  # its run is not there
    assert not runner.rows()
    (runner.workdir(module.STUDY.arms[0], 0) / "eval").mkdir(parents=True)
    monkeypatch.setattr(runner, "_command", lambda mode, workdir, *flags: called.append((workdir, flags)))
    record = {"others": {"b_fvd_16": {"value": 1200.0, "protocol": {}}}, "code": {"version": "1"}}
    (runner.workdir(module.STUDY.arms[0], 0) / "eval" / "eval.json").write_text(json.dumps(record))
    for _ in range(2):
        runner.floors(module.STUDY.arms[5], 0)  # an arm of the same run
    assert [flags[:4] for _, flags in called] == [
        (f"--frames={n}", "--stories=4", "--others=4", "--ways=ground_truth") for n in (16, 256)
    ]
    rows = runner.rows() | {"tree/0/16": {"b_fvd_16": 900.0}}
    lines = module.study.study_table.table(module.STUDY, rows).splitlines()
    assert lines[2:5] == ["| tree | 16 | 1 | 900 |", "| other real stories | 16 | - | 1200 |"] + [
        "| other real stories | 256 | - | 1200 |"
    ]


def test_a_story_is_shown_as_every_arm_tells_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    study_plot = _load(ROOT / "experiments" / "study_plot.py")

    for name, grey in (("tree", 50), ("window", 90)):
        rows = np.concatenate([np.full((8, 64, 3), level, np.uint8) for level in (200, grey)])  # the real one above
        Image.fromarray(rows).save(tmp_path / f"{name}.png")
    sheet = np.asarray(study_plot.stories({n: tmp_path / f"{n}.png" for n in ("tree", "window")}))
    assert sheet.shape[0] == 24
    assert [np.unique(row).tolist() for row in np.split(sheet[:, -64:], 3)] == [[200], [50], [90]]
    assert (sheet[:, :-64] < 128).any()  # names


def test_what_is_counted_is_never_bold():
    module = _load(ROOT / "experiments" / "table1" / "run.py")
    rows = {f"{arm}/{seed}/16": {"calls": n} for arm, n in (("tree", 8), ("hierarchy-2", 16)) for seed in range(3)}
    assert "**" not in module.study.study_table.table(module.STUDY, rows)


def test_seconds_stand_beside_the_first_arm_s():
    module = _load(ROOT / "experiments" / "table1" / "run.py")
    seconds = {arm.name: {"seconds": 2.0 + place} for place, arm in enumerate(module.STUDY.arms)}
    record = {"frames": {"1024": seconds, "16": {name: {"seconds": 0.5} for name in seconds}}}
    lines = module.study.study_table.seconds(module.STUDY, record).split("\n")
    assert lines[0] == "| seconds | 16 frames | 1024 frames |" and lines[2] == "| tree | 0.5 | 2.0 |"
    assert lines[4] == "| window, 8 frames given | 0.5 (1.0x) | 4.0 (2.0x) |"
    del record["frames"]["16"]["window, 8 frames given"]  # an arm that is younger than the clock's record
    fewer = module.study.study_table.seconds(module.STUDY, record).split("\n")
    assert fewer == [line for line in lines if not line.startswith("| window, 8 frames given")]


def test_finished_weights_are_told_with_a_seed_s_noise_and_trained_by_nothing(tmp_path, monkeypatch):
    module = _load(ROOT / "experiments" / "shipped" / "run.py")

    def runner(*more):
        monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", *more])
        made = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
        monkeypatch.setattr(made, "_command", lambda mode, workdir, *flags: called.append((mode, workdir, flags)))
        monkeypatch.setattr(module.study.study_telling, "row", lambda *_: {"exact": 1.0})
        return made

    called, own = [], runner()
    assert own.results == ROOT / "experiments" / "shipped" / "results.json"
    monkeypatch.setattr(own, "results", tmp_path / "results.json")
    folder = own.workdir(module.STUDY.arms[0], 2) / "eval"
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps({"metrics": {}}))
    (folder / "story0.png").write_bytes(b"picture")
    own.run_all(["window"], [2])
    [(mode, workdir, flags)] = called
    assert (mode, workdir) == ("eval", folder.parent) and list(own.rows()) == ["window/2/1024"]
    assert {f"--weights={own.weights}", "--config.seed=2", "--ways=ground_truth,autoregressive"} <= set(flags)
    assert own.pictures(2)["window"].read_bytes() == b"picture" and list(own.pictures(2)) == ["window"]
    assert own.weights.endswith("assets/toons_small.safetensors")
    with pytest.raises(SystemExit, match="--weights: .*mine.safetensors is not there;"):
        runner(f"--weights={tmp_path}/mine.safetensors")
    places = {own.results, ROOT / "experiments" / "shipped" / "results.json"}, {folder.parent}
    for content in (b"first", b"trained anew"):  # what was told by a file of this name before is not told by this one
        (tmp_path / "mine.safetensors").write_bytes(content)
        others = runner(f"--weights={tmp_path}/mine.safetensors")
        for known, place in zip(places, (others.results, others.workdir(module.STUDY.arms[0], 2))):
            assert place not in known
            known.add(place)


def test_nothing_begins_after_an_arm_has_failed(tmp_path, monkeypatch):
    module = _load(ROOT / "experiments" / "table2d" / "run.py")
    monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}"])
    runner = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
    began = []

    def run(arm, seed):
        began.append((arm.name, seed))
        if len(began) == 2:
            raise SystemExit("ended with status 1")

    monkeypatch.setattr(runner, "run", run)
    with pytest.raises(SystemExit, match="status 1"):
        runner.run_all([arm.name for arm in module.STUDY.arms], range(100))
    assert began == [("16 frames", 0), ("8 frames", 0)]


def test_arms_whose_examples_are_the_same_share_what_is_encoded_once(tmp_path, monkeypatch):
    module = _load(ROOT / "experiments" / "ours" / "run.py")
    monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path}", "--jobs=2"])
    runner = module.study.Runner(module.STUDY, module.study.arguments_of(module.STUDY, ""))
    called = []
    monkeypatch.setattr(runner, "_command", lambda mode, workdir, *flags: called.append((mode, flags)))

    def folder(*fields, seed=0):
        called.clear()
        runner._train(tmp_path, seed, ("denoiser",), fields)
        [(first, encoding), (second, training)] = called
        [cache] = [flag for flag in encoding if "data.cache=" in flag]
        assert (first, second) == ("data", "train") and cache in training
        return cache

    same = folder()
    assert folder("diffusion.cond_noise=0.1") == same and folder("unet.injection=up") == same
    others = [folder("hierarchy.handover=pixel"), folder("mtd.weights=per_level"), folder(seed=1)]
    others += [folder("data.level_weights=(0.0, 0.0, 1.0)"), folder("train.denoiser.clip_length=8")]
    assert len({same, *others}) == 6
