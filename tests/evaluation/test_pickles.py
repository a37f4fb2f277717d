"""Pickles of arrays: what is read is what was written, nothing that they say is run, damage is one kind of error."""

import collections
import contextlib
import importlib.util
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from nuwaxl_jax.evaluation.features import pickles


def _write(path, data):
    path.write_bytes(data)
    return path


TREE = {
    "params": {
        "conv": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.arange(4, dtype=np.float64)},
        "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    },
    "counts": np.array([1, -2, 2**40], np.int64),
    "foreign": np.array([1, 2, 70000], ">i4"),
    "number": np.array(3.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def _same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            _same(one[name], other[name])
    else:
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("protocol", [3, 4])
def test_trees_of_arrays_come_back(tmp_path, protocol):
    _same(pickles.read_numpy(_write(tmp_path / "a.pkl", pickle.dumps(TREE, protocol=protocol))), TREE)


def test_older_and_newer_numpy_names_the_same_constructor(tmp_path):
    data = pickle.dumps(TREE, protocol=3)
    assert b"numpy._core.multiarray" in data
    older = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    _same(pickles.read_numpy(_write(tmp_path / "a.pkl", older)), TREE)


class _Call:
    """Pickled as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


_FOREIGN = {
    "posix.system": lambda flag: _Call(os.system, f"touch {flag}"),
    "builtins.exec": lambda flag: _Call(exec, f"open({str(flag)!r}, 'w')"),
    "builtins.eval": lambda flag: _Call(eval, f"open({str(flag)!r}, 'w')"),
    "builtins.setattr": lambda flag: _Call(setattr, {}, "a", str(flag)),
    "numpy.load": lambda flag: _Call(np.load, str(flag)),
    "collections.OrderedDict": lambda flag: collections.OrderedDict(a=np.zeros(2)),
}


@pytest.mark.parametrize("name", _FOREIGN)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_other_names_are_refused_and_nothing_runs(tmp_path, name, protocol):
    flag = tmp_path / "ran"
    made = {"a": np.zeros(2), "b": _FOREIGN[name](flag)} if protocol > 2 else _FOREIGN[name](flag)
    path = _write(tmp_path / "a.pkl", pickle.dumps(made, protocol))
    for read in (pickles.read_numpy, pickles.read_torch):
        what = "a.pkl is not a"
        if read is pickles.read_numpy and protocol < 5:  # the others stop at what comes before
            old = name.replace("builtins", "__builtin__") if protocol < 3 else name
            what = f"names {old}, which is not read"
        with pytest.raises(ValueError, match=what):
            read(path)
    assert not flag.exists()


def test_arrays_of_objects_and_other_things_are_refused(tmp_path):
    flag = tmp_path / "ran"
    objects = np.array([_Call(os.system, f"touch {flag}"), None], object)
    for made in (objects, np.array(["a", None], object), [np.zeros(2)], {"a": [1]}, {"a": "text"}, 3, None):
        with pytest.raises(ValueError, match="is not a pickle of numpy arrays"):
            pickles.read_numpy(_write(tmp_path / "a.pkl", pickle.dumps(made, protocol=4)))
    with pytest.raises(ValueError, match="a list among the arrays"):
        pickles.read_numpy(_write(tmp_path / "a.pkl", pickle.dumps({"a": [1]}, protocol=4)))
    assert not flag.exists()


def _only_value_errors(path, data, read, changes=(0x01, 0x55, 0x80)):
    """Cut at every place and with every byte changed, a file is read or a ValueError, and nothing else."""
    read_all = 0
    damaged = [data[:cut] for cut in range(len(data))]
    for place in range(len(data)):
        for change in changes:
            if data[place] ^ change != pickle.LONG_BINPUT[0]:  # see the test of that below
                damaged.append(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
    for case in damaged:
        path.unlink(missing_ok=True)  # some file systems flush what is written over
        path.write_bytes(case)
        try:
            read(path)
            read_all += 1
        except ValueError as error:
            assert str(path) in str(error)
    return read_all, len(damaged)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of old codes
def test_damaged_files_are_value_errors_and_nothing_else(tmp_path):
    tree = {
        "a": {"b": np.arange(3, dtype=np.float32)},
        "c": np.asfortranarray(np.eye(2)[:, :1]),
        "d": np.ones(1, ">i8"),
    }
    data = pickle.dumps(tree, protocol=4)
    read, tried = _only_value_errors(tmp_path / "a.pkl", data, pickles.read_numpy)
    assert read < 0.4 * tried  # changed numbers, and names of arrays


@pytest.mark.parametrize("code", [b",4", b"f,", b"(2", b"O8", b"|O", b"M8", b"V0", b"??", b"\xc3\xa9"])
def test_damaged_codes_of_numbers_are_value_errors(tmp_path, code):
    data = pickle.dumps({"a": np.arange(3, dtype=np.float32)}, protocol=4)
    assert data.count(b"f4") == 1
    with pytest.raises(ValueError, match="is not a pickle of numpy arrays"):
        pickles.read_numpy(_write(tmp_path / "a.pkl", data.replace(b"f4", code)))


def test_trees_without_end_are_refused(tmp_path):
    within = {}
    within["a"] = within
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    data = b"\x80\x04" + b"}" + b"\x8c\x01a}" * 5000 + b"s" * 5000 + b"."  # 'deep', which pickle cannot write
    assert pickle.loads(b"\x80\x04" + b"}" + b"\x8c\x01a}" * 2 + b"s" * 2 + b".") == {"a": {"a": {}}}
    for case in (pickle.dumps(within, protocol=4), data):
        with pytest.raises(ValueError, match="is not a pickle of numpy arrays"):
            pickles.read_numpy(_write(tmp_path / "a.pkl", case))


def test_small_files_do_not_take_large_memory(tmp_path):
    """A place in the memo far beyond the file's length: Python would make a table of 256 MB here, of 64 GB at most."""
    data = b"\x80\x04}" + pickle.LONG_BINPUT + struct.pack("<I", 2**24) + b"."
    with pytest.raises(ValueError, match="is not a pickle of numpy arrays"):
        pickles.read_numpy(_write(tmp_path / "a.pkl", data))


def _value(value):
    """Text opcodes of numbers, names and tuples of them; bytes as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_value, value)) + b"t"
    return b"V%s\n" % value.encode() if isinstance(value, str) else b"I%d\n" % value


def _tensor(size, stride, offset=0, count=6, key="0"):
    storage = _value(("storage", b"ctorch\nFloatStorage\n", key, "cpu", count)) + b"Q"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _value((storage, offset, size, stride)) + b"R"


def _torch_zip(path, tensors, numbers=range(6), compression=zipfile.ZIP_STORED):
    """As torch.save writes it."""
    state = b"}" + b"".join(_value(name) + tensor + b"s" for name, tensor in tensors.items())
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("state/data.pkl", b"\x80\x02" + state + b".")
        archive.writestr("state/data/0", np.array(numbers, np.float32).tobytes())
    return path


def test_tensors_are_views_of_storages(tmp_path):
    tensors = {"all": _tensor((2, 3), (3, 1)), "turned": _tensor((3, 2), (1, 3)), "part": _tensor((2,), (2,), 1)}
    tensors |= {"number": _tensor((), (), 5), "none": _tensor((0, 3), (3, 1), 6)}
    made = pickles.read_torch(_torch_zip(tmp_path / "a.pth", tensors))
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    _same(made, dict(all=whole, turned=whole.T, part=whole.ravel()[1:4:2], number=whole[1, 2], none=whole[:0]) | made)
    for name, expected in (("all", whole), ("turned", whole.T), ("part", [1, 3]), ("number", 5)):
        np.testing.assert_array_equal(made[name], expected)
    assert made["none"].shape == (0, 3) and {x.dtype for x in made.values()} == {np.dtype(np.float32)}
    made["all"][0, 0] = 7  # arrays of their own
    assert made["turned"][0, 0] == 0


@pytest.mark.parametrize(
    "tensor",
    [_tensor((7,), (1,)), _tensor((2,), (1,), 5), _tensor((2, 3), (4, 1)), _tensor((2,), (-1,), 3)]
    + [_tensor((2,), (1,), -1), _tensor((-1,), (1,)), _tensor((2, 2), (1,)), _tensor((6,), (1,), count=7)],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, tensor):
    with pytest.raises(ValueError, match="is not a state of tensors written by torch.save"):
        pickles.read_torch(_torch_zip(tmp_path / "a.pth", {"a": tensor}))


def test_other_names_among_tensors_are_refused_and_nothing_runs(tmp_path):
    flag = tmp_path / "ran"
    call = b"cposix\nsystem\n" + _value((f"touch {flag}",)) + b"R"
    for tensors in ({"a": call}, {"a": _tensor((6,), (1,)), "b": call}):
        with pytest.raises(ValueError, match="names posix.system, which is not read"):
            pickles.read_torch(_torch_zip(tmp_path / "a.pth", tensors))
    for name in (b"ctorch\nload\n", b"ctorch._utils\n_rebuild_parameter\n", b"cnumpy\ndtype\n"):
        with pytest.raises(ValueError, match="which is not read"):
            pickles.read_torch(_torch_zip(tmp_path / "a.pth", {"a": name}))
    for other in (_value("text"), _value(3), b"N", b"}"):
        with pytest.raises(ValueError, match="is not a state of tensors"):
            pickles.read_torch(_torch_zip(tmp_path / "a.pth", {"a": other}))
    assert not flag.exists()


def test_a_file_cannot_change_how_the_next_one_is_read(tmp_path):
    """A pickle may set attributes, and of a class they would stay."""
    good = _torch_zip(tmp_path / "good.pth", {"a": _tensor((6,), (1,))})
    spec = importlib.util.spec_from_file_location("pickles_apart", pickles.__file__)
    apart = importlib.util.module_from_spec(spec)  # whose classes are no other test's
    spec.loader.exec_module(apart)
    names = b"}" + b"".join(_value(name) + b"ctorch\nFloatStorage\ns" for name in ("array", "items", "__init__"))
    for changed in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"):
        bad = _torch_zip(tmp_path / "bad.pth", {"a": changed + _value((b"N", names)) + b"b"})
        with contextlib.suppress(ValueError):
            apart.read_torch(bad)
        np.testing.assert_array_equal(apart.read_torch(good)["a"], np.arange(6))


def test_damaged_archives_are_value_errors_and_nothing_else(tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = _torch_zip(tmp_path / "a.pth", {"a": _tensor((2, 3), (3, 1))}, compression=compression).read_bytes()
        read, tried = _only_value_errors(tmp_path / "a.pth", data, pickles.read_torch, (1, 8, 0x55))
        assert read < 0.5 * tried  # fields of archives that say nothing


def _state(torch):
    whole = torch.arange(12.0).reshape(3, 4)
    state = collections.OrderedDict(whole=whole, turned=whole.t(), part=whole[1:, 1::2], number=torch.tensor(7))
    state |= dict(half=torch.arange(5).half(), double=torch.arange(3).double(), empty=torch.zeros(0, 2))
    return collections.OrderedDict(state, int32=torch.arange(4, dtype=torch.int32))


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_writes(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    state = _state(torch)
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(tmp_path / "a.pth") == zipped
    _same(pickles.read_torch(tmp_path / "a.pth"), {name: tensor.numpy() for name, tensor in state.items()})
    norm = torch.nn.BatchNorm2d(4)  # a module's own state, with versions beside it
    torch.save(norm.state_dict(), tmp_path / "b.pth", _use_new_zipfile_serialization=zipped)
    _same(pickles.read_torch(tmp_path / "b.pth"), {name: x.numpy() for name, x in norm.state_dict().items()})


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_torch_files_runs(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    flag = tmp_path / "ran"
    state = _state(torch) | {"b": _Call(os.system, f"touch {flag}")}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="names posix.system, which is not read"):
        pickles.read_torch(tmp_path / "a.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="torch.nn.modules.linear.Linear, which is not read"):
        pickles.read_torch(tmp_path / "a.pth")
    assert not flag.exists()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_torch_files_are_value_errors_and_nothing_else(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    torch.save(collections.OrderedDict(a=torch.ones(2)), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    _only_value_errors(tmp_path / "a.pth", (tmp_path / "a.pth").read_bytes(), pickles.read_torch, (1, 2, 8, 0x55))
