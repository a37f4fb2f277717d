"""Files and layouts without torch: what is read, refused and listed; every tensor there and back, bit for bit."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from nuwaxl_jax.importing import layouts
from nuwaxl_jax.importing import names
from nuwaxl_jax.importing import tensors
from nuwaxl_jax.importing import trees
from nuwaxl_jax.models import tklvae


@pytest.fixture(scope="module")
def vae():
    module = tklvae.TKLVAE(channels=8, channel_mults=(1, 2), latent_channels=2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 2, 8, 8, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    return names.vae_entries(2, 1, (True,)), params


def test_published_counts():
    """Stable Diffusion v1: 686 tensors of the U-Net, 248 of the VAE, 196 of CLIP (and positions that are counted)."""
    count = lambda entries: sum(len(e.theirs) for e in entries)
    for style in names.STYLES:
        unet = names.unet_entries(4, 2, (True, True, True, False), (True, True, False), style)
        vae = names.vae_entries(4, 2, (True, True, False), style)
        assert (count(unet), count(vae)) == (686, 248)
        everything = [name for e in (*unet, *vae) for name in e.theirs]
        assert len(set(everything)) == len(everything)
    assert count(names.text_entries(12)) == 196


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_shards_round_trip_bit_for_bit(tmp_path, vae, dtype):
    entries, params = vae
    theirs = {name: value.astype(dtype) for name, value in trees.tensors_of(entries, params).items()}
    parts = {
        "a-00001.safetensors": dict(list(theirs.items())[::2]),
        "a-00002.safetensors": dict(list(theirs.items())[1::2]),
    }
    for file, part in parts.items():
        safetensors.numpy.save_file(part, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
    read = tensors.Tensors(tmp_path)
    assert set(read) == set(theirs) and len(read) == len(theirs)
    report = trees.compare(entries, read.shapes, params)
    assert report == trees.Report((), (), (), len(theirs))
    filled = trees.fill(entries, read, params)
    assert jax.tree.structure(filled) == jax.tree.structure(params)
    for name, value in trees.tensors_of(entries, filled).items():
        np.testing.assert_array_equal(value.astype(dtype), theirs[name])
    untouched = params["encoder"]["conv_in"]["temporal"]["kernel"]
    np.testing.assert_array_equal(filled["encoder"]["conv_in"]["temporal"]["kernel"], untouched)


def test_what_does_not_fit_is_listed_by_name(vae):
    entries, params = vae
    shapes = {name: value.shape for name, value in trees.tensors_of(entries, params).items()}
    del shapes["encoder.conv_in.weight"]
    shapes["encoder.conv_in.bias"] = (9,)
    shapes["quant_conv.weight"] = (4, 4)
    shapes["loss.perceptual.weight"] = shapes["model_ema.decay"] = (1,)
    report = trees.compare(entries, shapes, params, ignored=("model_ema.",))
    assert not report.fits
    assert report.missing == ("encoder.conv_in.weight",)
    assert report.unexpected == ("loss.perceptual.weight",)
    assert len(report.wrong) == 2
    assert any("encoder.conv_in.bias" in line and "(9,)" in line and "(8,)" in line for line in report.wrong)
    assert any("quant_conv.weight" in line and "(4, 4)" in line for line in report.wrong)


def test_layouts_are_torchs():
    """A convolution and a joined linear map, by their definitions."""
    rng = np.random.default_rng(0)
    conv = rng.normal(size=(3, 2, 3, 3))
    ours = layouts.to_ours(names.Entry("k", ("w",), "conv"), {"w": conv})
    assert ours.shape == (3, 3, 2, 3) and ours[1, 2, 0, 2] == conv[2, 0, 1, 2]
    q, k = rng.normal(size=(2, 4, 5))
    x = rng.normal(size=5)
    joined = layouts.to_ours(names.Entry("k", ("q", "k"), "linear"), {"q": q, "k": k})
    np.testing.assert_allclose(x @ joined, np.concatenate([q @ x, k @ x]), rtol=1e-12)
    for shape in ((4, 5), (4, 5, 1, 1)):
        point = layouts.to_ours(names.Entry("k", ("q",), "pointwise"), {"q": q.reshape(shape)})
        np.testing.assert_array_equal(point, q.T)


@pytest.mark.parametrize(
    "files, message",
    [
        (["model.bin"], "pickle"),
        ([], "no .safetensors"),
        (["a.safetensors", "b.safetensors"], "2 safetensors files"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_in_one_line(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(tensors.WeightsError, match=message) as error:
        tensors.Tensors(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    with pytest.raises(tensors.WeightsError, match="does not exist"):
        tensors.Tensors(tmp_path / "none")
    pickled = tmp_path / "v1-5.ckpt"
    pickled.write_bytes(b"\x80\x02")
    with pytest.raises(tensors.WeightsError, match="pickle"):
        tensors.Tensors(pickled)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 40)
    with pytest.raises(tensors.WeightsError, match="not a readable"):
        tensors.Tensors(broken)
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "m-1.safetensors"}}))
    with pytest.raises(tensors.WeightsError, match="m-1.safetensors, which is not there"):
        tensors.Tensors(tmp_path)
