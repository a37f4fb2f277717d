"""LPIPS: a closed form, finite gradients, the names of the original's tensors, and the original itself."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.models import lpips

SHIFT, SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])


def _uniform(color, size=16):
    return np.broadcast_to(np.asarray(color, np.float32), (1, size, size, 3))


def _passing(key=0):
    """Parameters whose every convolution passes its pixel on, so every block sees the standardised colour, and ReLU."""
    module = lpips.LPIPS(channels=(3,) * 5)
    shapes = jax.eval_shape(module.init, jax.random.key(key), _uniform([0, 0, 0]), _uniform([0, 0, 0]))["params"]
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    for conv in params["vgg"].values():
        conv["kernel"][1, 1] = np.eye(3)
    params |= {f"head{block}": np.ones(3, np.float32) for block in range(5)}
    return jax.jit(module.apply), params


def test_distance_of_plain_colours_in_closed_form():
    distance, params = _passing()
    heads = np.random.default_rng(0).uniform(size=(5, 3)).astype(np.float32)
    params |= {f"head{block}": heads[block] for block in range(5)}
    a, b = [0.5, -0.2, 0.9], [-0.7, 0.3, 0.1]

    def direction(color):
        seen = np.maximum((np.array(color) - SHIFT) / SCALE, 0)
        return seen / np.linalg.norm(seen)

    expected = np.sum(heads * (direction(a) - direction(b)) ** 2)
    for size in (16, 32):  # in the last block of the first, one pixel
        made = distance({"params": params}, _uniform(a, size), _uniform(b, size))
        assert made[0] == pytest.approx(expected, rel=1e-5)


def test_equal_images_are_at_zero_and_no_gradient_breaks():
    distance, params = _passing()
    both = jax.jit(jax.value_and_grad(lambda a, b: distance({"params": params}, a, b).sum()))
    dark = _uniform([-1, -1, -1])  # every activation is 0: a direction that does not exist
    for other, expected in ((dark, 0.0), (_uniform([0.5, 0.5, 0.5]), 5.0)):
        value, gradient = both(dark, other)
        assert value == pytest.approx(expected) and np.isfinite(gradient).all()


def test_images_of_another_shape_are_refused():
    distance, params = _passing()
    with pytest.raises(ValueError, match=r"H and W at least 16; got \(1, 8, 8, 3\)"):
        distance({"params": params}, _uniform([0, 0, 0], 8), _uniform([0, 0, 0], 8))


def _state(channels):
    """Random tensors under the original's names, torch's layout."""
    rng, out, inputs = np.random.default_rng(0), {}, 3
    for block, (places, features) in enumerate(
        zip(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), channels)
    ):
        for place in places:
            scale = np.sqrt(2 / (9 * inputs))
            out[f"net.slice{block + 1}.{place}.weight"] = scale * rng.normal(size=(features, inputs, 3, 3))
            out[f"net.slice{block + 1}.{place}.bias"] = 0.1 * rng.normal(size=features)
            inputs = features
        out[f"lin{block}.model.1.weight"] = rng.uniform(size=(1, features, 1, 1))
    return {name: value.astype(np.float32) for name, value in out.items()}


def test_the_originals_tensors_fill_the_whole_network():
    state = {name: np.broadcast_to(np.float16(0), value.shape) for name, value in _state(lpips.CHANNELS).items()}
    filled = lpips.params_of(state | {"scaling_layer.shift": np.zeros((1, 3, 1, 1))})
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    wanted = jax.eval_shape(lpips.LPIPS().init, jax.random.key(0), images, images)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), filled) == jax.tree.map(lambda x: (x.shape, x.dtype), wanted)
    assert sum(x.size for x in jax.tree.leaves(filled)) == 14_714_688 + 1_472  # VGG16's convolutions, and the heads
    del state["lin2.model.1.weight"]
    with pytest.raises(ValueError, match="no tensor 'lin2.model.1.weight'"):
        lpips.params_of(state)
    state["lin2.model.1.weight"] = np.zeros((1, 255, 1, 1))
    with pytest.raises(ValueError, match=r"'lin2.model.1.weight' has shape \(1, 255, 1, 1\), not \(1, 256, 1, 1\)"):
        lpips.params_of(state)


def _images(count=2, height=48, width=33):
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(-1, 1, (count, height, width, 3)).astype(np.float32) for _ in range(2))
    b[1:] = 0.9 * a[1:] + 0.1 * b[1:]  # one pair unlike, the others alike
    return a, b


def _compare(theirs, state, channels, equal, what):
    torch = pytest.importorskip("torch")
    a, b = _images()
    with torch.no_grad():
        wanted = theirs(*(torch.from_numpy(x.transpose(0, 3, 1, 2)) for x in (a, b))).numpy().reshape(-1)
    made = jax.jit(lpips.LPIPS(channels).apply)({"params": lpips.params_of(state, channels)}, a, b)
    assert wanted.min() > 0.01
    equal(what, made, wanted, 2e-5)


@pytest.mark.parity
def test_equals_the_formula_in_torch(equals_original):
    """VGG16 and the distance in torch's own operators, with torch's layout of the same tensors."""
    torch = pytest.importorskip("torch")
    channels = (8, 12, 16, 16, 16)
    state = _state(channels)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}

    def features(x):
        out = []
        x = (x - torch.tensor(SHIFT, dtype=x.dtype)[:, None, None]) / torch.tensor(SCALE, dtype=x.dtype)[:, None, None]
        for block in range(5):
            x = torch.nn.functional.max_pool2d(x, 2, 2) if block else x
            for name in (n for n in tensors if n.startswith(f"net.slice{block + 1}.") and n.endswith("weight")):
                bias = tensors[name.replace("weight", "bias")]
                x = torch.relu(torch.nn.functional.conv2d(x, tensors[name], bias, padding=1))
            out.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def theirs(a, b):
        both = zip(features(a), features(b))
        return sum(
            ((p - q).square() * tensors[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2)) for i, (p, q) in enumerate(both)
        )

    _compare(theirs, state, channels, equals_original, "LPIPS, formula in torch")


def _torchvision(torch):
    """A stand-in with the one thing that the package takes: VGG16's layers (configuration D), here at random.

    The real one must be of the same build as torch, and breaks `transformers` where it is not.
    """

    def vgg16(**_):
        layers, inputs = [], 3
        for features, count in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3)):
            for _ in range(count):
                layers += [torch.nn.Conv2d(inputs, features, 3, padding=1), torch.nn.ReLU(inplace=True)]
                inputs = features
            layers.append(torch.nn.MaxPool2d(2, 2))
        return types.SimpleNamespace(features=torch.nn.Sequential(*layers))

    module = types.ModuleType("torchvision")
    module.models = types.SimpleNamespace(vgg16=vgg16)
    return module


@pytest.mark.parity
def test_equals_the_lpips_package(monkeypatch, equals_original):
    """The package's own network at full size, its weights random (`pip install --no-deps lpips==0.1.4`)."""
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "torchvision", _torchvision(torch))
    original = pytest.importorskip("lpips").LPIPS(pretrained=False, net="vgg", pnet_rand=True, verbose=False)
    state = _state(lpips.CHANNELS)
    missing = original.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False).missing_keys
    shared = {f"lins.{i}.model.1.weight" for i in range(5)}  # the same heads under a second name
    assert set(missing) <= shared | {"scaling_layer.shift", "scaling_layer.scale"}
    _compare(original.eval(), state, lpips.CHANNELS, equals_original, "LPIPS, package")
