"""The real stages of the tiny preset: alike on one and on eight devices, and resumed to the same bytes."""

import jax
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import metrics
from nuwaxl_jax.training import state as state_lib
from nuwaxl_jax.training import steps
from nuwaxl_jax.training import tasks


@pytest.fixture
def eight(toons_presets):
    """The tiny preset with batches that eight devices share."""
    config = toons_presets.get_config("tiny")
    for stage in config.train.stages:
        config.train[stage].batch_size = 8
    return config


@pytest.mark.slow
def test_the_real_denoiser_trains_alike_on_one_and_eight_devices(toons_presets):
    config = toons_presets.get_config("tiny")
    task = tasks.build(config, "denoiser")
    optimizer, _ = loop.optimizer_of(config.train.denoiser)
    rng = np.random.default_rng(0)
    batch = {
        "frames": rng.integers(0, 256, (8, 4, 16, 16, 3), dtype=np.uint8),
        "tokens": rng.integers(3, 60, (8, 4, 20)).astype(np.int32),
        "level": np.arange(8, dtype=np.int32) % 3,
    }
    frozen = {
        "vae": jax.jit(task.networks.init_vae)(jax.random.key(1)),
        "latent_shift": np.zeros(4, np.float32),
        "latent_scale": np.ones(4, np.float32),
    }
    params = jax.device_get(jax.jit(task.init)(jax.random.key(2)))
    results = []
    for devices, sizes in ((1, {}), (8, {}), (8, dict(fsdp=4, model=2))):
        mesh = partitioning.make_mesh(**sizes, devices=jax.devices()[:devices])
        state = state_lib.create(task, optimizer, jax.random.key(0), mesh, params=params, min_size=256)
        on_mesh = jax.device_put(frozen, partitioning.replicate(mesh))
        step = steps.make_train_step(task, optimizer, ema_limit=0.9, mesh=mesh, state=state, frozen=on_mesh)
        total = None
        for _ in range(2):
            state, values = step(state, on_mesh, partitioning.put_batch(batch, mesh), np.uint32(5))
            total = values if total is None else metrics.merge(total, values)
        results.append(metrics.to_host(total)[0])
    sharded = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    assert len(sharded) > 20
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


@pytest.mark.slow
def test_the_real_stages_resume_to_the_same_bytes(eight, tmp_path, capsys):
    """Every stage of the tiny preset: the whole run, and one stopped within each stage."""
    loop.train(eight, str(tmp_path / "a"))
    stops = iter([3, 5, 2, 4])
    done = False

    class StopOnce(interrupts.Interrupt):
        def __init__(self):
            super().__init__()
            self.left = next(stops, None)

        def asked(self):
            if self.left is None:
                return False
            self.left -= 1
            return self.left <= 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupts, "Interrupt", StopOnce)
        while not done:
            try:
                loop.train(eight, str(tmp_path / "b"))
                done = True
            except SystemExit as left:
                assert left.code == 42
    for stage in config_lib.STAGES:
        a, b = (checkpoint.restore_ema(tmp_path / run, stage) for run in "ab")
        jax.tree.map(np.testing.assert_array_equal, a, b)
    capsys.readouterr()
    loop.train(eight, str(tmp_path / "b"))
    assert capsys.readouterr().out.count("skipped") == 4
    other = eight.copy_and_resolve_references()
    other.unet.channels = 16
    with pytest.raises(ValueError, match="another config: unet.channels 8 -> 16"):
        loop.train(other, str(tmp_path / "b"))
