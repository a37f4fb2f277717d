"""The real stages of the tiny preset, stopped within each and resumed, make the same bytes."""

import jax
import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax.training import checkpoint
from nuwaxl_jax.training import interrupts
from nuwaxl_jax.training import loop


@pytest.fixture
def eight(toons_presets):
    """The tiny preset, one level less, with batches that eight devices share."""
    config = toons_presets.get_config("tiny")
    config.vae.channel_mults = (1,)
    config.unet.update(channel_mults=(1,), prompt_levels=(True,))
    for stage in config.train.stages:
        config.train[stage].batch_size = 8
    return config


@pytest.mark.long
def test_the_real_stages_resume_to_the_same_bytes(eight, tmp_path, capsys):
    """Every stage of the tiny preset: the whole run, and one stopped within each stage."""
    loop.train(eight, str(tmp_path / "a"))
    stops = iter([3, 5, 2, 4])
    done = False

    class StopOnce(interrupts.Interrupt):
        def __init__(self):
            super().__init__()
            self.left = next(stops, None)

        def asked(self):
            if self.left is None:
                return False
            self.left -= 1
            return self.left <= 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupts, "Interrupt", StopOnce)
        while not done:
            try:
                loop.train(eight, str(tmp_path / "b"))
                done = True
            except SystemExit as left:
                assert left.code == 42
    for stage in config_lib.STAGES:
        a, b = (checkpoint.restore_ema(tmp_path / run, stage) for run in "ab")
        jax.tree.map(np.testing.assert_array_equal, a, b)
    capsys.readouterr()
    loop.train(eight, str(tmp_path / "b"))
    assert capsys.readouterr().out.count("skipped") == 4
    other = eight.copy_and_resolve_references()
    other.unet.channels = 16
    with pytest.raises(ValueError, match="another config: unet.channels 8 -> 16"):
        loop.train(other, str(tmp_path / "b"))


def test_videos_too_short_for_the_tree_are_refused_before_the_first_stage(eight, tmp_path):
    eight.data.episode_frames = 12  # enough for the VAE's clips of 4, and for levels 1 and 2; level 0 has 28 frames
    with pytest.raises(ValueError, match="train.denoiser: .* 0 are long enough for level 0.*needs 28 frames"):
        loop.train(eight, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
