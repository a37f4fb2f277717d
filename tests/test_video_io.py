"""Reading and writing video: exact frames, damage that is seen, limits, and files that appear whole or not at all."""

import dataclasses
import fractions
import io
import os

import numpy as np
from PIL import Image
import pytest

from nuwaxl_jax import video_io


def numbered(num, height=48, width=64):
    """Frames that carry their number as 12 black or white squares, readable through any codec."""
    frames = np.full((num, height, width, 3), (90, 120, 60), np.uint8)
    for bit in range(12):
        row, column = divmod(bit, 4)
        on = (np.arange(num) >> bit & 1).astype(np.uint8) * 255
        frames[:, row * 12 + 2 : row * 12 + 12, column * 12 + 2 : column * 12 + 12] = on[:, None, None, None]
    return frames


def numbers(frames):
    """The inverse of `numbered`; frames may have been scaled, but not cropped."""
    scale = frames.shape[1] / 48
    result = np.zeros(len(frames), int)
    for bit in range(12):
        row, column = divmod(bit, 4)
        y, x = (int((place * 12 + 7) * scale) for place in (row, column))
        result |= (frames[:, y, x].mean(-1) > 127).astype(int) << bit
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def mp4(folder):
    path = folder / "long.mp4"
    assert video_io.write_mp4(path, numbered(300), 24) == 300
    return path


