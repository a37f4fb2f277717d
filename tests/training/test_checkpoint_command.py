"""--mode=checkpoint: lists, verifies, slims, converts out and back; a mistake is one line."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import checkpoint_command
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import step_folders


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def run(linear, shared, tmp_path):
    """(workdir with steps 10, 20, 30 of the stage 'linear', its checkpoints)."""
    if not (shared / "linear").exists():
        linear.save(shared, [10, 20, 30], partitioning.make_mesh(fsdp=4), measured={"loss": 0.25})
    shutil.copytree(shared, tmp_path / "run")
    return tmp_path / "run", pathlib.Path(checkpoint.stage_directory(tmp_path / "run", "linear"))


def _said(*args, **kwargs):
    lines = []
    checkpoint_command.run(*args, **kwargs, say=lines.append)
    return lines


def _flip(path, place=40):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_the_list_says_what_there_is_and_where_training_resumes(run):
    workdir, directory = run
    shutil.copytree(directory / "10", directory / "5.damaged")
    (directory / "40.saving.orbax-checkpoint-tmp").mkdir()
    before = sorted(os.listdir(directory))
    lines = _said(workdir)
    assert lines[0] == f"linear: {directory}"
    assert [line.split()[0] for line in lines[1:4]] == ["10", "20", "30"]
    assert all("complete: parameters, EMA, optimiser, data position, loss 0.25" in line for line in lines[1:4])
    assert ["resumes here" in line for line in lines[1:4]] == [False, False, True]
    assert "0.0 MB  left by an interrupted save" in lines[4] and "5.damaged" in lines[5]
    assert sorted(os.listdir(directory)) == before  # it only looks


def test_verify_finds_what_the_list_cannot_see(run):
    workdir, directory = run
    assert all("verified" in line for line in _said(workdir, verify=True)[1:])
    _flip(next((directory / "30" / "state" / "d").iterdir()))
    assert "DAMAGED" not in " ".join(_said(workdir))
    lines = []
    with pytest.raises(checkpoint.CheckpointError, match=r"1 damaged checkpoint\(s\), named above"):
        checkpoint_command.run(workdir, verify=True, say=lines.append)
    assert "DAMAGED (state/d/" in lines[3] and "resumes here" in lines[2]
    assert len(_said(workdir, step=20, verify=True)) == 2
    (directory / "30" / "ema" / "_METADATA").unlink()
    assert "DAMAGED (ema/_METADATA: is missing)" in _said(workdir)[3]  # this it can


def test_slim_keeps_the_averages_and_the_newest_whole(linear, run):
    workdir, directory = run
    averages = checkpoint.restore_ema(workdir, "linear", step=10)
    sizes = {step: checkpoint_command.size(directory / step) for step in ("10", "20", "30")}
    lines = _said(workdir, slim=True)
    assert len(lines) == 2 and "the EMA alone" in lines[0]
    assert all(checkpoint_command.size(directory / step) < 0.6 * sizes[step] for step in ("10", "20"))
    assert checkpoint_command.size(directory / "30") == sizes["30"]
    assert sorted(os.listdir(directory)) == ["10", "20", "30"]
    _equal(checkpoint.restore_ema(workdir, "linear", step=10), averages)
    assert "EMA alone, slimmed" in _said(workdir, verify=True)[1]
    assert not _said(workdir, slim=True)  # nothing is left to do
    abstract = linear.state_at(partitioning.make_mesh())[1]
    assert int(linear.restore(workdir, abstract)[0].step) == 30
    assert "no checkpoint is left that training can resume from" in _said(workdir, step=30, slim=True)[-1]
    with pytest.raises(checkpoint.CheckpointError, match="only slimmed checkpoints, which training cannot resume from"):
        linear.restore(workdir, abstract)


def test_slim_leaves_older_steps_whole_where_the_newest_is_damaged(run):
    workdir, directory = run
    _flip(next((directory / "30" / "state" / "d").iterdir()))
    with pytest.raises(checkpoint.CheckpointError, match="30: is damaged .* the steps before it stay whole"):
        checkpoint_command.run(workdir, slim=True)
    assert all((directory / step / "state").is_dir() for step in ("10", "20", "30"))


@pytest.mark.parametrize("moment", ["written", "first rename", "second rename"])
def test_a_slimming_killed_at_any_moment_loses_nothing(linear, run, monkeypatch, moment):
    workdir, directory = run
    real, calls = os.rename, []

    def rename(a, b):
        calls.append(a)
        if len(calls) > {"written": 0, "first rename": 1, "second rename": 2}[moment]:
            raise KeyboardInterrupt
        real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(step_folders.os, "rename", rename)
        patch.setattr(step_folders.shutil, "rmtree", lambda *args, **kwargs: calls.append("rmtree") or 1 / 0)
        patch.setattr(checkpoint_command.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            checkpoint_command.run(workdir, step=20, slim=True)
    linear.restore(workdir, linear.state_at(partitioning.make_mesh())[1])
    assert sorted(os.listdir(directory)) == ["10", "20", "30"]
    assert all("verified" in line for line in _said(workdir, verify=True)[1:])


def _train(linear, workdir, num_steps, stop=None):
    settings = dict(num_steps=num_steps, lr_schedule="constant", checkpoint_every=1, keep=9)
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


def test_out_and_back_training_goes_on_bit_for_bit(linear, tmp_path):
    whole = _train(linear, tmp_path / "a", 6)
    _train(linear, tmp_path / "b", 3)
    file = str(tmp_path / "state.safetensors")
    assert "step 3 of linear, 11 arrays" in _said(tmp_path / "b", out=file)[0]
    flat = safetensors_numpy.load_file(file)  # any program reads it
    _equal(flat["ema/params/dense/kernel"], checkpoint.restore_ema(tmp_path / "b", "linear")["dense"]["kernel"])
    assert {"state/step", "state/opt_state/1/0/0/mu/dense/kernel"} <= set(flat)
    _said(tmp_path / "c", source=file)
    directory = checkpoint.stage_directory(tmp_path / "c", "linear")
    assert os.listdir(directory) == ["3"] and "verified" in _said(tmp_path / "c", verify=True)[1]
    assert json.loads((tmp_path / "c" / "config.json").read_text()) == {"seed": 11}
    resumed = _train(linear, tmp_path / "c", 6)
    assert jax.tree.structure(resumed) == jax.tree.structure(whole)
    _equal(resumed, whole)
    with pytest.raises(checkpoint.CheckpointError, match="c/linear/checkpoints/3: is there already; choose another"):
        checkpoint_command.run(tmp_path / "c", source=file)


def test_every_type_survives_out_and_back(tmp_path):
    trees = {
        "state": {"params": {"half": np.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "yes": np.array([True, False])}},
        "ema": {"params": {"scalar": np.float32(2.5) * np.ones(()), "bytes": np.arange(4, dtype=np.uint8)}},
    }
    trees["state"]["opt_state"] = [None, [{"count": np.int32(7) * np.ones((), np.int32)}]]
    directory = pathlib.Path(checkpoint.stage_directory(tmp_path, "vae"))
    directory.mkdir(parents=True)
    checkpoint.write(str(directory / "7.saving"), trees, checkpoint.new_meta(7, trees, data=None, config={}))
    step_folders.seal(str(directory / "7.saving"))
    file = str(tmp_path / "state.safetensors")
    _said(tmp_path, out=file)
    _said(tmp_path / "new", source=file)
    back, meta, problem = checkpoint.read_verified(
        str(pathlib.Path(checkpoint.stage_directory(tmp_path / "new", "vae")) / "7"), ("state", "ema")
    )
    assert not problem and meta["step"] == 7
    assert jax.tree.structure(back) == jax.tree.structure(trees)
    _equal(back, trees)
    assert [x.dtype for x in jax.tree.leaves(back)] == [x.dtype for x in jax.tree.leaves(trees)]


def test_a_damaged_file_is_refused(run, tmp_path):
    file = tmp_path / "state.safetensors"
    _said(run[0], out=str(file))
    whole = file.read_bytes()
    for damage in (
        lambda: _flip(file, len(whole) - 3),
        lambda: _flip(file, whole.index(b"next_batch") + 14),
        lambda: file.write_bytes(whole[:-100]),
        lambda: file.write_bytes(whole[:100]),
        lambda: file.write_bytes(b""),
    ):
        file.write_bytes(whole)
        damage()
        with pytest.raises(ValueError, match="state.safetensors") as error:
            checkpoint_command.run(tmp_path / "new", source=str(file))
        assert "again" in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "new").exists()


def test_out_steps_back_from_damage(run, tmp_path):
    _flip(next((run[1] / "30" / "ema" / "d").iterdir()))
    lines = _said(run[0], out=str(tmp_path / "x.safetensors"))
    assert "30: DAMAGED" in lines[0] and "step 20 of linear" in lines[1]
    with pytest.raises(checkpoint.CheckpointError, match="no good checkpoint"):
        checkpoint_command.run(run[0], step=30, out=str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(stage="vae"), "--stage: .* has no 'vae'; it has linear"),
        (dict(step=7), "--step: .* has no checkpoint of step 7"),
        (dict(verify=True, slim=True), "takes one of --verify, --slim, --out and --from"),
        (dict(out="x.bin"), "--out: 'x.bin' must name the .safetensors file"),
        (dict(out="x.safetensors", step=7), "no such checkpoint"),
        (dict(source="nowhere.safetensors"), "--from: nowhere.safetensors does not exist; give a file written by"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        checkpoint_command.run(run[0], **arguments)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoints; name the folder of a training run"):
        checkpoint_command.run(tmp_path)
    with pytest.raises(ValueError, match="has no checkpoints"):
        checkpoint_command.run(tmp_path / "nowhere")
