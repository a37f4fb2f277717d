"""Which checkpoints stay: the newest, by steps, by hours, the best by the log or by an evaluation."""

import json
import os
import pathlib
import time

import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import retention


def _saved(*losses, hour=1.0):
    """Steps 100, 200, .. an hour apart."""
    return [
        retention.Saved(100 * (i + 1), 3600 * hour * i, {} if loss is None else {"loss": loss})
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    "keep,stay",
    [
        (dict(newest=2), {700, 800}),
        (dict(newest=1), {800}),
        (dict(newest=1, every=300), {300, 600, 800}),
        (dict(newest=1, hours=2.5), {100, 400, 700, 800}),
        (dict(newest=1, best=2), {200, 500, 800}),
        (dict(newest=1, best=2, metric="-loss"), {100, 700, 800}),
        (dict(newest=1, best=3, metric="fvd"), {800}),
        (dict(newest=2, every=400, best=1), {400, 500, 700, 800}),
    ],
)
def test_rules_add_up(keep, stay):
    checkpoints = _saved(9.0, 2.0, None, float("nan"), 1.0, 3.0, 8.0, float("inf"))
    assert retention.kept(checkpoints, retention.Keep(**keep)) == stay


def test_rules_keep_the_same_steps_when_they_are_applied_after_every_save():
    keep = retention.Keep(newest=2, every=500, hours=3, best=2)
    whole = _saved(*[((7 * i) % 23) / 23 for i in range(40)])
    there = []
    for new in whole:
        stay = retention.kept([*there, new], keep)
        there = [c for c in [*there, new] if c.step in stay]
    assert {c.step for c in there} == retention.kept(whole, keep)


def test_the_mean_between_checkpoints_is_exact_where_log_lines_straddle_them():
    """Losses 1, 2, .. of the steps; lines every 4, checkpoints every 6."""
    since, got, last = retention.SinceLastSave(0), {}, 0
    for step in range(1, 25):
        interval = range(last + 1, step + 1)
        means = {"loss": sum(interval) / len(interval)}
        if step % 4 == 0:
            since.line(step, means)
            last, means = step, {}
        if step % 6 == 0:
            got[step] = since.saved(step, means)["loss"]
    assert got == pytest.approx({6: 3.5, 12: 9.5, 18: 15.5, 24: 21.5})


def _run(linear, workdir, hooks=None, **settings):
    loop.run_stage(
        linear.Task(),
        linear.frozen,
        linear.Numbers(),
        linear.settings(**{"num_steps": 30, "log_every": 2, "checkpoint_every": 5, "keep": 1, **settings}),
        os.path.join(workdir, "linear"),
        mesh=partitioning.make_mesh(),
        seed=11,
        config={},
        interrupt=interrupts.Interrupt(),
        hooks=hooks,
    )
    return sorted(int(n) for n in os.listdir(checkpoint.stage_directory(workdir, "linear")) if n.isdigit())


def _read(workdir, *names):
    return pathlib.Path(checkpoint.stage_directory(workdir, "linear")).joinpath(*names).read_text()


def test_a_run_keeps_multiples_and_what_it_logged_since_the_checkpoint_before(linear, tmp_path):
    assert _run(linear, tmp_path, keep_every=15, log_every=1) == [15, 30]
    meta = json.loads(_read(tmp_path, "30", "meta", "metadata"))
    lines = [json.loads(line) for line in (tmp_path / "linear" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert meta["metrics"]["loss"] == pytest.approx(sum(losses[-5:]) / 5)
    assert abs(time.time() - meta["time"]) < 600


def test_a_run_keeps_the_best_by_its_evaluation(linear, tmp_path):
    score = {5: 3.0, 10: 9.0, 15: 4.0, 20: 8.0, 25: 1.0, 30: 2.0}
    hooks = {"eval": lambda stage, state, frozen, step: {"accuracy": score[step]}}
    steps = _run(linear, tmp_path, hooks, keep_best=2, best_metric="-accuracy", eval_every=5)
    assert steps == [10, 20, 30]
    assert json.loads(_read(tmp_path, "evaluations.json"))["10"] == {"accuracy": 9.0}
    path = pathlib.Path(checkpoint.stage_directory(tmp_path, "linear")) / "evaluations.json"
    path.write_text("{")  # a lost file costs no checkpoint
    assert _run(linear, tmp_path, hooks, keep_best=2, keep=4, best_metric="-accuracy", eval_every=5) == [10, 20, 30]


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(keep=0), "config.train.vae.keep: must be at least 1"),
        (dict(keep_best=-1), "config.train.vae.keep_best: -1 is negative; use 0"),
        (
            dict(keep_every=700, checkpoint_every=500),
            "keep_every: 700 is not a multiple of checkpoint_every 500; use 500",
        ),
        (dict(best_metric="-"), "config.train.vae.best_metric: is empty"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields, message):
    config = config_lib.default()
    config.train.vae.update(fields)
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.validate(config)
    assert message in str(error.value)


def test_settings_may_change_between_runs(tmp_path):
    config = config_lib.default()
    checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
    (tmp_path / "vae" / "checkpoints" / "5").mkdir(parents=True)
    config.train.vae.update(keep=5, keep_every=1000, keep_hours=2.0, keep_best=3, best_metric="-psnr")
    checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(config_lib.to_json(config))
