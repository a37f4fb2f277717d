"""Frames and captions by seconds, in files that round the times of their frames."""

import json

import numpy as np
import pytest

from nuwaxl_jax import config as config_lib
from nuwaxl_jax import video_io
from nuwaxl_jax.data import shots
from nuwaxl_jax.data import videos
from nuwaxl_jax.data.captioning import captioners
from nuwaxl_jax.data.captioning import run as captioning
from nuwaxl_jax.data.intake import clock
from nuwaxl_jax.data.prepared import captions as captions_lib
from nuwaxl_jax.data.prepared import format as format_lib
from nuwaxl_jax.data.prepared import plan as plan_lib

CONTAINERS = {".mkv": ("matroska", "libx264"), ".webm": ("webm", "libvpx"), ".mp4": ("mp4", "libx264")}


def write_video(path, num=48, fps=24):
    """Frame i is grey of level 5 i; Matroska and WebM round its time to a whole millisecond."""
    av = pytest.importorskip("av")
    container, codec = CONTAINERS[path.suffix]
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 32, 32, "yuv420p", 2_000_000
        for level in 5 * np.arange(num, dtype=np.uint8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def numbers(frames):
    return np.round(frames.astype(float).mean(axis=(1, 2, 3)) / 5).astype(int)


@pytest.mark.parametrize("suffix, fps", [(".mkv", 24), (".webm", 30), (".mp4", 24)])
def test_frames_by_time_are_each_frame_once(tmp_path, suffix, fps):
    write_video(tmp_path / f"v{suffix}", 48, fps)
    for step in (1, 2):
        options = dict(split="train", frame_size=16, fps=fps / step, require_captions=False)
        source = videos.VideoSource(tmp_path, **options)
        assert source.num_frames(0) == 48 // step
        found = numbers(source.frames(0, np.arange(48 // step)))
        np.testing.assert_array_equal(found, np.arange(0, 48, step))
        plan = plan_lib.make(tmp_path, format_lib.Settings(frame_size=16, fps=fps / step))
        assert plan.length(0) == 48 // step
        np.testing.assert_array_equal(plan.numbers(plan_lib.Piece(0, 0, 48 // step))[0], np.arange(0, 48, step))


class _Numbers(captioners.Captioner):
    """Takes note of the frames that it is asked for."""

    source, model, revision = "machine", "numbers", "1"

    def __init__(self):
        self.asked = []

    def __call__(self, frames, video, numbers):
        self.asked += numbers
        return [captioners.Made("grey", 1.0) for _ in numbers]


def test_captioned_frames_are_at_their_stride(tmp_path):
    write_video(tmp_path / "in" / "v.mkv")
    config = config_lib.default()
    config.data.path = str(tmp_path / "in")
    captioner = _Numbers()
    captioning.run(config, captioner, str(tmp_path / "out.jsonl"), stride=1 / 6, say=lambda line: None)
    assert captioner.asked == list(range(0, 48, 4))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_captions_of_one_frame_each_stay_on_theirs(tmp_path, suffix):
    """As `VideoSource` tells them, as prepared sets keep them, and as shots carry them on."""
    write_video(tmp_path / f"v{suffix}")
    lines = [{"start": i / 24, "end": (i + 1) / 24, "text": f"frame {i}"} for i in range(48)]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = [f"frame {i}" for i in range(48)]
    for fps in (0.0, 24.0):
        source = videos.VideoSource(tmp_path, split="train", frame_size=16, fps=fps)
        assert source.captions(0, np.arange(48)) == wanted
    [video] = source.videos
    which, covered = captions_lib.which(video, np.arange(48), video.index.times)
    assert covered.all() and [video.entry.captions[number].text for number in which] == wanted
    assert [video.entry.captions[number].text for number in shots._captions(video)] == wanted


def test_times_are_the_nearest_to_their_fractions(tmp_path):
    write_video(tmp_path / "v.mp4")
    with video_io.VideoReader(tmp_path / "v.mp4") as reader:
        np.testing.assert_array_equal(reader.index.times, np.arange(48) / 24)


def test_the_tolerance_is_below_the_frames_own_gap():
    """Frames a millisecond apart are not taken for one another; one frame alone has no gap."""
    times = np.arange(10) / 1000
    np.testing.assert_array_equal(clock.shown(times, times), np.arange(10))
    np.testing.assert_array_equal(clock.shown(times, times + 5e-4), np.arange(10))
    np.testing.assert_array_equal(clock.shown(times[:1], np.array([0.0, 1.0])), [0, 0])
