"""FID's Inception-v3: its tensors and their number, and pytorch-fid's own network."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.evaluation.features import inception
from nuwaxl_jax.evaluation.features import networks

# Of Inception-v3 without its classifier, as Keras counts it: 21,802,784 parameters, three of them a channel by batch
# normalisation without scales, of which 34,432 are running means and variances.
CHANNELS = 34_432 // 2
KERNELS = 21_802_784 - 3 * CHANNELS


def _zeros():
    """The original's tensors by name, without their memory."""
    out = {}
    for name, unit in inception._shapes().items():
        rows, columns, inputs, features = unit["conv"]["kernel"].shape
        out[f"{name}.conv.weight"] = (features, inputs, rows, columns)
        out |= {f"{name}.bn.{key}": (features,) for key in ("weight", "bias", "running_mean", "running_var")}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in out.items()}


def test_the_originals_tensors_fill_the_whole_network():
    state = _zeros() | {"fc.weight": np.zeros((3, 4)), "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros(())}
    filled = inception.params_of(state)
    frames = jax.ShapeDtypeStruct((2, inception.SIZE, inception.SIZE, 3), jnp.float32)
    wanted = jax.eval_shape(inception.Inception().init, jax.random.key(0), frames)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), filled) == jax.tree.map(lambda x: (x.shape, x.dtype), wanted)
    features = jax.eval_shape(inception.Inception().apply, {"params": filled}, frames)
    assert features.shape == (2, inception.WIDTH)


def test_as_many_parameters_as_inception_v3():
    shapes = [unit["conv"] for unit in inception._shapes().values()]
    assert len(shapes) == 94
    assert sum(conv["kernel"].size for conv in shapes) == KERNELS == 21_751_136
    assert sum(conv["bias"].size for conv in shapes) == CHANNELS == 17_216


def test_missing_and_misshapen_tensors_are_named():
    state = _zeros()
    kernel = state.pop("Mixed_6c.branch7x7_2.conv.weight")
    with pytest.raises(ValueError, match="no tensor 'Mixed_6c.branch7x7_2.conv.weight'"):
        inception.params_of(state)
    state["Mixed_6c.branch7x7_2.conv.weight"] = kernel.transpose(0, 1, 3, 2)
    with pytest.raises(
        ValueError, match=r"branch7x7_2.conv.weight' has shape \(160, 160, 7, 1\), not \(160, 160, 1, 7"
    ):
        inception.params_of(state)
    state["Mixed_6c.branch7x7_2.conv.weight"] = kernel
    del state["Mixed_7c.branch_pool.bn.running_var"]
    with pytest.raises(ValueError, match="no tensor 'Mixed_7c.branch_pool.bn.running_var'"):
        inception.params_of(state)


def test_batch_normalisation_goes_into_the_convolution():
    name, rng = "Conv2d_3b_1x1", np.random.default_rng(0)
    state = _zeros()
    kernel = rng.normal(size=(80, 64, 1, 1)).astype(np.float32)
    weight, bias, mean, variance = (rng.uniform(0.5, 2, 80).astype(np.float32) for _ in range(4))
    state |= {f"{name}.conv.weight": kernel, f"{name}.bn.weight": weight, f"{name}.bn.bias": bias}
    state |= {f"{name}.bn.running_mean": mean, f"{name}.bn.running_var": variance}
    x = rng.normal(size=(2, 3, 3, 64)).astype(np.float32)
    expected = (np.einsum("nhwi,oi->nhwo", x, kernel[:, :, 0, 0]) - mean) / np.sqrt(variance + 0.001) * weight + bias
    made = inception.Unit(80).apply({"params": inception.params_of(state)[name]}, x)
    np.testing.assert_allclose(made, np.maximum(expected, 0), rtol=1e-4, atol=1e-4)


def test_other_files_are_refused_with_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="--inception: nowhere.pth does not exist"):
        networks.inception_v3("nowhere.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_text("weights")
        with pytest.raises(ValueError, match=f"{name}.*give pytorch-fid's pt_inception-2015-12-05-6726825d.pth"):
            inception.read(tmp_path / name)


def _torchvision():
    place = pathlib.Path(__file__).with_name("torchvision_inception.py")
    spec = importlib.util.spec_from_file_location("torchvision_inception", place)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made.module()


@pytest.fixture(scope="module")
def original():
    """(pytorch-fid's network, its whole state), both of random numbers."""
    torch = pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", _torchvision())
        pytest.importorskip("pytorch_fid")
        import pytorch_fid.inception as theirs

        inner = theirs._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        generator = torch.Generator().manual_seed(0)
        state = {}
        for name, value in inner.state_dict().items():
            normal = torch.randn(value.shape, generator=generator)
            uniform = torch.rand(value.shape, generator=generator) + 0.5
            if name.endswith(("conv.weight", "fc.weight")):
                state[name] = normal * (2 / value[0].numel()) ** 0.5
            elif name.endswith(("bn.weight", "running_var")):
                state[name] = uniform
            else:
                state[name] = value if name.endswith("num_batches_tracked") else 0.1 * normal
        patch.setattr(theirs, "load_state_dict_from_url", lambda url, **_: state)
        network = theirs.InceptionV3(resize_input=True, normalize_input=True).eval()
        patch.delitem(sys.modules, "pytorch_fid.inception")  # who imports it next gets it with what is there then
    return network, state


@pytest.fixture(scope="module")
def params(original):
    return inception.params_of({name: value.numpy() for name, value in original[1].items()})


@pytest.mark.parity
@pytest.mark.parametrize("height, width", [(64, 48), (320, 400)], ids=["made larger", "made smaller"])
def test_equals_pytorch_fid(original, params, equals_original, height, width):
    torch = pytest.importorskip("torch")
    frames = np.random.default_rng(1).integers(0, 256, size=(2, height, width, 3)).astype(np.uint8)
    frames[1] = np.linspace(0, 255, width).astype(np.uint8)[:, None]  # one of noise, one smooth
    with torch.no_grad():
        [wanted] = original[0](torch.from_numpy(frames.transpose(0, 3, 1, 2)).float() / 255)
    wanted = wanted.numpy().reshape(2, -1)
    apply = lambda x: inception.Inception().apply({"params": params}, networks._resized(x, inception.SIZE))
    made = jax.jit(apply)(frames)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1 * np.abs(wanted).max()
    equals_original(f"Inception-v3 of FID, pytorch-fid, frames {height}x{width}", made, wanted, 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_the_file_that_torch_writes(original, params, tmp_path, zipped):
    torch = pytest.importorskip("torch")
    torch.save(original[1], tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    made = inception.read(tmp_path / "a.pth")
    assert jax.tree.structure(made) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, made, params)
