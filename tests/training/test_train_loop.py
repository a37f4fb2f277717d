"""The loop: stopping anywhere and resuming equals never stopping; faults end it in one clear way."""

import hashlib
import json
import os
import signal

import jax
import numpy as np
import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop


def _sha(state):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(state)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _train(linear, workdir, *, iterator=None, mesh=None, interrupt=None, hooks=None, params=None, **settings):
    """The final state of a stage of the linear task."""
    return loop.run_stage(
        linear.Task(),
        linear.frozen,
        iterator or linear.Numbers(),
        linear.settings(**settings),
        os.path.join(workdir, "linear"),
        mesh=mesh or partitioning.make_mesh(fsdp=2),
        seed=11,
        config={"seed": 11},
        interrupt=interrupt or interrupts.Interrupt(),
        params=params,
        hooks=hooks,
    )


@pytest.mark.parametrize("stop", [1, 7, 10])
def test_resume_equals_never_stopping(linear, tmp_path, stop, capsys):
    whole = _train(linear, tmp_path / "a", num_steps=20)
    with pytest.raises(SystemExit) as left:
        _train(linear, tmp_path / "b", num_steps=20, interrupt=linear.StopAfter(stop))
    assert left.value.code == 42
    assert checkpoint.latest_step(tmp_path / "b", "linear") == stop
    resumed = _train(linear, tmp_path / "b", num_steps=20)
    assert int(resumed.step) == 20
    assert _sha(resumed) == _sha(whole)
    out = capsys.readouterr().out
    assert f"interrupted at step {stop}; saved" in out
    assert f"restored step {stop}, parameters, EMA, optimiser and data position, from {tmp_path}/b/linear" in out


def test_a_longer_num_steps_goes_on_from_the_end(linear, tmp_path):
    constant = dict(lr_schedule="constant")
    whole = _train(linear, tmp_path / "a", num_steps=9, **constant)
    _train(linear, tmp_path / "b", num_steps=4, **constant)
    assert _sha(_train(linear, tmp_path / "b", num_steps=9, **constant)) == _sha(whole)


def test_resume_on_another_mesh_continues_the_same_run(linear, tmp_path):
    whole = _train(linear, tmp_path / "a", num_steps=8)
    with pytest.raises(SystemExit):
        _train(linear, tmp_path / "b", num_steps=8, interrupt=linear.StopAfter(4))
    resumed = _train(linear, tmp_path / "b", num_steps=8, mesh=partitioning.make_mesh())
    for a, b in zip(jax.tree.leaves(jax.device_get(whole)), jax.tree.leaves(jax.device_get(resumed))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_signal_saves_and_leaves_with_42(linear, tmp_path, capsys):

    def kill(stage, state, frozen, step):
        del stage, state, frozen
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    with interrupts.catch() as interrupt, pytest.raises(SystemExit) as left:
        _train(linear, tmp_path, num_steps=50, interrupt=interrupt, hooks={"eval": kill}, eval_every=1)
    assert left.value.code == 42
    assert checkpoint.latest_step(tmp_path, "linear") == 3
    assert signal.getsignal(signal.SIGTERM) == before
    assert "a checkpoint follows" in capsys.readouterr().err


def test_told_to_stop_before_the_first_step(linear, tmp_path):
    with pytest.raises(SystemExit) as left:
        _train(linear, tmp_path, interrupt=linear.StopAfter(0))
    assert left.value.code == 42
    assert checkpoint.latest_step(tmp_path, "linear") is None


def test_a_loss_that_is_not_finite_names_the_step_and_saves_nothing_bad(linear, tmp_path):
    bad = linear.Numbers(bad=6)
    with pytest.raises(FloatingPointError, match=r"not finite at step 7 \(episodes \[600, 601, .*learning_rate"):
        _train(linear, tmp_path, iterator=bad, num_steps=20, log_every=20, checkpoint_every=5)
    assert checkpoint.latest_step(tmp_path, "linear") == 5
    assert np.isfinite(checkpoint.restore_ema(tmp_path, "linear")["dense"]["kernel"]).all()


class OneBad:
    """Batches of which some are poisoned."""

    def __init__(self, numbers, bad):
        self._numbers, self._bad = numbers, bad

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._numbers)
        if self._numbers.position in self._bad:
            batch["x"][0, 0] = np.nan
        return batch

    def __getattr__(self, name):
        return getattr(self._numbers, name)


