"""Where the time goes: kinds of seconds, over restarts; rates; traces; what a resumed interval's line says."""

import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import compile_cache
from nuwaxl_jax import partitioning
from nuwaxl_jax import profiling
from nuwaxl_jax.cost import topologies
from nuwaxl_jax.training import health
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import metrics


class Time:
    """In place of `time`: it passes when told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now + 1e9)

    def passes(self, seconds):
        self.now += seconds


def test_every_second_is_of_one_kind_and_a_restart_goes_on_counting(monkeypatch, tmp_path):
    clock_time, path = Time(monkeypatch), str(tmp_path / "health.json")
    began = time.time()
    clock_time.passes(7)  # importing
    clock = health.Clock(path, began)
    clock_time.passes(3)  # compiling
    clock.begin(0)
    clock_time.passes(20)
    with clock.spent("save"):
        clock_time.passes(4)
    clock.reading(lambda: clock_time.passes(2), lambda: True)
    clock.reading(lambda: clock_time.passes(5), lambda: False)  # the device was at work meanwhile
    clock.write(10)
    assert clock.read() == dict(start=10, step=25, data=2, save=4, eval=0, lost=0, away=0)
    assert clock.goodput() == pytest.approx(25 / 41)

    clock_time.passes(30)  # killed; started again at step 6 of 10
    clock = health.Clock(path, time.time())
    clock_time.passes(8)
    clock.begin(6)
    assert clock.read() == dict(start=18, step=15, data=2, save=4, eval=0, lost=10, away=30)
    clock_time.passes(10)
    clock.write(10)
    kept = json.loads((tmp_path / "health.json").read_text())
    assert kept["runs"] == 2 and kept["step"] == 10 and kept["steps"] == 10
    assert sum(kept["seconds"].values()) == pytest.approx(time.time() - began)
    assert kept["goodput"] == pytest.approx(25 / 89, abs=1e-4)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"time": "x"}', '{"time": 1, "began": 1, "seconds": 3}'])
def test_a_file_that_cannot_be_used_is_as_none(tmp_path, text):
    (tmp_path / "health.json").write_text(text)
    clock = health.Clock(str(tmp_path / "health.json"))
    clock.begin(0)
    clock.write(1)
    assert json.loads((tmp_path / "health.json").read_text())["runs"] == 1


def test_rates_of_an_interval():
    seconds = dict(start=0.0, step=8.0, data=2.0, save=3.0, eval=0.0, lost=0.0, away=0.0)
    said = health.rates(20, seconds, examples=16, flops=4e12, peak=2e12, devices=4)
    assert said == pytest.approx(
        dict(
            steps_per_second=2.0,
            seconds_per_step=0.5,
            examples_per_second=32.0,
            data_wait=0.2,
            save_seconds=3.0,
            model_tflops_per_second=2.0,
            mfu=1.0,
        )
    )
    assert "mfu" not in health.rates(20, seconds, examples=16, flops=4e12, peak=None, devices=4)


def test_a_device_at_work_is_not_idle():
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 3000, lambda _, y: jnp.sin(y @ y), x))
    x = jnp.full((128, 128), 0.01)
    work(x).block_until_ready()
    made = work(x)
    busy = health.is_idle(made)
    made.block_until_ready()
    assert (busy, health.is_idle(made), health.is_idle(None)) == (False, True, True)


@pytest.mark.parametrize("text", ["3", "0:2", "5:0", "a:b", "1:2:3", "-1:2"])
def test_a_window_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="--profile is .*give FIRST:COUNT"):
        profiling.Window.parse(text)
    assert profiling.Window.parse("") is None and profiling.Window.parse("20:5") == profiling.Window(20, 5)


def _train(linear, workdir, interrupt=None, **settings):
    watch = health.Watch(peak_flops=1e9, profile=profiling.Window(2, 2))
    return loop.run_stage(
        linear.Task(),
        linear.frozen,
        linear.Numbers(),
        linear.settings(**settings),
        os.path.join(workdir, "linear"),
        mesh=partitioning.make_mesh(fsdp=2),
        seed=11,
        config={},
        interrupt=interrupt or interrupts.Interrupt(),
        watch=watch,
    )


def test_a_resumed_interval_says_what_an_undisturbed_one_says_and_all_is_written(linear, tmp_path, capsys):
    """Stopped at 7 of 10 steps, with a line every 5: the second line is of steps 6 to 10 all the same."""
    _train(linear, tmp_path / "a")
    with pytest.raises(SystemExit):
        _train(linear, tmp_path / "b", interrupt=linear.StopAfter(7))
    _train(linear, tmp_path / "b")
    lines = {
        run: [json.loads(line) for line in (tmp_path / run / "linear" / "metrics.jsonl").read_text().splitlines()]
        for run in "ab"
    }
    same = ("step", "loss", "mse", "even", "grad_norm", "param_norm")
    assert [[line[name] for name in same] for line in lines["a"]] == [
        [line[name] for name in same] for line in lines["b"]
    ]
    told = ("seconds_per_step", "examples_per_second", "data_wait", "mfu", "model_tflops_per_second", "goodput")
    assert all(0 <= line[name] < np.inf for run in "ab" for line in lines[run] for name in told)
    assert json.loads((tmp_path / "b" / "linear" / "health.json").read_text())["runs"] == 2
    said = capsys.readouterr().out
    assert "MFU is of 8 x 0.001 TFLOP/s" in said and "goodput" in said and "profile of 2 from 2 on" in said
    assert list((tmp_path / "a" / "linear" / "profile").rglob("*.xplane.pb"))


def test_metrics_come_back_from_json_to_the_bit():
    values = {
        "m": metrics.average(jnp.array([0.1, 0.2, 1e-30])),
        "bad_steps": metrics.bad_step(jnp.bool_(False), jnp.int32(9)),
    }
    back = metrics.of_json(json.loads(json.dumps(metrics.to_json(values))))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(values), back)
    assert metrics.to_host(metrics.merge(values, back))[1] == [9, 9]


def test_the_compilation_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "NUWAXL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert compile_cache.folder().parent == tmp_path / "nuwaxl_jax" / "compiled"
        monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "own"))
        assert compile_cache.folder().parent == tmp_path / "own" / "compiled"
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        assert compile_cache.folder() is None
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("NUWAXL_CACHE", "off")
        assert compile_cache.folder() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_published_peaks_by_name_of_the_device(monkeypatch):
    class Device:
        platform = "gpu"

    for kind, tflops in (("TPU v5 lite", 197), ("TPU v4", 275), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-40GB", 312)):
        device = Device()
        device.device_kind = kind
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert topologies.peak_flops() == tflops * 1e12
    monkeypatch.undo()
    assert topologies.peak_flops() is None  # a CPU
