"""What of a run becomes weights."""

import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import export


def test_a_run_without_a_denoiser_has_nothing_to_sample_with(tmp_path):
    config = config_lib.default()
    config.train.stages = ("image_vae", "vae")
    (tmp_path / checkpoint.CONFIG_FILE).write_text(config_lib.to_json(config))
    with pytest.raises(ValueError, match="train.stages: .* has no denoiser, only image_vae, vae; train one"):
        export.bundle_from_workdir(str(tmp_path))
