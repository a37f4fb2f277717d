"""Weights: a round trip, and every kind of wrong file."""

import jax
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import weights


def _bundle():
    rng = np.random.default_rng(0)
    tree = lambda: {
        "a": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)},
        "b": rng.normal(size=2).astype(np.float32),
    }
    return {
        "vae": tree(),
        "latent_shift": np.float32([0.1, 1e-8]),
        "latent_scale": np.float32([1 / 3, 2.0]),
        "denoisers": tuple({"unet": tree(), "text": tree()} for _ in range(2)),
    }


def test_round_trip(tmp_path):
    path, bundle, config = tmp_path / "w.safetensors", _bundle(), config_lib.default()
    config.seed = 5
    weights.save(path, bundle, config, {"name": "x"}, dtype="float32")
    loaded, loaded_config, card = weights.load(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(bundle)
    jax.tree.map(np.testing.assert_array_equal, loaded, bundle)
    assert loaded_config.seed == 5 and card["name"] == "x" and len(card["sha256"]) == 64
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_half_precision_rounds_weights_but_not_the_latent_statistics(tmp_path):
    path, bundle = tmp_path / "w.safetensors", _bundle()
    weights.save(path, bundle, config_lib.default(), {})
    loaded, _, _ = weights.load(path)
    np.testing.assert_array_equal(loaded["latent_shift"], bundle["latent_shift"])
    np.testing.assert_allclose(loaded["vae"]["b"], bundle["vae"]["b"], rtol=1e-3)
    assert loaded["vae"]["b"].dtype == np.float32


def test_overflow_is_refused_before_anything_is_written(tmp_path):
    bundle = _bundle()
    bundle["vae"]["b"][0] = 1e6
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="vae/b"):
        weights.save(tmp_path / "w.safetensors", bundle, config_lib.default(), {})
    assert not list(tmp_path.iterdir())


def test_wrong_files_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        weights.load(tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="not a readable safetensors"):
        weights.load(damaged)
    path = tmp_path / "w.safetensors"
    weights.save(path, _bundle(), config_lib.default(), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a readable safetensors"):
        weights.load(path)
