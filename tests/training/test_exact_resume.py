"""Ten steps, a stop and ten more are twenty steps, bit for bit: all that a checkpoint holds, hashed.

Of the VAE with its discriminator and of the denoiser with Muon, on one device and on a mesh; and across the two the
losses agree. The log is written every four steps, so the stop falls within an interval of it.
"""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.training import caching
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import tasks

pytestmark = pytest.mark.slow

STOP, END = 10, 20
MESHES = {"one": dict(devices=1), "four": dict(devices=4, fsdp=2, model=2)}


class StopAtTen(interrupts.Interrupt):
    """Told to stop in step 10 (the loop asks once before the first)."""

    def __init__(self):
        super().__init__()
        self.left = STOP + 1

    def asked(self):
        self.left -= 1
        return self.left == 0


def _sha(workdir, stage):
    """(SHA-256, names of what went into it) of the newest checkpoint: every array with its name, then the position in
    the data and what the log has gathered. Keys follow from the seed and the step, which are in it too."""
    step = checkpoint.latest_step(workdir, stage)
    path = f"{checkpoint.stage_directory(workdir, stage)}/{step}"
    trees, meta, problem = checkpoint.read_verified(path, ("state", "ema"))
    assert not problem
    leaves = {partitioning.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(trees)}
    leaves |= {name: json.dumps(meta[name], sort_keys=True) for name in ("step", "data", "log", "metrics")}
    leaves["seed"] = json.dumps(meta["config"]["seed"])
    digest = hashlib.sha256()
    for name in sorted(leaves):
        value = leaves[name]
        digest.update(name.encode())
        digest.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
    return digest.hexdigest(), leaves


def _losses(workdir, stage):
    """{step: loss} as logged."""
    lines = map(json.loads, (workdir / stage / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture
def config(toons_presets):
    config = toons_presets.get_config("tiny")
    config.unet.update(channel_mults=(1,), prompt_levels=(True,))
    config.vae.update(
        channel_mults=(1,), gan_weight=0.5, gan_start=(0, 3), gan_channels=4, gan_layers=1, logvar="learned"
    )
    config.train.vae.optimizer = "adamw"
    for stage in ("vae", "denoiser"):
        config.train[stage].update(num_steps=END, checkpoint_every=STOP, log_every=4)
    return config_lib.validate(config)


@pytest.fixture
def train(config, monkeypatch):
    """train(workdir, stage, mesh's name, stop): by the loop, from whatever is in the workdir; each program once."""
    programs, compile_step, frozen = {}, loop._compile, {}

    def compiled(task, optimizer, schedule, settings, mesh, *rest):
        if (task.stage, mesh) not in programs:
            programs[task.stage, mesh] = compile_step(task, optimizer, schedule, settings, mesh, *rest)
        return programs[task.stage, mesh]

    monkeypatch.setattr(loop, "_compile", compiled)
    # Small as the networks are, their larger parameters are sharded.
    abstract, create = loop.state_lib.abstract, loop.state_lib.create
    monkeypatch.setattr(loop.state_lib, "abstract", lambda *a: abstract(*(*a, 256)[:4]))
    monkeypatch.setattr(loop.state_lib, "create", lambda *a, **k: create(*a, **{"min_size": 256, **k}))

    def run(workdir, stage, name, stop=False):
        task, sizes = tasks.build(config, stage), dict(MESHES[name])
        if stage == "denoiser" and not frozen:
            vae = jax.jit(task.networks.init_vae)(jax.random.key(1))
            frozen.update(vae=vae, latent_shift=np.zeros(4, np.float32), latent_scale=np.ones(4, np.float32))
        iterator = caching.iterator(config, workdir, stage)
        try:
            return loop.run_stage(
                task,
                dict(frozen),
                iterator,
                config.train[stage],
                str(workdir / stage),
                mesh=partitioning.make_mesh(devices=jax.devices()[: sizes.pop("devices")], **sizes),
                seed=caching.seed_of(config, stage),
                config=json.loads(config_lib.to_json(config)),
                interrupt=StopAtTen() if stop else interrupts.Interrupt(),
            )
        finally:
            iterator.close()

    return run


@pytest.mark.parametrize("stage", ["vae", "denoiser"])
def test_ten_and_ten_steps_are_twenty(train, tmp_path, stage, capsys, record_property):
    hashes, losses = {}, {}
    for name in MESHES:
        whole, stopped, moved = (tmp_path / f"{name}_{kind}" for kind in ("whole", "stopped", "moved"))
        state = train(whole, stage, name)
        sharded = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        assert sharded == 0 if name == "one" else sharded > 10
        with pytest.raises(SystemExit):
            train(stopped, stage, name, stop=True)
        assert checkpoint.latest_step(stopped, stage) == STOP
        shutil.copytree(stopped, moved)
        capsys.readouterr()
        train(stopped, stage, name)
        said = [line for line in capsys.readouterr().out.splitlines() if "restored" in line]
        what = "restored step 10, parameters, EMA, optimiser and data position, from"
        assert said == [f"{stage}: {what} {stopped}/{stage}/checkpoints/10"]
        hashes[name], leaves = _sha(whole, stage)
        again, others = _sha(stopped, stage)
        differ = [leaf for leaf in leaves if not np.array_equal(leaves[leaf], others[leaf])]
        assert again == hashes[name] and not differ
        for part in ("state/params", "state/opt_state", "state/step", "ema/params", "data", "log", "seed"):
            assert any(leaf.startswith(part) for leaf in leaves), part
        if stage == "vae":
            assert {"state/extra/params/logvar"} < {leaf for leaf in leaves if "extra" in leaf}
        losses[name] = _losses(whole, stage)
        assert _losses(stopped, stage) == losses[name] and list(losses[name]) == [4, 8, 12, 16, 20]
    assert hashes["one"] != hashes["four"]  # sums in another order: so there the losses are compared
    for name, other in zip(MESHES, reversed(MESHES)):
        train(tmp_path / f"{name}_moved", stage, other)
        there = _losses(tmp_path / f"{name}_moved", stage)
        ratio = np.array(list(there.values())) / np.array(list(losses["one"].values()))
        record_property(f"largest deviation, {name} to {other}", float(np.abs(ratio - 1).max()))
        assert there == pytest.approx(losses["one"], rel=1e-5)
