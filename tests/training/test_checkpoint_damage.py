"""Damage of any file of a checkpoint is found, named in one loud line, and stepped over; nothing is deleted."""

import gc
import json
import os
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import manifest
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import step_folders

pytestmark = pytest.mark.slow

CLASSES = {
    "hashes": "SHA256SUMS",
    "step metadata": "_CHECKPOINT_METADATA",
    "commit marker": "commit_success.txt",
    "commit marker of the state": "state/commit_success.txt",
    "tree of the state": "state/_METADATA",
    "tree of the average": "ema/_METADATA",
    "shardings": "state/_sharding",
    "array metadata": "state/array_metadatas/*",
    "index of the state": "state/manifest.ocdbt",
    "index of the average": "ema/manifest.ocdbt",
    "index of a process": "state/ocdbt.process_0/manifest.ocdbt",
    "data of the state": "state/d/*",
    "data of the average": "ema/d/*",
    "data of a process": "ema/ocdbt.process_0/d/*",
    "meta": "meta/metadata",
}
DAMAGE = {
    "flipped": lambda path, rng: _flip(path, int(rng.integers(path.stat().st_size))),
    "truncated": lambda path, rng: path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))]),
    "deleted": lambda path, rng: path.unlink(),
}


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def _directory(workdir):
    return pathlib.Path(checkpoint.stage_directory(workdir, "linear"))


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A workdir with steps 10, 20, 30."""
    return tmp_path_factory.mktemp("three")


@pytest.fixture
def steps(linear, three, tmp_path):
    """A copy of it, and the abstract state."""
    mesh = partitioning.make_mesh(fsdp=4)
    if not _directory(three).exists():
        linear.save(three, [10, 20, 30], mesh)
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run", linear.state_at(mesh)[1], lambda step: linear.state_at(mesh, step)[0]


def test_classes_name_every_file(steps):
    folder = _directory(steps[0]) / "30"
    named = {path for pattern in CLASSES.values() for path in folder.glob(pattern)}
    others = {p for p in folder.rglob("*") if p.is_file()} - named
    # The same classes of the other items.
    assert {str(p.relative_to(folder)) for p in others if "ocdbt.process_0" not in str(p)} == {
        "ema/_sharding",
        "ema/array_metadatas/process_0",
        "ema/commit_success.txt",
        "meta/commit_success.txt",
    }


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("what", CLASSES)
def test_damage_of_each_class_is_stepped_over(linear, steps, capsys, what, damage):
    workdir, abstract, state_of = steps
    directory = _directory(workdir)
    rng = np.random.default_rng(sum(map(ord, what + damage)))
    path = sorted((directory / "30").glob(CLASSES[what]))[0]
    DAMAGE[damage](path, rng)
    state, meta = linear.restore(workdir, abstract)
    _equal(state, state_of(20))
    assert meta["step"] == 20 and meta["data"] == {"next_batch": 20}
    lines = [line for line in capsys.readouterr().err.splitlines() if "DAMAGED CHECKPOINT" in line]
    assert len(lines) == 1 and f"{directory}/30 (" in lines[0] and os.path.basename(path) in lines[0]
    assert "set aside as 30.damaged; back to step 20, 10 steps are trained again" in lines[0]
    assert sorted(os.listdir(directory)) == ["10", "20", "30.damaged"]
    _equal(linear.restore(workdir, abstract)[0], state_of(20))  # and silently from then on
    assert "DAMAGED" not in capsys.readouterr().err


def test_every_file_at_many_places(steps):
    folder = _directory(steps[0]) / "30"
    rng, tried = np.random.default_rng(0), 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for place in {0, len(data) - 1, *rng.integers(len(data), size=6).tolist()}:
            _flip(path, place)
            found = step_folders.problem(str(folder))
            assert path.name in found, (path, place)
            path.write_bytes(data)
            tried += 1
        path.write_bytes(data + b"\0")
        assert path.name in step_folders.problem(str(folder))
        path.write_bytes(data)
    assert tried > 200 and not step_folders.problem(str(folder))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("what", ["hashes", "data of the state", "meta"])
def test_with_no_other_step_one_line_says_so_and_nothing_is_moved(linear, steps, what, damage):
    workdir, abstract, _ = steps
    directory = _directory(workdir)
    shutil.rmtree(directory / "10")
    shutil.rmtree(directory / "20")
    DAMAGE[damage](sorted((directory / "30").glob(CLASSES[what]))[0], np.random.default_rng(0))
    with pytest.raises(checkpoint.CheckpointError, match=r"no good checkpoint \(30: .*\); put a backup") as error:
        linear.restore(workdir, abstract)
    assert "\n" not in str(error.value)
    with pytest.raises(checkpoint.CheckpointError, match="no good checkpoint"):
        checkpoint.settle(workdir, "linear")
    assert os.listdir(directory) == ["30"]


def test_the_newest_two_damaged(linear, steps, capsys):
    workdir, abstract, state_of = steps
    _flip(next((_directory(workdir) / "30" / "state" / "d").iterdir()), 40)
    (_directory(workdir) / "20" / "meta" / "metadata").unlink()
    _equal(linear.restore(workdir, abstract)[0], state_of(10))
    err = capsys.readouterr().err
    assert "20 steps are trained again" in err and "10 steps are trained again" in err
    assert sorted(os.listdir(_directory(workdir))) == ["10", "20.damaged", "30.damaged"]
    with pytest.raises(checkpoint.CheckpointError, match="no complete checkpoint of step 30"):
        linear.restore(workdir, abstract, step=30)


def test_a_second_damaged_folder_of_a_step_gets_another_name(linear, steps):
    workdir, abstract, _ = steps
    directory = _directory(workdir)
    _flip(directory / "30" / "commit_success.txt", 0)
    for name in ("30.damaged", "30.damaged-2"):
        linear.restore(workdir, abstract)
        assert (directory / name).is_dir()
        shutil.copytree(directory / name, directory / "30")


@pytest.mark.parametrize("item", ["ema", "state"])
def test_a_reader_of_averages_steps_back_and_renames_nothing(steps, capsys, item):
    workdir, _, state_of = steps
    _flip(next((_directory(workdir) / "30" / item / "d").iterdir()), 40)
    tree = checkpoint.restore_ema(workdir, "linear")
    good = {"ema": 20, "state": 30}[item]  # it does not read the state
    _equal(tree, state_of(good).ema_params)
    assert sorted(os.listdir(_directory(workdir))) == ["10", "20", "30"]
    assert checkpoint.latest_step(workdir, "linear") == good  # what a card or a cache of results then names
    assert ("using step 20 of linear, 10 steps before it" in capsys.readouterr().err) == (item == "ema")
    if item == "ema":
        with pytest.raises(checkpoint.CheckpointError, match=r"no good checkpoint \(30: ema/d/.*: its SHA-256 differs"):
            checkpoint.restore_ema(workdir, "linear", step=30)


def test_fingerprints_decide_where_no_hashes_are(linear, steps, capsys, failing_reads):
    """Steps of older versions, and those of a save killed before it was sealed."""
    workdir, abstract, state_of = steps
    directory = _directory(workdir)
    for step in ("20", "30"):
        path = directory / step / "meta" / "metadata"
        meta = json.loads(path.read_text())
        del meta["format"]
        if step == "30":
            meta["fingerprints"]["ema"]["params/dense/bias"] ^= 1
        path.write_text(json.dumps(meta))
        (directory / step / "SHA256SUMS").unlink()
    _equal(checkpoint.restore_ema(workdir, "linear"), state_of(20).ema_params)
    os.rename(directory / "20", directory / "20.saving")
    _equal(linear.restore(workdir, abstract)[0], state_of(20))
    assert "30 (1 of 2 arrays are not what was saved, first 'params/dense/bias')" in capsys.readouterr().err
    assert not manifest.problem(str(directory / "20"))  # sealed now
    (directory / "20" / "SHA256SUMS").unlink()
    shutil.rmtree(directory / "20" / "state" / "d")  # of an older version, and Orbax alone notices
    _equal(linear.restore(workdir, abstract)[0], state_of(10))


@pytest.fixture
def failing_reads(monkeypatch):
    """A read that fails leaves Orbax's other reads behind, which then call back into an event loop that is closed."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    yield
    gc.collect()
    time.sleep(0.5)