def encode_with(path, num, codec, container, *, rotate=None, **options):
    """Writes a file our writer does not: other codecs and containers."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if rotate is not None:
            stream.set_display_rotation(rotate)
        for array in numbered(num):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        output.mux(stream.encode())
    return path


def test_random_access_is_frame_exact(mp4):
    order = np.random.default_rng(0).integers(0, 300, 60)
    with video_io.VideoReader(mp4) as reader:
        assert dataclasses.astuple(reader.info) == pytest.approx((300, 24.0, 64, 48, 12.5))
        np.testing.assert_allclose(reader.index.times, np.arange(300) / 24, atol=1e-6)
        np.testing.assert_array_equal(numbers(reader.read(order)), order)
        for number in order[:20]:  # one at a time: forwards, backwards, twice the same
            assert numbers(reader.read(np.array([number, number]))).tolist() == [number, number]


@pytest.mark.parametrize("gop", [1, 2, 3, 12])
def test_short_gop_with_b_frames(folder, gop):
    path = folder / f"gop{gop}.mp4"
    video_io.write_mp4(path, numbered(60), 25, gop=gop)
    with video_io.VideoReader(path) as reader:
        for number in (59, 0, 31, 30, 29, 1, 58):
            assert numbers(reader.read(np.array([number])))[0] == number


@pytest.mark.parametrize(
    "name, codec, container, options",
    [
        ("a.mkv", "libx264", "matroska", {}),
        ("open_gop.mp4", "libx264", "mp4", {"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3"}),
        ("open_gop.mkv", "libx264", "matroska", {"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3"}),
        ("a.mov", "mpeg4", "mov", {"g": 12, "q": 3}),
        ("a.webm", "libvpx", "webm", {"g": 15, "deadline": "realtime", "b": "2M"}),
        ("a.avi", "mpeg4", "avi", {"g": 12, "q": 3}),
        ("b_frames.avi", "libx264", "avi", {}),
    ],
)
def test_containers_and_codecs(folder, name, codec, container, options):
    path = encode_with(folder / name, 50, codec, container, **options)
    order = np.array([49, 3, 17, 17, 40, 0, 12, 13, 31])
    with video_io.VideoReader(path) as reader:
        assert reader.info.num_frames == 50
        assert reader.info.fps == pytest.approx(25, rel=0.01)
        np.testing.assert_array_equal(numbers(reader.read(order)), order)
        for number in order:
            assert numbers(reader.read(np.array([number])))[0] == number


def test_colours_survive(folder):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 214, 10), (128, 128, 128), (250, 250, 250)]
    colours = np.array(colours, np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (6, 32, 32, 3))
    video_io.write_mp4(folder / "colours.mp4", frames, 6)
    with video_io.VideoReader(folder / "colours.mp4") as reader:
        error = np.abs(reader.read(np.arange(6)).astype(int) - frames)
    assert error.max() <= 4, error.max(axis=(1, 2))


def test_scaled_and_cropped(folder):
    frames = np.zeros((2, 64, 128, 3), np.uint8)
    frames[:, :, 32:96] = 200  # exactly the centred square
    video_io.write_mp4(folder / "wide.mp4", frames, 10)
    with video_io.VideoReader(folder / "wide.mp4") as reader:
        for size in (16, 64, 100):
            got = reader.read(np.array([1]), size=size)
            assert got.shape == (1, size, size, 3)
            inner = got[0, :, size // 8 : -size // 8].astype(int)
            assert np.abs(inner - 200).max() <= 4


def test_rotation_is_applied(folder):
    path = encode_with(folder / "phone.mp4", 4, "libx264", "mp4", rotate=90)
    with video_io.VideoReader(path) as reader:
        assert (reader.info.height, reader.info.width) == (64, 48)
        turned = reader.read(np.array([3]))
    assert numbers(np.rot90(turned, 1, axes=(1, 2)))[0] == 3 or numbers(np.rot90(turned, -1, axes=(1, 2)))[0] == 3
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        counterclockwise = next(container.decode(video=0)).rotation
    assert numbers(np.rot90(turned, -counterclockwise // 90, axes=(1, 2)))[0] == 3


def encode_circle(path, aspect, rotate=0, height=96, width=144):
    """A circle as shown: an ellipse in the file, whose pixels are `aspect` times as wide as high."""
    av = pytest.importorskip("av")
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5 - width / 2) * float(aspect)) ** 2 + (y + 0.5 - height / 2) ** 2 < 36**2
    array = np.repeat(np.where(inside, 230, 20).astype(np.uint8)[..., None], 3, -1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = aspect
        stream.set_display_rotation(rotate)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        output.mux(stream.encode())
    return path


def extent(frame):
    """(height, width) of what is bright."""
    bright = frame.mean(-1) > 125
    return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "aspect, rotate, shape", [((8, 9), 0, (96, 128)), ((4, 3), 90, (192, 96)), ((1, 1), 0, (96, 144))]
)
def test_pixels_that_are_not_square(tmp_path, container, aspect, rotate, shape):
    """The frames of a DVD are wider or narrower than they are stored; those with square pixels stay as they are."""
    path = encode_circle(tmp_path / f"circle.{container}", fractions.Fraction(*aspect), rotate)
    with video_io.VideoReader(path) as reader:
        assert (reader.info.height, reader.info.width) == shape
        [whole] = reader.read(np.array([1]))
        [square] = reader.read(np.array([1]), size=48)
    assert whole.shape == (*shape, 3) and square.shape == (48, 48, 3)
    np.testing.assert_allclose(extent(whole), 72, atol=2)
    np.testing.assert_allclose(extent(square), 36, atol=2)  # the short side is 96 as shown: half of it


def test_pixels_beyond_belief(tmp_path):
    """A file that says its pixels are a thousand times as wide as high is shown as it is stored."""
    path = encode_circle(tmp_path / "circle.mkv", fractions.Fraction(1000, 1))
    assert video_io.read_info(path).width == 144
    path = encode_circle(tmp_path / "wide.mkv", fractions.Fraction(4, 1))
    with pytest.raises(video_io.VideoError, match="55296 pixels a frame are over the limit of 50000"):
        video_io.read_info(path, video_io.Limits(max_pixels=50_000))


def test_chunks_cover_the_video(mp4):
    with video_io.VideoReader(mp4) as reader:
        chunks = list(reader.chunks(128))
    assert [len(chunk) for chunk in chunks] == [128, 128, 44]
    np.testing.assert_array_equal(numbers(np.concatenate(chunks)), np.arange(300))


def damaged(mp4, folder, name, change):
    data = bytearray(mp4.read_bytes())
    path = folder / name
    path.write_bytes(change(data))
    return path


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.99])
def test_cut_off_file_raises(mp4, folder, fraction):
    path = damaged(mp4, folder, "cut.mp4", lambda data: data[: int(len(data) * fraction)])
    with pytest.raises(video_io.VideoError, match="cut.mp4"):
        video_io.read_info(path)


@pytest.mark.parametrize("name, codec, container", [("cut.mkv", "libx264", "matroska"), ("cut.webm", "libvpx", "webm")])
def test_cut_off_matroska_raises(folder, name, codec, container):
    path = encode_with(folder / name, 75, codec, container)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(video_io.VideoError, match="cut off"):
        video_io.read_info(path)


def test_damaged_bytes_raise_and_later_reads_work(folder):
    good = folder / "good.mp4"
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 64, 3), np.uint8)
    video_io.write_mp4(good, noise, 24, gop=12)

    def overwrite(data):
        middle = len(data) // 2
        data[middle : middle + 2000] = bytes(2000)
        return data

    path = damaged(good, folder, "damaged.mp4", overwrite)
    with video_io.VideoReader(path) as reader:
        with pytest.raises(video_io.VideoError, match="damaged.mp4.*damaged"):
            reader.read(np.arange(48))
        assert reader.read(np.array([2])).shape == (1, 64, 64, 3)


def test_concealed_damage_raises(folder):
    """64 bytes inside a picture leave the file well-formed: the decoder would patch it up and go on."""
    noise = np.random.default_rng(1).integers(0, 256, (24, 128, 128, 3), np.uint8)
    video_io.write_mp4(folder / "noise.mp4", noise, 24, gop=12, crf=10)
    data = (folder / "noise.mp4").read_bytes()
    seen = 0
    for start in np.linspace(0.2, 0.8, 8):
        at = int(start * len(data))
        (folder / "patched.mp4").write_bytes(data[:at] + np.random.default_rng(at).bytes(64) + data[at + 64 :])
        try:
            with video_io.VideoReader(folder / "patched.mp4") as reader:
                reader.read(np.arange(24))
        except video_io.VideoError:
            seen += 1
    assert seen >= 5


def test_not_a_video(folder):
    for name, content in (
        ("empty.mp4", b""),
        ("text.mp4", b"hello world " * 99),
        ("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/hosts\n#EXT-X-ENDLIST\n"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(video_io.VideoError, match=name):
            video_io.VideoReader(folder / name)
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        video_io.VideoReader(folder / "missing.mp4")


@pytest.mark.parametrize(
    "limits, what",
    [
        (dict(max_pixels=1000), "pixels"),
        (dict(max_seconds=3.0), "s of video"),
        (dict(max_frames=100), "frames"),
        (dict(call_seconds=0.0), "took over"),
    ],
)
def test_limits(mp4, limits, what):
    with pytest.raises(video_io.VideoError, match=what):
        video_io.VideoReader(mp4, video_io.Limits(**limits))


def test_index_is_checked(mp4):
    with video_io.VideoReader(mp4) as reader:
        for index in ([300], [-1]):
            with pytest.raises(IndexError, match="of a video of 300"):
                reader.read(np.array(index))
        with pytest.raises(ValueError, match="integers"):
            reader.read(np.array([0.5]))
        assert reader.read(np.array([], np.int64)).shape == (0, 48, 64, 3)


def test_writer_streams_chunks_and_leaves_no_trace_of_failure(tmp_path):
    path = tmp_path / "out.mp4"
    frames = numbered(30)
    video_io.write_mp4(path, (frames[i : i + 7] for i in range(0, 30, 7)), 24)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="half way"):
        with video_io.VideoWriter(path, 24) as writer:
            writer.write(frames)
            assert path.read_bytes() == before
            raise RuntimeError("half way")
    with pytest.raises(ValueError, match="no frame"):
        video_io.write_mp4(tmp_path / "none.mp4", [], 24)
    with pytest.raises(ValueError, match="even"):
        video_io.write_mp4(tmp_path / "odd.mp4", frames[:, 1:], 24)
    with pytest.raises(ValueError, match="uint8"):
        video_io.write_mp4(tmp_path / "float.mp4", frames / 255.0, 24)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.mp4"]
    with video_io.VideoReader(path) as reader:
        np.testing.assert_array_equal(numbers(reader.read(np.arange(30))), np.arange(30))


def test_fragmented_file_is_readable(tmp_path):
    video_io.write_mp4(tmp_path / "f.mp4", numbered(60), 24, gop=12, fragmented=True)
    with video_io.VideoReader(tmp_path / "f.mp4") as reader:
        np.testing.assert_array_equal(numbers(reader.read(np.array([59, 20, 0]))), [59, 20, 0])


def test_gif_round_trip(tmp_path):
    path = tmp_path / "a.gif"
    frames = numbered(20)
    video_io.write_gif(path, frames, 10)
    with video_io.VideoReader(path) as reader:
        assert reader.info.num_frames == 20
        np.testing.assert_allclose(reader.index.times, np.arange(20) / 10, atol=1e-6)
        order = np.array([19, 3, 3, 0, 12])
        np.testing.assert_array_equal(numbers(reader.read(order)), order)
        assert reader.read(np.array([5]), size=32).shape == (1, 32, 32, 3)
    with Image.open(io.BytesIO(video_io.gif_bytes(frames, 10))) as image:
        assert image.n_frames == 20
    (tmp_path / "cut.gif").write_bytes(path.read_bytes()[:-300])
    with pytest.raises(video_io.VideoError, match="cut off"):
        video_io.read_info(tmp_path / "cut.gif")


def test_edit_list_hides_frames_before_the_start(folder):
    av = pytest.importorskip("av")
    path = folder / "trimmed.mp4"
    with av.open(str(path), "w", format="mp4", options={"avoid_negative_ts": "disabled"}) as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, array in enumerate(numbered(40)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = number - 10
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with video_io.VideoReader(path) as reader:
        assert reader.info.num_frames == 30
        np.testing.assert_array_equal(numbers(reader.read(np.arange(30))), np.arange(10, 40))
        assert numbers(reader.read(np.array([2])))[0] == 12


def test_an_index_opens_a_file_at_once_until_the_file_changes(tmp_path):
    path = tmp_path / "a.mp4"
    video_io.write_mp4(path, numbered(20), 24)
    with video_io.VideoReader(path) as reader:
        index = reader.index
    with video_io.VideoReader(path, index=index) as reader:
        assert numbers(reader.read(np.array([13])))[0] == 13
    video_io.write_mp4(path, numbered(21), 24)
    with pytest.raises(video_io.VideoError, match="changed"):
        video_io.VideoReader(path, index=index)