def test_a_few_bad_batches_are_skipped_written_down_and_the_run_goes_on(linear, tmp_path, capsys):
    bad = OneBad(linear.Numbers(), {3, 4, 9})
    _train(linear, tmp_path, iterator=bad, num_steps=12, log_every=6, checkpoint_every=6, max_skipped=2)
    lines = (tmp_path / "linear" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4, 9]
    assert json.loads(lines[2])["episodes"][:2] == [800, 801]
    said = capsys.readouterr().err
    assert said.count("skipped, its loss or gradient is not finite") == 3
    assert checkpoint.latest_step(tmp_path, "linear") == 12
    assert np.isfinite(checkpoint.restore_ema(tmp_path, "linear")["dense"]["kernel"]).all()
    logged = [json.loads(line) for line in (tmp_path / "linear" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped_steps") for line in logged] == [2.0, 1.0]
    assert all(np.isfinite(value) for line in logged for value in line.values())


def test_too_many_between_two_checkpoints_end_the_run_at_the_last_good_one(linear, tmp_path):
    bad = OneBad(linear.Numbers(), {2, 8, 9, 11})
    with pytest.raises(FloatingPointError, match="step 9 .*3 steps since the last checkpoint were skipped"):
        _train(linear, tmp_path, iterator=bad, num_steps=20, log_every=4, checkpoint_every=6, max_skipped=2)
    assert checkpoint.latest_step(tmp_path, "linear") == 6


def test_one_transfer_a_log_interval(linear, tmp_path, monkeypatch):
    asked = []
    real = loop.metrics.to_host
    monkeypatch.setattr(loop.metrics, "to_host", lambda values: asked.append(1) or real(values))
    _train(linear, tmp_path, num_steps=12, log_every=6, checkpoint_every=12)
    assert len(asked) == 2


def test_log_files_hold_means_of_each_interval(linear, tmp_path):
    _train(linear, tmp_path, num_steps=10, log_every=5)
    lines = [json.loads(line) for line in (tmp_path / "linear" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]
    assert {"loss", "mse", "even", "grad_norm", "param_norm", "learning_rate", "steps_per_second"} <= set(lines[0])
    assert lines[0]["loss"] == pytest.approx(lines[0]["mse"], rel=1e-6)


def test_hooks_run_at_their_cadence_and_at_the_end(linear, tmp_path):
    seen = []

    def evaluate(stage, state, frozen, step):
        seen.append((stage, int(state.step), step, float(frozen["scale"])))
        return {"valid": step / 2}

    def sample(stage, state, frozen, step):
        del stage, state, frozen, step
        return {"film": np.zeros((2, 4, 4, 3), np.uint8)}

    _train(linear, tmp_path, num_steps=7, hooks={"eval": evaluate, "sample": sample}, eval_every=3)
    assert seen == [("linear", 3, 3, 1.0), ("linear", 6, 6, 1.0), ("linear", 7, 7, 1.0)]
    _train(linear, tmp_path / "none", num_steps=3, hooks={"eval": evaluate}, eval_every=-1)
    assert len(seen) == 3
    lines = [json.loads(line) for line in (tmp_path / "linear" / "metrics.jsonl").read_text().splitlines()]
    assert [line["valid"] for line in lines if "valid" in line] == [1.5, 3.0, 3.5]


def test_starting_parameters_count_for_a_new_run_alone(linear, tmp_path):
    start = {"dense": {"kernel": np.full((8, 16), 3.0, np.float32), "bias": np.zeros(16, np.float32)}}
    first = _train(linear, tmp_path, num_steps=1, params=lambda: start, learning_rate=1e-6)
    np.testing.assert_allclose(first.params["dense"]["kernel"], 3.0, atol=1e-4)

    def never():
        raise AssertionError("a resumed run must not ask for starting parameters")

    _train(linear, tmp_path, num_steps=2, params=never)


def test_batch_that_the_mesh_does_not_divide_is_refused(linear, tmp_path):
    with pytest.raises(ValueError, match="train.linear.batch_size / accumulate is 4, which mesh.data"):
        _train(linear, tmp_path, accumulate=2, mesh=partitioning.make_mesh())


def test_an_error_of_a_background_save_is_raised(linear, tmp_path, monkeypatch):

    def fail(self):
        raise OSError("disk full")

    monkeypatch.setattr(loop.checkpoint.Checkpointer, "check", fail)
    with pytest.raises(OSError, match="disk full"):
        _train(linear, tmp_path)