def test_leftovers_of_killed_saves_go_when_training_starts(linear, steps, capsys):
    workdir, abstract, state_of = steps
    directory = _directory(workdir)
    for name in ("40.orbax-checkpoint-tmp", "40.saving.orbax-checkpoint-tmp", "5.deleting", "10.saving"):
        (directory / name / "state").mkdir(parents=True)
    os.rename(directory / "20", directory / "20.slimming")  # killed between the two renames
    _equal(linear.restore(workdir, abstract)[0], state_of(30))
    assert sorted(os.listdir(directory)) == ["10", "20", "30"]
    assert "left by an interrupted save, removed" in capsys.readouterr().out


def test_a_file_that_may_not_be_read_is_not_damage(steps, monkeypatch):
    workdir, _, _ = steps

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(manifest, "_sha256", refuse)
    with pytest.raises(checkpoint.CheckpointError, match="30: may not be read .* give this user the right"):
        checkpoint.settle(workdir, "linear")
    assert sorted(os.listdir(_directory(workdir))) == ["10", "20", "30"]


def test_hashes_are_those_of_sha256sum(steps):
    listed = manifest.read(str(_directory(steps[0]) / "30"))
    folder = _directory(steps[0]) / "30"
    assert set(listed) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    if shutil.which("sha256sum"):
        assert os.system(f"cd {folder} && sha256sum --status -c SHA256SUMS") == 0


