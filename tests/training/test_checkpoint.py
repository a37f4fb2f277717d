"""Checkpoints: every byte back, on any mesh; strangers refused with the mend."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import partitioning
from nuwaxl_jax.training import checkpoint


def _save(linear, workdir, mesh=None, step=3):
    return linear.save(workdir, [step], mesh or partitioning.make_mesh(fsdp=4))


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.mark.parametrize("sizes", [dict(), dict(fsdp=8), dict(fsdp=2, model=2)])
def test_any_mesh_restores_what_another_saved(linear, tmp_path, sizes):
    state, _ = _save(linear, tmp_path)
    mesh = partitioning.make_mesh(**sizes)
    _, abstract = linear.state_at(mesh)
    restored, meta = linear.restore(tmp_path, abstract)
    _equal(restored, state)
    assert meta["step"] == 3 and meta["data"] == {"next_batch": 3} and meta["config"] == {"seed": 5}
    kernel = restored.params["dense"]["kernel"]
    assert kernel.sharding == abstract.params["dense"]["kernel"].sharding
    assert kernel.sharding.is_fully_replicated == (sizes == {})


def test_ema_alone_as_numpy(linear, tmp_path):
    state, _ = _save(linear, tmp_path)
    tree = checkpoint.restore_ema(tmp_path, "linear")
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
    _equal(tree, jax.device_get(state.ema_params))


def test_only_the_newest_are_kept_and_a_saved_step_is_left(linear, tmp_path):
    directory = checkpoint.stage_directory(tmp_path, "linear")
    saver = checkpoint.Checkpointer(directory, checkpoint.Keep(newest=2))
    state, _ = linear.state_at(partitioning.make_mesh(), step=0)
    for _ in range(4):
        state = state.replace(step=state.step + 1)
        saver.save(state, data=None, config={})
        saver.save(state, data=None, config={})
    saver.close()
    assert sorted(int(name) for name in os.listdir(directory)) == [3, 4]
    assert checkpoint.latest_step(tmp_path, "linear") == 4


def test_a_stage_without_checkpoint_says_so(tmp_path, linear):
    with pytest.raises(checkpoint.CheckpointError, match="no complete checkpoint; train stage 'vae' first"):
        checkpoint.restore_ema(tmp_path, "vae")
    assert checkpoint.latest_step(tmp_path, "vae") is None
    assert not os.listdir(tmp_path)  # asking creates nothing
    _, abstract = linear.state_at(partitioning.make_mesh())
    with pytest.raises(checkpoint.CheckpointError, match="no complete checkpoint"):
        linear.restore(tmp_path, abstract)


def test_a_model_of_another_shape_is_refused(linear, tmp_path):
    _, abstract = _save(linear, tmp_path)
    wider = jax.tree.map(
        lambda s: (
            jax.ShapeDtypeStruct((*s.shape[:-1], 32), s.dtype, sharding=s.sharding)
            if s.shape and s.shape[-1] == 16
            else s
        ),
        abstract,
    )
    with pytest.raises(
        checkpoint.CheckpointError,
        match=r"3: was saved from another model or optimiser: state/.*bias is \(16,\) there and \(32,\)",
    ):
        linear.restore(tmp_path, wider)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
def test_fingerprint_sees_one_element_and_a_swap_but_not_the_sharding(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 2 if dtype == "bool" else 100, (8, 16)), dtype)
    mesh = partitioning.make_mesh(fsdp=4, model=2)
    base = checkpoint.fingerprints({"x": x})
    for spec in (("fsdp",), (None, "fsdp"), ("model", "fsdp"), (("fsdp", "model"),), ()):
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
        assert checkpoint.fingerprints({"x": placed}) == base
    assert checkpoint.fingerprints({"x": np.asarray(x)}) == base
    for place in [(0, 0), (7, 15), (3, 8)]:
        other = np.array(x)
        other[place] = ~other[place] if dtype == "bool" else other[place] + 1
        assert checkpoint.fingerprints({"x": other}) != base
    swapped = np.array(x)
    i, j = next((i, i + 1) for i in range(15) if swapped[0, i] != swapped[0, i + 1])
    swapped[0, [i, j]] = swapped[0, [j, i]]
    assert checkpoint.fingerprints({"x": swapped}) != base


def _config(**overrides):
    return {
        "seed": 0,
        "name": "a",
        "unet": {"channels": 8},
        "mesh": {"fsdp": 1},
        "sampler": {"eta": 0.0},
        "train": {"vae": {"num_steps": 5, "learning_rate": 0.1, "keep": 2, "log_every": 1}},
        **overrides,
    }


def test_workdir_of_another_config_lists_what_differs(tmp_path):
    checkpoint.claim_workdir(tmp_path, json.dumps(_config(seed=7)))
    checkpoint.claim_workdir(tmp_path, json.dumps(_config()))  # nothing has been trained: a mistake may be mended
    (tmp_path / "vae" / "checkpoints" / "5").mkdir(parents=True)
    train = {"vae": {"num_steps": 5, "learning_rate": 0.2, "keep": 2, "log_every": 1}}
    with pytest.raises(
        ValueError,
        match=r"another config: seed 0 -> 1; train.vae.learning_rate 0.1 -> 0.2; unet.width "
        r"'\(absent\)' -> 4; use those",
    ):
        checkpoint.claim_workdir(tmp_path, json.dumps(_config(seed=1, train=train, unet={"channels": 8, "width": 4})))
    assert json.loads((tmp_path / "config.json").read_text()) == _config()  # untouched


def test_fields_younger_than_the_workdir_have_the_value_from_before_them(tmp_path):
    config = config_lib.default()
    values = json.loads(config_lib.to_json(config))
    del values["vae"]["gan_weight"], values["unet"]["condition_fill"]
    checkpoint.claim_workdir(tmp_path, json.dumps(values))
    (tmp_path / "vae" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"unet.condition_fill \['zero', 'zero', 'zero'\] -> .*linear"):
        checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
    config.unet.condition_fill = ("zero",) * 3
    config.vae.gan_weight = 0.5
    with pytest.raises(ValueError, match=r"another config: vae.gan_weight 0.0 -> 0.5; use"):
        checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
    config.vae.gan_weight = 0.0
    checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))


def test_lengths_cadences_mesh_and_sampling_may_change(tmp_path):
    checkpoint.claim_workdir(tmp_path, json.dumps(_config()))
    (tmp_path / "vae" / "checkpoints" / "5").mkdir(parents=True)
    train = {"vae": {"num_steps": 9, "learning_rate": 0.1, "keep": 1, "log_every": 3}}
    new = _config(train=train, mesh={"fsdp": 4}, sampler={"eta": 1.0}, name="b")
    checkpoint.claim_workdir(tmp_path, json.dumps(new))
    assert json.loads((tmp_path / "config.json").read_text()) == new
    assert sorted(os.listdir(tmp_path)) == ["config.json", "vae"]  # no temporary file stays


@pytest.mark.parametrize("gan", [0.0, 0.5])
def test_memory_and_faults_may_change_but_not_micro_batches_under_a_discriminator(tmp_path, gan):
    config = config_lib.default()
    config.vae.gan_weight = gan
    checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
    (tmp_path / "vae" / "checkpoints" / "5").mkdir(parents=True)
    config.data.max_bad, config.unet.remat, config.vae.remat = 99, "blocks", "products"
    config.train.denoiser.accumulate = 4
    checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
    assert json.loads((tmp_path / "config.json").read_text())["data"]["max_bad"] == 99
    config.train.vae.accumulate = 2  # lambda is each micro-batch's own
    if gan:
        with pytest.raises(ValueError, match="another config: train.vae.accumulate 1 -> 2; use"):
            checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
    else:
        checkpoint.claim_workdir(tmp_path, config_lib.to_json(config))
