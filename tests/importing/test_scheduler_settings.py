"""A pipeline folder's noise against the config's: what scheduler_config.json says, and what it leaves to diffusers."""

import json

import numpy as np
import pytest

from nuwaxl_jax.diffusion import schedules
from nuwaxl_jax.importing import export
from nuwaxl_jax.importing import parts
from nuwaxl_jax.importing import run
from nuwaxl_jax.importing import tensors

# As it lies in Stable Diffusion v1's folders, written by diffusers 0.6.
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def conflicts(tmp_path, config, settings, **process):
    config = config.copy_and_resolve_references()
    config.diffusion.update(process)
    (tmp_path / "scheduler").mkdir(exist_ok=True)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    return list(parts.scheduler_conflicts(config, str(tmp_path)))


def test_what_the_file_leaves_out_is_diffusers_default(tmp_path, config):
    eps = dict(prediction="eps", zero_terminal_snr=False)
    assert conflicts(tmp_path, config, STABLE_DIFFUSION, **eps) == []
    lines = conflicts(tmp_path, config, STABLE_DIFFUSION, prediction="v", zero_terminal_snr=True)
    assert len(lines) == 2
    assert "has no prediction_type, which means 'epsilon', config.diffusion.prediction makes 'v_pred" in lines[0]
    assert "has no rescale_betas_zero_snr, which means False, config.diffusion.zero_terminal_snr" in lines[1]
    lines = conflicts(tmp_path, config, {}, num_timesteps=100, **eps)
    assert len(lines) == 2 and "has no beta_schedule" in lines[0] and "has no num_train_timesteps" in lines[1]
    assert conflicts(tmp_path, config, {}, schedule="linear", **eps) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"beta_start": 0.0015}, "has beta_start=0.0015, and scaled_linear here has 0.00085"),
        ({"beta_end": 0.0195}, "has beta_end=0.0195, and scaled_linear here has 0.012"),
        ({"beta_end": ...}, "has no beta_end, which means 0.02, and scaled_linear here has 0.012"),
        ({"trained_betas": [0.001] * 1000}, "has trained_betas"),
    ],
)
def test_other_betas_are_refused(tmp_path, config, change, said):
    settings = {key: value for key, value in (STABLE_DIFFUSION | change).items() if value is not ...}
    lines = conflicts(tmp_path, config, settings)
    assert len(lines) == 1 and said in lines[0] and len(lines[0]) < 200


def test_an_import_is_refused_for_its_betas(tmp_path, config, pipeline):
    for part in ("vae", "unet", "text_encoder", "tokenizer"):
        (tmp_path / part).symlink_to(pipeline / part)
    assert len(conflicts(tmp_path, config, STABLE_DIFFUSION | {"beta_start": 0.0015})) == 1
    with pytest.raises(tensors.WeightsError, match="beta_start=0.0015"):
        run.run(config, str(tmp_path), {}, str(tmp_path / "w.safetensors"))
    assert not (tmp_path / "w.safetensors").exists()


def test_a_cosine_has_no_ends_to_compare(tmp_path, config):
    settings = STABLE_DIFFUSION | {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02}
    assert conflicts(tmp_path, config, settings, schedule="cosine") == []


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_what_is_written_is_accepted_and_has_the_tables_ends(tmp_path, config, schedule):
    config = config.copy_and_resolve_references()
    config.diffusion.schedule = schedule
    settings = export.settings_of(config, 1.0)["scheduler"]
    assert conflicts(tmp_path, config, settings) == []
    if schedule != "cosine":
        table = schedules.alphas_cumprod(schedule, 1000)
        ends = [1.0 - table[0], 1.0 - table[-1] / table[-2]]
        np.testing.assert_allclose(ends, [settings["beta_start"], settings["beta_end"]])
