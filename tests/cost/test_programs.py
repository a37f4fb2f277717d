"""The programs that are costed are those that run, and costing a paper-sized one allocates nothing."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.cost import programs
from nuwaxl_jax.cost import report
from nuwaxl_jax.cost import topologies
from nuwaxl_jax.hierarchy import program as program_lib
from nuwaxl_jax.hierarchy import sample
from nuwaxl_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = ("argument", "output", "alias", "temp")


@pytest.fixture
def tiny(toons_presets):
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    config.mesh.update(data=4, fsdp=2)
    config.train.stages = ("image_vae", "denoiser")
    config.train.denoiser.pretrained_lr_ratio = 1.0  # no image_denoiser here that would have trained its layers
    for stage in config.train.stages:
        config.train[stage].update(batch_size=8, num_steps=1, warmup_steps=0)
    return config


def _sizes(compiled):
    stats = compiled.memory_analysis()
    return {name: getattr(stats, f"{name}_size_in_bytes") for name in FIELDS}


@pytest.mark.slow
@pytest.mark.parametrize("stages", [("image_vae",), pytest.param(("image_vae", "denoiser"), marks=pytest.mark.long)])
def test_the_training_steps_are_those_that_training_runs(tiny, tmp_path, monkeypatch, stages):
    tiny.train.stages = stages
    ran = {}

    def watched(task, *arguments):
        traced = trace_step(task, *arguments)
        ran[task.stage] = traced.lower().compile()
        return traced

    trace_step = loop.trace_step
    monkeypatch.setattr(loop, "trace_step", watched)
    loop.train(tiny, str(tmp_path))
    monkeypatch.undo()
    mesh = partitioning.make_mesh(**tiny.mesh.to_dict())
    assert set(ran) == set(stages)
    for stage, compiled in ran.items():
        program = programs.make(tiny, f"train/{stage}", mesh)
        again = program.compile()
        assert _sizes(again) == _sizes(compiled)
        assert again.cost_analysis()["flops"] == compiled.cost_analysis()["flops"]
        memory = report.memory_of(program, again)
        held = sum(programs.device_bytes(tree) for tree in program.held.values())
        # Every array of the call is an argument or lies beside the program; the seed alone is not in `held`.
        assert memory["arguments"] + memory["beside"] == pytest.approx(held, abs=64)
        if stage == "denoiser":
            assert memory["beside"] > 0  # the VAE's decoder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["diffusion_over_diffusion", "autoregressive"])
def test_the_levels_are_the_very_executables_that_sampling_runs(tiny, strategy):
    tiny.hierarchy.strategy = strategy
    networks = programs.networks_of(tiny)
    mesh = partitioning.make_mesh(**tiny.mesh.to_dict())
    levels = programs.sampling_levels(tiny, mesh, num_frames=8, networks=networks)
    compiled = [level.compile() for level in levels]
    before = program_lib._compile.cache_info()
    bundle = dict(
        vae=networks.init_vae(jax.random.key(0)),
        latent_shift=np.zeros(4, np.float32),
        latent_scale=np.ones(4, np.float32),
        denoisers=(networks.init_denoiser(jax.random.key(1)),),
    )
    made = sample.generate(
        tiny, networks, bundle, ["a red star"], np.zeros((1, 8), np.int32), mesh=mesh, progress=False
    )
    after = program_lib._compile.cache_info()
    assert after.misses == before.misses and after.hits > before.hits
    assert len(compiled) == len(made.plans)
    for level, executable in zip(levels, compiled):
        # What is said to lie on the devices is what the program reads, but for the sliding window.
        memory = report.memory_of(level, executable)
        held = sum(programs.device_bytes(tree) for tree in level.held.values())
        assert memory["arguments"] + memory["beside"] == pytest.approx(held, abs=64)
        assert (memory["beside"] > 0) == (strategy == "autoregressive")


def test_a_level_has_no_collectives_and_its_work_grows_with_its_rounds(tiny):
    # Rounds of 8 devices x 1 segment: 9 segments take 2.
    tiny.hierarchy.update(chunk=0, microbatch=1)
    mesh = partitioning.make_mesh(**tiny.mesh.to_dict())
    level = programs.make(tiny, "sample/level_2", mesh)
    assert level.rounds == 2
    row = report.measure(level, topologies.describe(""), tiny)
    assert row["collectives"] == {} and row["unknown_loops"] == 1
    tiny.hierarchy.chunk = 8
    half = report.measure(programs.make(tiny, "sample/level_2", mesh), topologies.describe(""), tiny)
    assert row["flops"] == 2 * half["flops"] > 0


def test_the_names_of_programs_and_their_choice(tiny):
    every = ("train/image_vae", "train/denoiser", "sample/level_0", "sample/level_1", "sample/level_2", "decode")
    assert programs.names(tiny) == every
    assert programs.chosen(tiny, ["train", "sample/level_2"]) == (*every[:2], "sample/level_2")
    with pytest.raises(ValueError, match="--parts: 'level_2'"):
        programs.chosen(tiny, ["level_2"])
    tiny.mtd.weights = "per_level"
    assert programs.names(tiny) == every  # one step serves the three denoisers
    with pytest.raises(ValueError, match="train.denoiser.batch_size"):
        tiny.train.denoiser.batch_size = 4
        programs.make(tiny, "train/denoiser", partitioning.make_mesh(8))


def _paper(preset):
    spec = importlib.util.spec_from_file_location("paper_presets", ROOT / "configs" / "nuwaxl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset)


def test_a_paper_sized_config_is_described_without_one_array_of_it():
    config = _paper("paper128")
    config.mesh.fsdp = 8
    before = sum(x.nbytes for x in jax.live_arrays())
    mesh = partitioning.make_mesh(**config.mesh.to_dict())
    step = programs.make(config, "train/denoiser", mesh)
    levels = programs.sampling_levels(config, mesh)
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 2**20
    assert step.settings["parameters"] > 0.9e9
    whole = programs.device_bytes(programs.with_sharding(step.held["parameters"], partitioning.replicate(mesh)))
    assert programs.device_bytes(step.held["parameters"]) < 0.15 * whole  # an eighth, and what is too small to share
    # A level holds its own network whole on every device; not the text encoder, whose states are a table.
    text = programs.device_bytes(jax.eval_shape(programs.networks_of(config).init_denoiser, jax.random.key(0))["text"])
    assert programs.device_bytes(levels[-1].held["denoiser"]) == whole - text


def test_the_networks_of_a_vocabulary_are_its_own(tiny):
    assert programs.networks_of(tiny).tokenizer == networks_lib.build(tiny).tokenizer
