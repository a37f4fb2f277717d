"""What the writer leaves behind: JSON lines, events that TensorBoard's reader understands, GIFs that play."""

import io
import json
import struct

import numpy as np
from PIL import Image
import pytest
from tensorboardX.proto import event_pb2

from nuwaxl_jax.training import metrics


def _events(folder):
    """Summary values in the event files: a file is a row of (length, crc, bytes, crc)."""
    out = {}
    for path in folder.glob("events.*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                out[value.tag] = (event.step, value)
            data = data[16 + length :]
    return out


def test_scalars_images_and_videos_are_written(tmp_path):
    writer = metrics.MetricWriter(str(tmp_path))
    writer.scalars(5, {"loss": 0.25, "psnr": 30.0})
    writer.scalars(10, {"loss": 0.125})
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (6, 16, 24, 3), dtype=np.uint8)
    writer.media(10, {"still": video[0], "film": video})
    writer.text(0, "config", "{}")
    writer.close()
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 5, "loss": 0.25, "psnr": 30.0}, {"step": 10, "loss": 0.125}]
    events = _events(tmp_path)
    assert events["loss"][0] == 10 and events["loss"][1].simple_value == 0.125
    still = Image.open(io.BytesIO(events["still"][1].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(still), video[0])
    film = Image.open(io.BytesIO(events["film"][1].image.encoded_image_string))
    assert film.format == "GIF" and film.n_frames == 6 and film.size == (24, 16)


def test_a_second_run_appends(tmp_path):
    for step in (1, 2):
        writer = metrics.MetricWriter(str(tmp_path))
        writer.scalars(step, {"loss": 1.0})
        writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_floats_are_not_pictures(tmp_path):
    writer = metrics.MetricWriter(str(tmp_path))
    with pytest.raises(ValueError, match=r"'film' is float32 \(2, 4, 4, 3\); an image is uint8"):
        writer.media(0, {"film": np.zeros((2, 4, 4, 3), np.float32)})
    writer.close()


def test_parameter_table_counts():
    table = metrics.parameter_table({"dense": {"kernel": np.zeros((3, 4), np.float32)}})
    assert "dense/kernel" in table and "Total: 12" in table
