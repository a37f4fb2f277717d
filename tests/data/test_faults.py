"""Files as strangers make them: each is read as what it shows, or left out with a reason."""

import av
import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import doctor
from nuwaxl_jax.data import videos


def encode(path, codec, pixels, height=48, width=64, count=20, container=None, **options):
    """Frame i is grey of level 10 i + 20, in the codec's own pixel format."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 10 * i + 20, np.uint8), format="rgb24")
            out.mux(stream.encode(frame.reformat(format=pixels)))
        out.mux(stream.encode())
    path.with_suffix(".txt").write_text("grey")


def levels(path, size=16):
    source = videos.VideoSource(path, split="train", frame_size=size, min_frames=2)
    assert len(source) == 1
    return source.frames(0, np.arange(source.num_frames(0)))


@pytest.mark.parametrize(
    "name, codec, pixels, sizes, container",
    [
        ("ten_bits.mkv", "ffv1", "yuv420p10le", (48, 64), None),
        ("ten_bits.mov", "prores_ks", "yuv422p10le", (48, 64), None),
        ("alpha.webm", "libvpx-vp9", "yuva420p", (48, 64), None),
        ("alpha.mkv", "ffv1", "bgra", (48, 64), None),
        ("odd.mkv", "ffv1", "yuv444p", (47, 33), None),
        ("tall.mp4", "libx264", "yuv420p", (120, 34), None),
        ("matroska_inside.mp4", "libx264", "yuv420p", (48, 64), "matroska"),
        ("mp4_inside.webm", "libx264", "yuv420p", (48, 64), "mp4"),
    ],
)
def test_unusual_files_are_read_as_what_they_show(tmp_path, name, codec, pixels, sizes, container):
    encode(tmp_path / name, codec, pixels, *sizes, container=container)
    frames = levels(tmp_path)
    assert frames.shape == (20, 16, 16, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 10 * np.arange(20) + 20, atol=3)


def _no_frames(path):
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()


def _sound_alone(path):
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.rate = 44100
        out.mux(stream.encode(silence))
        out.mux(stream.encode())


def _one_frame(path):
    encode(path, "libx264", "yuv420p", count=1)


def _picture(path):
    Image.new("RGB", (64, 48)).save(path, "jpeg")


def _page(path):
    path.write_text("<html>404</html>")


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "make, step",
    [
        (_no_frames, "readable"),
        (_sound_alone, "readable"),
        (_one_frame, "long enough"),
        (_picture, "readable"),
        (_page, "readable"),
        (_empty, "readable"),
    ],
)
def test_what_is_no_video_is_left_out_with_a_reason(tmp_path, make, step):
    make(tmp_path / "bad.mp4")
    (tmp_path / "bad.txt").write_text("grey")
    encode(tmp_path / "good.mkv", "ffv1", "yuv444p")
    config = config_lib.default()
    config.data.update(source="folder", path=str(tmp_path))
    report = doctor.check(config, say=lambda line: None)
    [bad] = report["left_out"]
    assert (bad["name"], bad["step"]) == ("bad.mp4", step) and bad["reason"] and "\n" not in bad["detail"]
    assert report["funnel"]["kept"] == 1


def test_a_link_to_nowhere(tmp_path):
    encode(tmp_path / "good.mkv", "ffv1", "yuv444p")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "gone.txt").write_text("nowhere")
    config = config_lib.default()
    config.data.update(source="folder", path=str(tmp_path))
    report = doctor.check(config, say=lambda line: None)
    assert [(each["name"], each["step"]) for each in report["left_out"]] == [("gone.mp4", "readable")]


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    encode(tmp_path / "good.mkv", "ffv1", "yuv444p")
    config = config_lib.default()
    config.data.update(source="folder", path=str(tmp_path))
    with pytest.raises(FileNotFoundError):
        doctor.check(config, out=str(tmp_path / "no_such_folder" / "report.json"), say=lambda line: None)


def test_limits_hold_for_every_kind(tmp_path):
    encode(tmp_path / "long.mkv", "ffv1", "yuv444p")
    with pytest.raises(ValueError, match="no video is left"):
        limits = video_io.Limits(max_frames=10)
        videos.VideoSource(tmp_path, split="train", frame_size=16, limits=limits)
