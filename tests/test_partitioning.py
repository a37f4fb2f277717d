"""Meshes and shardings, read off real arrays on eight virtual devices."""

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from nuwaxl_jax import partitioning


@pytest.mark.parametrize(
    "sizes, shape",
    [
        (dict(), (8, 1, 1)),
        (dict(fsdp=4), (2, 4, 1)),
        (dict(data=2, fsdp=2, model=2), (2, 2, 2)),
        (dict(fsdp=4, model=2), (1, 4, 2)),
    ],
)
def test_mesh_has_all_three_axes(sizes, shape):
    mesh = partitioning.make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(fsdp=3), "does not divide 8 devices"),
        (dict(data=4), "is not the number of devices, 8"),
        (dict(data=0), "mesh.data is 0"),
        (dict(fsdp=-1), "mesh.fsdp is -1"),
        (dict(model=0), "mesh.model is 0"),
    ],
)
def test_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        partitioning.make_mesh(**sizes)


def test_mesh_of_some_devices():
    assert partitioning.make_mesh(fsdp=2, devices=jax.devices()[:2]).size == 2


def _place(tree, mesh, min_size=1):
    shardings = partitioning.param_shardings(tree, mesh, min_size)
    return jax.tree.map(jax.device_put, tree, shardings)


def test_fsdp_takes_the_largest_dimension_it_divides():
    mesh = partitioning.make_mesh(fsdp=4)
    tree = {
        "conv": {"kernel": np.zeros((3, 3, 8, 16)), "bias": np.zeros(16)},
        "odd": {"kernel": np.zeros((9, 8))},  # 9 is larger but 4 does not divide it
        "square": {"kernel": np.zeros((8, 8))},  # equal: the output channels
        "prime": {"kernel": np.zeros((7, 5))},
        "step": np.zeros(()),
    }
    placed = _place(tree, mesh)
    assert placed["conv"]["kernel"].sharding.spec == P(None, None, None, "fsdp")
    assert placed["conv"]["bias"].sharding.spec == P("fsdp")
    assert placed["odd"]["kernel"].sharding.spec == P(None, "fsdp")
    assert placed["square"]["kernel"].sharding.spec == P(None, "fsdp")
    assert placed["prime"]["kernel"].sharding.spec == P()
    assert placed["step"].sharding.spec == P()
    # What a device really holds.
    assert placed["conv"]["kernel"].addressable_shards[0].data.shape == (3, 3, 8, 4)


def test_small_parameters_stay_whole():
    mesh = partitioning.make_mesh(fsdp=4)
    placed = _place({"kernel": np.zeros((8, 8))}, mesh, min_size=65)
    assert placed["kernel"].sharding.is_fully_replicated


def test_attention_and_feed_forward_lie_on_model():
    mesh = partitioning.make_mesh(fsdp=2, model=2)
    block = {
        "self_attention": {
            "qkv": {"kernel": np.zeros((8, 24)), "bias": np.zeros(24)},
            "out": {"kernel": np.zeros((8, 8)), "bias": np.zeros(8)},
        },
        "prompt_attention": {"kv": {"kernel": np.zeros((6, 16))}, "q": {"kernel": np.zeros((8, 8))}},
        "feed_forward": {"in": {"kernel": np.zeros((8, 32))}, "out": {"kernel": np.zeros((16, 8))}},
        "proj_in": {"kernel": np.zeros((8, 8))},
    }
    placed = _place({"unet": {"down0_0": block}}, mesh)["unet"]["down0_0"]
    attention = placed["self_attention"]
    assert attention["qkv"]["kernel"].sharding.spec == P("fsdp", "model")
    assert attention["qkv"]["bias"].sharding.spec == P("model")
    assert attention["out"]["kernel"].sharding.spec == P("model", "fsdp")
    assert attention["out"]["bias"].sharding.spec == P("fsdp")
    assert placed["prompt_attention"]["kv"]["kernel"].sharding.spec == P("fsdp", "model")
    assert placed["feed_forward"]["in"]["kernel"].sharding.spec == P("fsdp", "model")
    assert placed["feed_forward"]["out"]["kernel"].sharding.spec == P("model", "fsdp")
    assert placed["proj_in"]["kernel"].sharding.spec == P(None, "fsdp")


def test_batch_lies_on_data_and_fsdp():
    mesh = partitioning.make_mesh(fsdp=2)
    batch = partitioning.put_batch({"frames": np.arange(16 * 3).reshape(16, 3)}, mesh)
    assert batch["frames"].sharding.spec == P(("data", "fsdp"))
    assert {s.data.shape for s in batch["frames"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(batch["frames"], np.arange(48).reshape(16, 3))


@pytest.mark.parametrize(
    "processes",
    [
        [[[0, 0]], [[1, 1]]],  # tensor parallelism within a process
        [[[0], [1]], [[0], [1]]],  # a process's rows need not lie together
        [[[0], [0], [1], [1], [2], [2]]],
    ],
)
def test_processes_that_hold_rows_of_their_own_are_accepted(processes):
    partitioning.check_rows_of_processes(np.array(processes))


@pytest.mark.parametrize(
    "processes, message",
    [
        ([[[0, 1]]], "mesh.model is 2, so processes 0 and 1 would hold the same rows of a batch"),
        ([[[0, 0], [0, 1], [1, 1]]], "processes 0 and 1 would hold .*use a smaller mesh.model"),
        ([[[0, 1, 2, 3]], [[4, 5, 6, 7]]], "mesh.model is 4, so processes 0 and 1 and 2 and 3 would"),
        ([[[0], [0], [1]]], "mesh.data . mesh.fsdp = 3 gives one process 1 shares of a batch and another 2"),
    ],
)
def test_processes_that_would_train_on_one_anothers_rows_are_refused(processes, message):
    with pytest.raises(ValueError, match=message) as error:
        partitioning.check_rows_of_processes(np.array(processes))
    assert "\n" not in str(error.value)


def test_the_process_of_each_device_is_read_off_the_mesh():
    processes = partitioning.processes_of(partitioning.make_mesh(fsdp=2, model=2))
    assert processes.shape == (2, 2, 2) and not processes.any()
    partitioning.check_rows_of_processes(processes)


def test_constrain_pins_the_batch_inside_jit():
    mesh = partitioning.make_mesh(fsdp=2)
    out = jax.jit(lambda x: partitioning.constrain(x * 2, mesh))(np.ones((8, 4, 2)))
    assert out.addressable_shards[0].data.shape == (1, 4, 2)
    assert partitioning.constrain("anything", None) == "anything"


def test_batch_that_the_mesh_does_not_divide_names_the_field():
    mesh = partitioning.make_mesh()
    partitioning.batch_size_divides(mesh, 16, "train.vae.batch_size")
    with pytest.raises(ValueError, match="train.vae.batch_size is 12, which mesh.data"):
        partitioning.batch_size_divides(mesh, 12, "train.vae.batch_size")
