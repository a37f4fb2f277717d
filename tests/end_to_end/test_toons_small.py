"""The command that makes the shipped model again: what it runs, in which order, and going on after a stop."""

import hashlib
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _module():
    spec = importlib.util.spec_from_file_location("remake", ROOT / "experiments" / "toons_small" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def remake(monkeypatch, tmp_path):
    """(call(*arguments) -> commands run, failing: modes that end with a status)."""
    module = _module()
    ran, failing = [], {}

    def run(line, **options):
        del options
        [mode] = [flag.removeprefix("--mode=") for flag in line if flag.startswith("--mode=")]
        ran.append((mode, line))
        return types.SimpleNamespace(returncode=failing.get(mode, 0))

    monkeypatch.setattr(module.subprocess, "run", run)

    def call(*arguments, **replaced):
        ran.clear()
        for name, value in replaced.items():
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr("sys.argv", ["run.py", f"--work={tmp_path / 'work'}", *arguments])
        module.main()
        return list(ran)

    return call, failing, ran


def _stages(line):
    return [flag.split("=", 1)[1] for flag in line if "train.stages" in flag]


def test_all_stages_in_order_and_nothing_twice(remake, tmp_path):
    call, _, _ = remake
    ran = call()
    once = ["data", "train", "export"]
    assert [mode for mode, _ in ran] == ["train", *once, *once, "eval", "sample"]
    assert _stages(ran[0][1]) == ["('image_vae', 'vae')"] and _stages(ran[2][1]) == ["('image_denoiser', 'denoiser')"]
    assert call() == []
    # The second preset goes on from the first one's weights, in a folder of its own.
    (_, first), (_, exported), (_, second) = ran[2], ran[3], ran[5]
    assert _stages(second) == ["('denoiser',)"] and not [flag for flag in first if "init_from" in flag]
    [weights] = [flag.split("=", 1)[1] for flag in exported if flag.startswith("--weights=")]
    assert f"--config.train.init_from={weights}" in second and weights == str(tmp_path / "work" / "small.safetensors")
    for flag in ("--config=", "--workdir=", "--config.data.cache="):
        of_first, of_second = ([part for part in line if part.startswith(flag)] for line in (first, second))
        assert of_second and of_first != of_second, flag
    assert f"--weights={tmp_path / 'work' / 'toons_small.safetensors'}" in ran[6][1]


@pytest.mark.parametrize("presets", ["small,moton", "small,small"])
def test_presets_that_cannot_be_are_refused_before_the_first(remake, capsys, presets):
    call, _, ran = remake
    with pytest.raises(SystemExit) as refused:
        call(f"--presets={presets}")
    assert refused.value.code == 2 and not ran
    assert f"--presets={presets}: each once, of tiny," in capsys.readouterr().err


def test_from_weights_the_denoiser_alone_and_without_kept_latents(remake):
    call, _, _ = remake
    ran = call("--start=shipped", "--presets=motion", "--kept=0", "--set=train.denoiser.num_steps=7")
    assert [mode for mode, _ in ran] == ["train", "export", "eval", "sample"]
    assert _stages(ran[0][1]) == ["('denoiser',)"] and "--config.train.denoiser.num_steps=7" in ran[0][1]
    [start] = [flag for flag in ran[0][1] if "init_from" in flag]
    assert pathlib.Path(start.split("=", 1)[1]).is_file()


def test_what_it_went_on_from_is_kept_and_other_weights_are_refused(remake, tmp_path, capsys):
    call, _, _ = remake
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"some weights")
    call(f"--start={start}", "--kept=0")
    kept = json.loads((tmp_path / "work" / "made.json").read_text())["start"]
    assert kept == {"file": "start.safetensors", "sha256": hashlib.sha256(b"some weights").hexdigest()}
    assert call(f"--start={start}", "--kept=0") == []
    start.write_bytes(b"others")
    with pytest.raises(SystemExit) as refused:
        call(f"--start={start}", "--kept=0")
    assert refused.value.code == 2 and "went on from other weights" in capsys.readouterr().err
    (tmp_path / "work" / "toons_small.safetensors").write_bytes(b"others")  # what was made here, published
    assert call(f"--start={start}", "--kept=0") == []
    with pytest.raises(SystemExit) as refused:
        call("--start=nowhere.safetensors")
    assert refused.value.code == 2 and "--start: " in capsys.readouterr().err


def test_a_commits_shipped_weights_are_taken_out_of_the_history(tmp_path, monkeypatch, capsys):
    module, work = _module(), tmp_path / "work"
    asset = tmp_path / "repository" / "assets" / "toons_small.safetensors"
    asset.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", asset.parents[1])
    monkeypatch.setattr(module, "ASSET", asset)
    work.mkdir()
    git = ["git", "-C", str(asset.parents[1]), "-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for weights in (b"before", b"after"):
        asset.write_bytes(weights)
        for words in (["add", "."], ["commit", "--quiet", "-m", "weights"]):
            subprocess.run([*git, *words], check=True)
    said = subprocess.run([*git, "rev-list", "HEAD"], check=True, capture_output=True, text=True).stdout
    commit = said.split()[1][:8]
    taken = module._weights(commit, work)
    assert taken == work / f"toons_small-{commit}.safetensors" and taken.read_bytes() == b"before"
    shutil.rmtree(asset.parents[1] / ".git")
    assert module._weights(commit, work) == taken  # once taken, the history is not asked again
    with pytest.raises(SystemExit) as refused:
        module._weights("1234567", work)
    assert refused.value.code == 2 and "--start: git show 1234567:assets/toons_small" in capsys.readouterr().err


def test_another_number_of_cores_goes_on(remake, monkeypatch):
    call, _, _ = remake
    assert any("--cpu_devices=" in flag for flag in call()[0][1])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3, 4}, raising=False)
    assert call() == []


def test_what_was_stopped_goes_on_there(remake):
    call, failing, ran = remake
    failing["data"] = 42
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 42 and [mode for mode, _ in ran] == ["train", "data"]
    failing.clear()
    assert [mode for mode, _ in call()][:3] == ["data", "train", "export"]


def test_a_folder_made_otherwise_is_refused(remake, capsys):
    call, _, _ = remake
    call()
    with pytest.raises(SystemExit) as refused:
        call("--set=seed=1")
    assert refused.value.code == 2 and "--work: vae in" in capsys.readouterr().err


def test_published_is_what_was_made_and_names_no_place(remake, tmp_path, monkeypatch):
    call, _, _ = remake
    work, here, asset = tmp_path / "work", tmp_path / "here", tmp_path / "shipped.safetensors"
    asset.write_bytes(b"before")
    here.mkdir()
    call("--start=shipped", HERE=here, ASSET=asset)
    (work / "told" / "eval").mkdir(parents=True)
    for name in ("eval.json", "curves.png", "story0.png"):
        (work / "told" / "eval" / name).write_text(name)
    (work / asset.name).write_bytes(b"made")
    drawn = []
    monkeypatch.setitem(sys.modules, "pictures", types.SimpleNamespace(draw=drawn.append))
    assert call("--start=shipped", "--publish") == []
    assert asset.read_bytes() == b"made" and drawn == [work / "told" / "two_friends.mp4"]
    assert {file.name for file in here.iterdir()} == {"eval.json", "curves.png", "story0.png", "made.json"}
    made = (here / "made.json").read_text()
    assert str(tmp_path) not in made and str(ROOT) not in made
    assert "--workdir=WORK/motion" in json.loads(made)["motion_denoiser"]["command"]
