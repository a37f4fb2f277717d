"""The real denoiser over every mix of mesh axes: the same losses, parameters in shards, collectives where they belong.

Ten steps of one small network, on 1, 2, 4 and 8 virtual devices, each program compiled once for all the tests here.
AdamW: `test_exact_resume.py` has the preset's Muon over meshes.
"""

import collections
import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.cost import hlo
from nuwaxl_jax.cost import programs
from nuwaxl_jax.cost import run as run_cost
from nuwaxl_jax.cost import topologies
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import tasks

pytestmark = pytest.mark.slow

STEPS = 10
MIN_SIZE = 256  # small as the network is; 36 parameters are larger
ONE = dict(data=1, fsdp=1, model=1)
CASES = {  # config.mesh, and what else must change nothing
    "data8": (dict(data=8), {}),
    "fsdp4": (dict(fsdp=4), {}),
    "model2": (dict(model=2), {}),
    "data2_fsdp2": (dict(data=2, fsdp=2), dict(accumulate=2, remat="blocks")),
    "data4_model2": (dict(data=4, model=2), dict(remat="products")),
    "fsdp2_model2": (dict(fsdp=2, model=2), {}),
    "data2_fsdp2_model2": (dict(data=2, fsdp=2, model=2), dict(accumulate=2)),
}
LONG = ("data2_fsdp2", "data4_model2", "fsdp2_model2")  # two axes each; the others have each axis alone, and all three


def _named(*names):
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n in LONG)) for n in names])


@dataclasses.dataclass
class Run:
    """What is kept of ten steps."""

    mesh: Any
    losses: np.ndarray
    state: Any
    text: str
    argument_bytes: int
    shard_bytes: int  # of state and batch on the first device
    frozen_bytes: int


def _batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {
            "frames": rng.integers(0, 256, (8, 4, 16, 16, 3), dtype=np.uint8),
            "tokens": rng.integers(3, 60, (8, 4, 20)).astype(np.int32),
            "level": np.arange(8, dtype=np.int32) % 3,
        }


def _shard_bytes(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def _run(config, params, vae):
    mesh = config.mesh.to_dict()
    mesh = partitioning.make_mesh(**mesh, devices=jax.devices()[: math.prod(mesh.values())])
    settings = config.train.denoiser
    task = tasks.build(config_lib.validate(config), "denoiser")
    optimizer, schedule = loop.optimizer_of(settings, task.no_decay, mesh, task.new_layers)
    state = state_lib.create(task, optimizer, jax.random.key(0), mesh, params=params, min_size=MIN_SIZE)
    frozen = dict(vae=vae, latent_shift=np.zeros(4, np.float32), latent_scale=np.ones(4, np.float32))
    frozen = jax.device_put(frozen, partitioning.replicate(mesh))
    batches = [partitioning.put_batch(batch, mesh) for batch in _batches()]
    held = _shard_bytes((state, batches[0]))
    program = loop.trace_step(task, optimizer, schedule, settings, mesh, state, frozen, batches[0]).lower().compile()
    seed = jax.device_put(np.uint32(5), partitioning.replicate(mesh))
    losses = []
    for batch in batches:
        state, values = program(state, frozen, batch, seed)
        losses.append(metrics.to_host(values)[0]["loss"])
    argument_bytes = program.memory_analysis().argument_size_in_bytes
    return Run(mesh, np.array(losses), state, program.as_text(), argument_bytes, held, _shard_bytes(frozen))


@pytest.fixture(scope="module")
def run_of(toons_presets):
    """name -> Run; each is made once."""
    runs, start = {}, []

    def config_of(mesh, accumulate=1, remat="none"):
        config = toons_presets.get_config("tiny")
        config.unet.update(channel_mults=(1,), prompt_levels=(True,), remat=remat)
        config.mesh.update(ONE | mesh)
        config.train.denoiser.update(batch_size=8, optimizer="adamw", num_steps=STEPS, accumulate=accumulate)
        return config

    def run(name):
        if not start:
            networks = tasks.build(config_of({}), "denoiser").networks
            inits = networks.init_denoiser, networks.init_vae
            start.extend(jax.device_get(jax.jit(init)(jax.random.key(k))) for k, init in enumerate(inits))
        if name not in runs:
            mesh, rest = CASES.get(name, ({}, {}))
            runs[name] = _run(config_of(mesh, **rest), *start)
        return runs[name]

    return run


@_named(*CASES)
def test_losses_are_those_of_one_device(run_of, name, record_property):
    one, many = run_of("one").losses, run_of(name).losses
    assert len(set(one)) == STEPS
    record_property("largest deviation", float(np.abs(many / one - 1).max()))
    np.testing.assert_allclose(many, one, rtol=1e-5)


def _moments(state):
    """Adam's two, each a tree like the parameters."""
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)  # noqa: E731
    (adam,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(part))
    return adam.mu, adam.nu