def _train(linear, workdir, **settings):
    return loop.run_stage(
        linear.Task(),
        linear.frozen,
        linear.Numbers(),
        linear.settings(**settings),
        os.path.join(workdir, "linear"),
        mesh=partitioning.make_mesh(fsdp=2),
        seed=11,
        config={"seed": 11},
        interrupt=interrupts.Interrupt(),
    )


def test_a_run_whose_newest_step_is_damaged_ends_as_if_it_were_not(linear, tmp_path, capsys):
    whole = _train(linear, tmp_path / "a", num_steps=15, lr_schedule="constant")
    _train(linear, tmp_path / "b", num_steps=10, lr_schedule="constant")
    _flip(next((_directory(tmp_path / "b") / "10" / "state" / "d").iterdir()), 100)
    _equal(_train(linear, tmp_path / "b", num_steps=15, lr_schedule="constant"), whole)
    captured = capsys.readouterr()
    assert "back to step 5, 5 steps are trained again" in captured.err
    assert "restored step 5," in captured.out
    assert sorted(os.listdir(_directory(tmp_path / "b"))) == ["10", "10.damaged", "15", "5"]


def test_a_finished_stage_is_verified_before_it_is_skipped(steps, capsys):
    workdir, _, _ = steps
    assert checkpoint.settle(workdir, "linear") == 30
    _flip(_directory(workdir) / "30" / "state" / "_METADATA", 9)
    assert checkpoint.settle(workdir, "linear") == 20
    assert "back to step 20" in capsys.readouterr().err
    assert (_directory(workdir) / "30.damaged").is_dir()
    assert checkpoint.settle(workdir / "nowhere", "linear") is None


def test_a_failed_save_is_reported_at_the_next_step(linear, tmp_path, monkeypatch):
    real = step_folders.seal

    def full(path):
        if path.endswith("/10.saving"):
            raise OSError(28, "No space left on device")
        return real(path)

    monkeypatch.setattr(step_folders, "seal", full)
    stopped = []

    class Slow(linear.Numbers):
        def __next__(self):
            stopped.append(self.position)
            time.sleep(0.05)
            return super().__next__()

    with pytest.raises(checkpoint.CheckpointError, match=r"step 10 could not be written \(OSError: .*No space.*is 5\."):
        loop.run_stage(
            linear.Task(),
            linear.frozen,
            Slow(),
            linear.settings(num_steps=500, log_every=500, lr_schedule="constant"),
            str(tmp_path / "linear"),
            mesh=partitioning.make_mesh(),
            seed=11,
            config={},
            interrupt=interrupts.Interrupt(),
        )
    assert stopped[-1] < 100
    assert checkpoint.latest_step(tmp_path, "linear") == 5
