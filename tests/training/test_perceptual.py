"""LPIPS weights of a run: the label of a run without, the hash of a run with, and what is refused."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.models import lpips
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import loop
from nuwaxl_jax.training import perceptual

_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of the right shapes, small and random."""
    rng, state, inputs = np.random.default_rng(0), {}, 3
    for block, (places, features) in enumerate(zip(_PLACES, lpips.CHANNELS)):
        for place in places:
            taps = (features, inputs, 3, 3)
            state[f"net.slice{block + 1}.{place}.weight"] = rng.integers(-9, 9, taps, np.int8).astype(np.float16) / 99
            state[f"net.slice{block + 1}.{place}.bias"] = np.zeros(features, np.float16)
            inputs = features
        state[f"lin{block}.model.1.weight"] = np.ones((1, features, 1, 1), np.float16)
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    safetensors.numpy.save_file(state, path)
    return path


@pytest.fixture
def config(toons_presets):
    config = toons_presets.get_config("tiny")
    config.update_from_flattened_dict(toons_presets.ONE_LEVEL)
    config.vae.perceptual_weight = 1.0
    config.train.stages = ("image_vae",)
    config.train.image_vae.update(num_steps=1, log_every=1, batch_size=8)
    return config


def test_the_hash_of_the_file_becomes_the_label(file, config, tmp_path):
    config.vae.lpips_weights = str(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    resolved = perceptual.resolve(config, tmp_path)
    assert resolved.vae.lpips_sha256 == digest and config.vae.lpips_sha256 == ""
    assert perceptual.resolve(resolved, tmp_path) == resolved
    assert perceptual.label(resolved) == {"lpips": digest}
    assert set(perceptual.frozen(resolved)["lpips"]) == {"vgg", *(f"head{i}" for i in range(5))}


def test_without_weights_the_run_goes_on_with_a_label_and_one_line(config, tmp_path, capsys):
    resolved = perceptual.resolve(config, tmp_path)
    assert resolved.vae.lpips_sha256 == "none" and perceptual.label(resolved) == {"lpips": "none"}
    assert perceptual.frozen(resolved) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lpips: none. vae.perceptual_weight is 1.0 but vae.lpips_weights is empty")
    assert config_lib.from_json(config_lib.to_json(resolved)) == resolved


def test_a_run_that_asks_for_none_has_no_label(config, tmp_path, capsys):
    config.vae.perceptual_weight = 0.0
    assert perceptual.resolve(config, tmp_path) is config
    assert perceptual.label(config) == perceptual.frozen(config) == {}
    assert capsys.readouterr().err == ""


def test_where_no_vae_is_left_to_train_the_workdirs_label_counts(config, tmp_path, capsys):
    config.train.stages = ("denoiser",)
    assert perceptual.resolve(config, tmp_path).vae.lpips_sha256 == ""
    claimed = config.copy_and_resolve_references()
    claimed.vae.lpips_sha256 = "none"
    checkpoint.claim_workdir(tmp_path, config_lib.to_json(claimed))
    assert perceptual.resolve(config, tmp_path) == claimed
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("case", ["missing", "pickle", "broken", "others", "hash", "none", "no file"])
def test_weights_that_cannot_be_used_are_refused_in_one_line(case, file, config, tmp_path):
    names = dict(missing="a.safetensors", pickle="vgg.pth", broken="a.safetensors", others="a.safetensors")
    path = tmp_path / names[case] if case in names else file
    if case in ("pickle", "broken"):
        path.write_bytes(b"\x80\x02" * 20)
    if case == "others":
        safetensors.numpy.save_file({"x": np.zeros(2, np.float32)}, path)
    config.vae.lpips_weights = "" if case == "no file" else str(path)
    config.vae.lpips_sha256 = {"hash": "0" * 64, "none": "none", "no file": "0" * 64}.get(case, "")
    wanted = dict(
        missing=r"config.vae.lpips_weights: .* does not exist; give a .safetensors file",
        pickle="config.vae.lpips_weights: .* is a pickle",
        broken="config.vae.lpips_weights: .* not a readable safetensors file",
        others="config.vae.lpips_weights: no tensor 'net.slice1.0.weight'; save the state of lpips.LPIPS",
        hash="config.vae.lpips_sha256: asks for 0{64}, and .* has [0-9a-f]{64}; give the file",
        none="config.vae.lpips_sha256: asks for none, and .* has",
    )
    wanted["no file"] = "config.vae.lpips_sha256: asks for 0{64}, and vae.lpips_weights is empty"
    workdir = tmp_path / "run"
    with pytest.raises(config_lib.ConfigError, match=wanted[case]) as error:
        loop.train(config, str(workdir))
    assert "\n" not in str(error.value) and not workdir.exists()


@pytest.mark.slow
def test_a_run_with_weights_logs_lpips_and_is_not_resumed_without(file, config, tmp_path):
    config.vae.lpips_weights = str(file)
    loop.train(config, str(tmp_path))
    (line,) = (tmp_path / "image_vae" / "metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    assert values["lpips"] > 0 and values["nll"] == pytest.approx(values["recon"] + values["lpips"], rel=1e-5)
    assert "lpips_none" not in values
    saved = json.loads((tmp_path / "config.json").read_text())["vae"]["lpips_sha256"]
    assert saved == hashlib.sha256(file.read_bytes()).hexdigest()
    config.vae.lpips_weights = ""
    config.train.image_vae.num_steps = 2
    with pytest.raises(ValueError, match=f"another config: vae.lpips_sha256 '{saved}' -> 'none'"):
        loop.train(config, str(tmp_path))