@_named("fsdp4", "model2", "fsdp2_model2", "data2_fsdp2_model2")
def test_no_device_holds_a_whole_parameter(run_of, name):
    """Of parameters, EMA and moments, after ten steps; and the program takes no more than those shards."""
    run = run_of(name)
    fsdp, model = run.mesh.shape["fsdp"], run.mesh.shape["model"]
    large = on_model = 0
    for tree in (run.state.params, run.state.ema_params, *_moments(run.state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            path, spec = partitioning.path_name(path), leaf.sharding.spec
            assert spec == partitioning.param_spec(path, leaf.shape, run.mesh, MIN_SIZE), path
            parts = (fsdp if "fsdp" in spec else 1) * (model if "model" in spec else 1)
            assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // parts}, path
            if fsdp > 1 and leaf.size >= MIN_SIZE:
                large += 1
                assert "fsdp" in spec, path
            if model > 1 and path.endswith("kernel") and re.search("attention|feed_forward|mlp_", path):
                on_model += 1
                assert "model" in spec, path
    assert large == (4 * 36 if fsdp > 1 else 0) and on_model == (4 * 40 if model > 1 else 0)
    # Beside the state's shards and the batch, the frozen VAE (its decoder is not read) and the seed.
    assert run.shard_bytes < run.argument_bytes <= run.shard_bytes + run.frozen_bytes + 64


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction: its kind, the arrays it makes, and the lines of the schedule between which they are alive."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    alive: tuple[int, int]

    @property
    def size(self):
        return sum(map(math.prod, self.shapes))


def _collectives(text):
    out = []
    for computation in hlo.parse(text)[0].values():
        at = {name: line for line, name in enumerate(computation.instructions)}
        for name, instruction in computation.instructions.items():
            if instruction.opcode in hlo.COLLECTIVES:
                last = max((at[user.name] for user in computation.users.get(name, ())), default=at[name])
                shapes = tuple(array.sizes for array in instruction.arrays)
                out.append(Collective(instruction.opcode, shapes, (at[name], last)))
    return out


def _counts(collectives):
    return collections.Counter(c.kind for c in collectives)


def test_data_parallel_steps_sum_gradients_and_nothing_else(run_of):
    """In one all-reduce, of every parameter's gradient."""
    collectives = _collectives(run_of("data8").text)
    assert _counts(collectives) == {"all-reduce": 1}
    assert collectives[0].size >= sum(leaf.size for leaf in jax.tree.leaves(run_of("data8").state.params))


@_named("fsdp4", "data2_fsdp2", "fsdp2_model2", "data2_fsdp2_model2")
def test_sharded_parameters_are_gathered_one_at_a_time(run_of, name):
    """The CPU compiler has no reduce-scatter: it sums a gradient by all-reduce, and each device goes on with its slice.
    It also makes every gather early, so what is alive at once is tested where it counts, for TPUs, below."""
    run = run_of(name)
    collectives = _collectives(run.text)
    gathers = [c for c in collectives if c.kind == "all-gather"]
    sharded = [leaf for leaf in jax.tree.leaves(run.state.params) if "fsdp" in leaf.sharding.spec]
    assert len(gathers) >= len(sharded) and _counts(collectives)["all-reduce"] > 0
    assert all(len(c.shapes) == 1 for c in gathers)
    assert max(c.size for c in gathers) <= max(leaf.size for leaf in sharded)
    if run.mesh.shape["model"] == 1:  # there each gathered is a parameter, whole
        missing = collections.Counter(leaf.shape for leaf in sharded) - collections.Counter(
            c.shapes[0] for c in gathers
        )
        assert sum(missing.values()) <= 1, missing


@_named("model2", "data4_model2")
def test_tensor_parallel_layers_sum_activations_and_gather_no_parameter(run_of, name):
    run = run_of(name)
    collectives = _counts(_collectives(run.text))
    out_of = [
        path for path in _paths(run.state.params) if re.search(r"(attention|feed_forward)/out/kernel|mlp_out/k", path)
    ]
    assert collectives["all-gather"] == 0
    assert collectives["all-reduce"] >= len(out_of) > 8


def _paths(tree):
    return [partitioning.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_on_tpus_parameters_are_gathered_in_turn_and_gradients_reduce_scattered(toons_presets):
    """Compiled for four described v5e chips, layers as wide as make it worth while: each kernel is gathered where it is
    used, dropped, and gathered again for the backward pass; its gradient is reduce-scattered, which libtpu writes as a
    fusion of an all-reduce and its slice."""
    pytest.importorskip("libtpu")
    config = toons_presets.get_config("tiny")
    config.vae.update(channels=512, channel_mults=(1,))
    config.train.image_vae.update(optimizer="adamw", batch_size=8)
    mesh = partitioning.make_mesh(fsdp=4, devices=topologies.describe("v5e:2x2").devices)
    program = programs.make(config, "train/image_vae", mesh)
    with run_cost._effort(-1.0):
        text = program.compile().as_text()
    leaves = jax.tree.leaves(program.held["parameters"])
    sharded = sum(math.prod(leaf.shape) for leaf in leaves if "fsdp" in leaf.sharding.spec)
    gathers = [c for c in _collectives(text) if c.kind == "all-gather"]
    assert sum(c.size for c in gathers) > 1.3 * sharded  # the backward pass gathers again
    alive = [sum(c.size for c in gathers if c.alive[0] <= g.alive[0] <= c.alive[1]) for g in gathers]
    assert max(alive) <= max(math.prod(leaf.shape) for leaf in leaves) < 0.1 * sharded
    scattered, whole = collections.Counter(), collections.Counter()
    for name, computation in hlo.parse(text)[0].items():
        for instruction in computation.instructions.values():
            if instruction.opcode == "all-reduce":
                kind = scattered if name.startswith("all-reduce-scatter") else whole
                kind.update(array.sizes for array in instruction.arrays)
    large = collections.Counter(leaf.shape for leaf in leaves if math.prod(leaf.shape) >= 2**20)
    assert large.total() > 10 and large == {shape: n for shape, n in scattered.items() if shape in large}
    assert not set(large) & set(whole)
