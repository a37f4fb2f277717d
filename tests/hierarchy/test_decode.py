"""Windows of decoding: each frame kept once, with context on both sides inside the video."""

import jax
import numpy as np
import pytest

from nuwaxl_jax import networks as networks_lib
from nuwaxl_jax.hierarchy import decode


@pytest.mark.parametrize("num_frames", [2, 16, 47, 48, 49, 50, 88, 89, 92, 93, 226, 3376])
def test_every_frame_is_kept_once_with_its_context(num_frames):
    kept = []
    for start, first, end in decode.windows(num_frames):
        length = min(decode.WINDOW, num_frames)
        assert 0 <= start <= first < end <= start + length <= num_frames
        assert first == 0 or first - start >= decode.CONTEXT
        assert end == num_frames or start + length - end >= decode.CONTEXT
        kept.extend(range(first, end))
    assert kept == list(range(num_frames))


def test_windows_shorter_than_their_context_are_refused():
    with pytest.raises(ValueError, match="twice the context"):
        decode.windows(100, window=8, context=4)


def test_windowed_decoding_equals_decoding_at_once(monkeypatch, toons_presets):
    config = toons_presets.get_config("tiny")
    config.vae.temporal = "none"  # without temporal layers windows cannot matter
    networks = networks_lib.build(config)
    bundle = dict(
        vae=networks.init_vae(jax.random.key(0)),
        latent_shift=np.zeros(4, np.float32),
        latent_scale=np.full(4, 2.0, np.float32),
    )
    latents = np.random.default_rng(0).normal(size=(23, *networks.latent_shape)).astype(np.float32)
    whole = np.concatenate(list(decode.decode_frames(networks, bundle, latents)))
    monkeypatch.setattr(decode, "WINDOW", 10)
    windows = decode.windows
    monkeypatch.setattr(decode, "windows", lambda n: windows(n, 10, 4))
    parts = np.concatenate(list(decode.decode_frames(networks, bundle, latents)))
    assert whole.shape == (23, 16, 16, 3) and whole.std() > 1
    np.testing.assert_array_less(np.abs(whole.astype(int) - parts).max(), 2)  # one grey level of rounding
