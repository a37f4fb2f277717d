"""What is said of a program: whether it fits, what to change, and the compiler's refusals understood."""

import json

import pytest

from nuwaxl_jax import partitioning
from nuwaxl_jax.cost import programs
from nuwaxl_jax.cost import report
from nuwaxl_jax.cost import run
from nuwaxl_jax.cost import topologies

_REFUSAL = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.95G of
15.48G hbm. Exceeded hbm capacity by 6.47G.

Program hbm requirement 21.95G:
    global            1.14M
    HLO temp         17.79G (100.0% utilization: Unpadded (63.58G) Padded (63.58G), 0.3% fragmentation (210.89M))
"""


@pytest.fixture
def tiny(toons_presets):
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    for stage in ("image_vae", "vae", "image_denoiser", "denoiser"):
        config.train[stage].batch_size = 16
    config.unet.remat = "none"
    return config


def test_advice_names_the_fields_that_help_and_what_each_would_bring(tiny):
    topology = topologies.describe("")
    program = programs.make(tiny, "train/denoiser", partitioning.make_mesh(**tiny.mesh.to_dict()))
    held = {name: programs.device_bytes(tree) for name, tree in program.held.items()}
    memory = dict(arguments=sum(held.values()), temporaries=6 * 2**30, total=6 * 2**30 + sum(held.values()))
    row = dict(program=program.name, settings=program.settings, held=held, memory=memory, limit=2 * held["average"])
    assert report.advice(dict(row, fits=True), tiny, topology) == []
    row |= dict(fits=False, compile_seconds=1.0)
    row["advice"] = report.advice(row, tiny, topology)
    said = report.text(row)
    assert "DOES NOT FIT" in said and "too much" in said
    for field in ("mesh.fsdp=8", "unet.remat=blocks", "train.denoiser.accumulate=2", "train.denoiser.dtype=bfloat16"):
        assert f"--config.{field}" in said
    assert "from 6.0 GiB to about 3.0 GiB" in said  # of two micro-batches
    row["settings"] = dict(row["settings"], remat="blocks", clips_a_device=1.0, dtype="bfloat16")
    said = "\n".join(report.advice(row, tiny, topology))
    assert "mesh.model=2" in said and "remat" not in said and "accumulate" not in said


def test_total_is_the_sum_of_kinds_with_donated_memory_once(tiny):
    program = programs.make(tiny, "train/image_vae", partitioning.make_mesh(**tiny.mesh.to_dict()))
    row = report.measure(program, topologies.describe(""), tiny)
    assert row["fits"] and row["advice"] == [] and row["flops"] > 0
    memory = row["memory"]
    parts = sum(memory[k] for k in ("arguments", "outputs", "temporaries", "code", "beside"))
    assert memory["total"] == parts - memory["aliased"] and memory["aliased"] > 0


def test_the_whole_report_with_a_limit_below_the_need(tiny, tmp_path):
    lines = []
    path = tmp_path / "cost.json"
    parts = ["sample/level_2", "decode"]
    record = run.run(tiny, "", parts=parts, num_prompts=40, hbm_gib=1e-6, out=str(path), say=lines.append)
    assert json.loads(path.read_text())["programs"] == json.loads(json.dumps(record["programs"]))
    assert not list(tmp_path.glob("*.part"))
    level, decode = record["programs"]
    assert level["fits"] is False and any("hierarchy.microbatch=1" in line for line in level["advice"])
    assert decode["fits"] is False and any("WINDOW" in line for line in decode["advice"])
    # 40 prompts make a table of 64 rows, for the one denoiser; and the empty prompt.
    assert level["held"]["text"] == (64 + 1) * tiny.text.max_tokens * tiny.text.width * 4
    assert "mesh" in lines[0] and lines[1].startswith("parameters") and len(lines) == 4


def test_a_stage_that_the_mesh_does_not_divide_is_named_and_the_others_are_reported(tiny):
    tiny.train.image_vae.batch_size = 12
    tiny.train.stages = ("image_vae",)
    record = run.run(tiny, "", parts=["train", "decode"], say=lambda line: None)
    refused, decoded = record["programs"]
    assert "train.image_vae.batch_size" in refused["error"] and decoded["fits"]


def test_the_compilers_refusal_is_read():
    found = report.refusal(_REFUSAL)
    assert found == {"total": 21.95 * 2**30, "limit": 15.48 * 2**30, "temporaries": 17.79 * 2**30}
    other = "total memory required for HLO temporaries (1.50T) exceeds available HBM (15.75G)."
    assert report.refusal(other) == {"total": 1.5 * 2**40, "limit": 15.75 * 2**30, "temporaries": 1.5 * 2**40}
    assert report.refusal("INTERNAL: something else") is None


@pytest.mark.parametrize(
    "name,resolved",
    [
        ("v5e:4x4", ("v5e", "4x4")),
        ("v5e-16", ("v5e", "4x4")),
        ("v5litepod-64", ("v5e", "8x8")),
        ("v5p-64", ("v5p", "2x4x4")),  # 64 cores, 32 chips
        ("v4-8", ("v4", "2x2x1")),
        ("v6e-64", ("v6e", "8x8")),
    ],
)
def test_names_of_topologies(name, resolved):
    assert topologies.resolve(name) == resolved


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e-7", "v5p-9", "4x4", "v5e:4"])
def test_an_unknown_topology_names_what_is_known(name):
    with pytest.raises(topologies.TopologyError, match="v5"):
        topologies.resolve(name)


def test_without_the_compiler_the_mend_is_named(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(topologies.TopologyError, match=r"pip install '\.\[tpu\]'"):
        topologies.describe("v5e:4x4")


@pytest.mark.slow
def test_a_described_tpu_compiles_without_one(tiny):
    pytest.importorskip("libtpu")
    record = run.run(tiny, "v5e:2x2", parts=["train/image_vae", "sample/level_1"], say=lambda line: None)
    assert record["devices"] == record["chips"] == 4 and record["limit"] == 15.75 * 2**30
    step, level = record["programs"]
    assert step["fits"] and step["collectives"]["all-reduce"]["count"] > 0
    assert level["fits"] and level["collectives"] == {}
    for row in (step, level):
        assert row["flops"] > 0 and row["bytes"] > 0
        assert max(row["bound_seconds"].values()) > 0
