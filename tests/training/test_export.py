"""What of a run becomes weights."""

import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import export
from nuwaxl_jax.training import lineage


def test_a_run_without_a_denoiser_has_nothing_to_sample_with(tmp_path):
    config = config_lib.default()
    config.train.stages = ("image_vae", "vae")
    (tmp_path / checkpoint.CONFIG_FILE).write_text(config_lib.to_json(config))
    with pytest.raises(ValueError, match="train.stages: .* has no denoiser, only image_vae, vae; train one"):
        export.bundle_from_workdir(str(tmp_path))


def test_weights_keep_no_place_of_what_made_them_but_know_what_they_started_from(tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"weights")
    config = config_lib.default()
    config.train.stages = ("denoiser",)
    config.train.init_from, config.data.cache = str(start), str(tmp_path / "latents")
    config.vae.lpips_weights = str(tmp_path / "vgg.safetensors")
    (tmp_path / checkpoint.CONFIG_FILE).write_text(config_lib.to_json(config))
    monkeypatch.setattr(lineage, "frozen_of", lambda *arguments: dict(vae={}, latent_shift=[0.0], latent_scale=[1.0]))
    monkeypatch.setattr(checkpoint, "restore_ema", lambda *arguments: {})
    monkeypatch.setattr(checkpoint, "latest_step", lambda *arguments: 3)
    _, exported, card = export.bundle_from_workdir(str(tmp_path))
    assert str(tmp_path) not in config_lib.to_json(exported)
    assert card["started_from"] == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # sha256sum
    start.unlink()
    assert "started_from" not in export.bundle_from_workdir(str(tmp_path))[2]
