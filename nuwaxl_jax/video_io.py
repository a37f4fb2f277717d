"""The only file that reads or writes video containers (PyAV; GIFs are written by Pillow).

Reading is by frame number and frame-exact: opening walks the packets once, without decoding, and keeps every
presentation time and key frame; frame i is the i-th in order of presentation, reached by a seek to the key frame
before it. The distance of key frames is therefore what random access costs: encode prepared clips with `gop` of 8 to
24. AVI and GIF cannot be entered in the middle and are decoded from the start.

Files come from strangers. Only local files of known containers are opened; pixels, frames and seconds are capped before
anything is decoded; every call has a time limit; strict error flags are set and no frame is used that the decoder
patched up, or damaged H.264 would be plausible garbage. Damage that still is a valid stream cannot be seen.

Writing is H.264, yuv420p, BT.709, streamed to a hidden file that takes its name only when complete.
"""

import contextlib
import dataclasses
import fractions
import io
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import av
from av.video import reformatter
import numpy as np
from PIL import Image

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")

_STRICT = "crccheck+bitstream+buffer+explode"
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
_OPEN = {"err_detect": _STRICT, "protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
_BT709, _UNSPECIFIED, _LIMITED_RANGE = 1, 2, 1  # AVCOL_SPC_BT709, _UNSPECIFIED, AVCOL_RANGE_MPEG
_MODES = reformatter.Interpolation
_QUALITY = _MODES.ACCURATE_RND | _MODES.FULL_CHR_H_INT
_TO_YUV = dict(dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE, interpolation=_MODES.AREA | _QUALITY)


class VideoError(ValueError):
    """A file that is no video, is damaged, or exceeds the limits; the message names it."""


class _Missed(VideoError):
    """Decoding went past a frame without showing it."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file may ask of us: pixels a frame, seconds and frames of video, seconds a call may take."""

    max_pixels: int = 4096 * 2304
    max_seconds: float = 6 * 3600.0
    max_frames: int = 1_500_000
    call_seconds: float = 120.0


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Facts of a file; width and height as shown: pixels made square, then turned."""

    num_frames: int
    fps: float
    width: int
    height: int
    seconds: float


def check_limits(path: str, limits: Limits, *, pixels: int = 0, seconds: float = 0.0, frames: int = 0) -> None:
    of_length = (seconds, limits.max_seconds, "s of video"), (frames, limits.max_frames, "frames")
    for value, most, unit in ((pixels, limits.max_pixels, "pixels a frame"), *of_length):
        if value > most:
            raise VideoError(f"{path}: {value:.0f} {unit} are over the limit of {most:g}; scale or cut the file.")


@dataclasses.dataclass(frozen=True, eq=False)
class VideoIndex:
    """What walking a file's packets tells; a reader made with it opens at once.

    Attributes:
      info: the file's VideoInfo.
      times: float64 [num_frames], seconds from the first frame.
      pts, keys: int64 [num_frames], times in the stream's unit, and int64 [K], key frames; None where seeks fail.
      stamp: size and modification time of the file.
    """

    info: VideoInfo
    times: np.ndarray
    pts: np.ndarray | None
    keys: np.ndarray | None
    stamp: tuple[int, int]


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """Size and modification time of a file."""
    return (status := os.stat(path)).st_size, status.st_mtime_ns


class VideoReader(contextlib.AbstractContextManager):
    """Frame-exact random access to the file `path`, with its `index` and `info`. Not thread-safe."""

    def __init__(self, path: str | os.PathLike, limits: Limits = Limits(), index: VideoIndex | None = None):
        """Opens a file, and walks through it unless its `index` is known from before.

        Raises:
          VideoError: no video, cut off, damaged packets, or over a limit.
          FileNotFoundError: no such file.
        """
        self.path, self._limits = os.fspath(path), limits
        self._container, self._position = None, -1
        self._reformatter = reformatter.VideoReformatter()
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"{self.path}: no such file.")
        with self._errors("cannot be read as a video"):
            self._open()
            self.index = self._scan() if index is None else index
            self.info = self.index.info
            if self.index.stamp != stamp(self.path):
                raise VideoError(f"{self.path}: has changed since it was indexed; start again.")

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Closes the file; a later `read` opens it again."""
        if self._container is not None:
            self._container.close()
        self._container = None

    def read(self, index: np.ndarray, size: int | None = None) -> np.ndarray:
        """Decodes frames `index` (int [n], any order, repeats allowed): uint8 [n, H, W, 3], RGB.

        With `size`, the short side is scaled to it and the centred square is kept.

        Raises:
          VideoError: damaged, or slower than the time limit.
          IndexError: outside 0..num_frames-1.
        """
        index = np.asarray(index)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise ValueError(f"index must be integers of shape [n], got {index.dtype} {index.shape}.")
        if index.size and not 0 <= index.min() <= index.max() < self.info.num_frames:
            raise IndexError(f"{self.path}: frames {index.min()}..{index.max()} of a video of {self.info.num_frames}.")
        shape = (size, size) if size is not None else (self.info.height, self.info.width)
        unique, inverse = np.unique(index, return_inverse=True)
        frames = np.empty((len(unique), *shape, 3), np.uint8)
        self._end = time.monotonic() + self._limits.call_seconds
        with self._errors("damaged"):
            for row, number in enumerate(unique.tolist()):
                frames[row] = self._to_rgb(self._decode(number), size)
        return frames[inverse]

    def chunks(self, num: int = 64, size: int | None = None) -> Iterator[np.ndarray]:
        """All frames in order, uint8 [<= num, H, W, 3] at a time."""
        for start in range(0, self.info.num_frames, num):
            yield self.read(np.arange(start, min(start + num, self.info.num_frames)), size)

    @contextlib.contextmanager
    def _errors(self, what: str):
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, (av.FFmpegError, StopIteration)):
                raise VideoError(f"{self.path}: {what}, at frame {self._position + 1} ({error}).") from error
            raise

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise VideoError(f"{self.path}: took over {self._limits.call_seconds:g} s; re-encode or remove the file.")

    def _open(self) -> None:
        self.close()
        self._container = av.open(self.path, "r", container_options=_OPEN)
        if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
            raise VideoError(f"{self.path}: holds no video that can be decoded.")
        self._stream = self._container.streams.video[0]
        codec = self._stream.codec_context
        self._declared = (self._container.duration or 0) / 1e6  # seconds
        aspect = float(self._stream.sample_aspect_ratio or 1)  # a pixel's width by its height: 8 / 9 on many a DVD
        self._aspect = aspect if 0.1 < aspect < 10 else 1.0  # beyond, it is a mistake
        pixels = codec.width * codec.height * max(1, self._aspect)
        check_limits(self.path, self._limits, pixels=pixels, seconds=self._declared)
        codec.options = {"err_detect": _STRICT, "max_pixels": str(self._limits.max_pixels)}
        codec.thread_count = 1  # readers are what runs in parallel
        self._decoded = self._container.decode(self._stream)
        self._position, self._frame, self._entry = -1, None, 0  # the last decoded frame; where decoding began

    def _scan(self) -> VideoIndex:
        """Walks the packets: presentation times, key frames, and whether the file is whole."""
        self._end = time.monotonic() + self._limits.call_seconds
        expected = len(self._stream.index_entries)
        times, are_keys, packets, ends = [], [], 0, {}
        for packet in self._container.demux():
            self._check_time()
            if packet.is_corrupt:
                raise VideoError(f"{self.path}: damaged or cut off after frame {len(times)}.")
            stream = packet.stream_index
            if packet.pts is not None:
                ends[stream] = max(ends.get(stream, 0), packet.pts + (packet.duration or 0))
            if stream == self._stream.index and packet.size:
                packets += 1
                if not packet.is_discard:  # an edit list may hide frames
                    times.append(packet.pts)
                    are_keys.append(packet.is_keyframe)
                check_limits(self.path, self._limits, frames=packets)
        kind, streams = self._container.format.name, self._container.streams
        end = max([float(at * streams[stream].time_base) for stream, at in ends.items()], default=0.0)
        end -= (self._container.start_time or 0) / 1e6
        if not times or packets < expected or end < self._declared - max(1.0, 0.05 * self._declared):
            raise VideoError(f"{self.path}: cut off: {packets} frames, {end:.1f} of {self._declared:.1f} s are there.")
        if kind == "gif":
            with open(self.path, "rb") as file:
                file.seek(-2, os.SEEK_END)
                if not file.read().rstrip(b"\0").endswith(b";"):
                    raise VideoError(f"{self.path}: cut off: the end mark of a GIF is missing.")
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        seconds, pts, keys = np.arange(len(times)) / rate, None, None
        if kind != "avi" and None not in times and len(set(times)) == len(times):  # AVI's are decoding times
            order = np.argsort(times)
            pts, keys = np.asarray(times, np.int64)[order], np.flatnonzero(np.asarray(are_keys)[order])
            base = self._stream.time_base  # as a float it would be rounded, and frame 7 come before 7 / 24
            seconds = (pts - pts[0]) * float(base.numerator) / base.denominator
        check_limits(self.path, self._limits, seconds=seconds[-1] + 1 / rate)
        self._open()
        first = next(self._decoded)  # tells the rotation, and that there is a decoder
        self._open()
        width = round(first.width * self._aspect) or 1
        height, width = (width, first.height) if first.rotation % 180 else (first.height, width)
        info = VideoInfo(len(times), rate, width, height, float(seconds[-1] + 1 / rate))
        return VideoIndex(info, seconds, *((None, None) if kind == "gif" else (pts, keys)), stamp(self.path))

    def _decode(self, number: int) -> av.VideoFrame:
        """Frame `number`; continues from the last one where no key frame lies between."""
        if self._container is None:
            self._open()
        if number == self._position:
            return self._frame
        if self.index.pts is None:
            if number < self._position:
                self._open()
            return self._forward(number)
        key = int(np.searchsorted(self.index.keys, number, side="right")) - 1
        if self._position < number and (key < 0 or self.index.keys[key] <= self._position + 1):
            return self._forward(number)
        # A container's own index may lead past the frame, and a decoder may fail on what precedes a key frame in an
        # open group of pictures: then one key frame further back, and last from the start.
        for attempt in self.index.keys[max(0, key - 1) : key + 1][::-1].tolist():
            self._container.seek(int(self.index.pts[attempt]), stream=self._stream, backward=True)
            self._decoded = self._container.decode(self._stream)
            self._position, self._entry = attempt - 1, attempt
            try:
                return self._forward(number)
            except (_Missed, av.FFmpegError):
                continue
        self._open()
        return self._forward(number)

    def _forward(self, number: int) -> av.VideoFrame:
        """Decodes up to frame `number`; _Missed where it does not come."""
        for frame in self._decoded:
            self._check_time()
            position = self._position + 1
            if self.index.pts is not None:
                position = int(np.searchsorted(self.index.pts, -1 if frame.pts is None else frame.pts))
                if position == self.info.num_frames or self.index.pts[position] != frame.pts:
                    continue  # hidden by an edit list
            if frame.is_corrupt and position >= self._entry:
                break  # what follows may be predicted from it
            self._position, self._frame = position, frame
            if position == number:
                return frame
            if position > number:
                break
        raise _Missed(f"{self.path}: damaged: frame {number} cannot be decoded.")

    def _to_rgb(self, frame: av.VideoFrame, size: int | None) -> np.ndarray:
        """uint8 [H, W, 3], as shown; with `size`, the short side scaled to it and the centred square kept."""
        height, width, top, left = frame.height, round(frame.width * self._aspect) or 1, 0, 0
        if size is not None:
            scale = size / min(height, width)
            height, width = max(size, round(height * scale)), max(size, round(width * scale))
            top, left = (height - size) // 2, (width - size) // 2
        # High definition without a colour tag is BT.709 by convention, smaller frames are BT.601.
        colours = _BT709 if frame.colorspace == _UNSPECIFIED and frame.height >= 720 else None
        scaling = (_MODES.AREA if height < frame.height else _MODES.BICUBIC) | _QUALITY
        how = dict(src_colorspace=colours, interpolation=scaling, threads=1)
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", **how)
        return np.rot90(rgb.to_ndarray()[top:, left:][:size, :size], round(frame.rotation / 90))


def read_info(path: str | os.PathLike, limits: Limits = Limits()) -> VideoInfo:
    """The facts of a file, found by walking all its packets; raises as `VideoReader` does."""
    with VideoReader(path, limits) as reader:
        return reader.info


def _temporary_name(path: str | os.PathLike) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")


class VideoWriter(contextlib.AbstractContextManager):
    """Streams frames into an H.264 mp4 that appears under its name only when complete; a context manager.

    An exception inside the `with` block, or no frame, discards the file and leaves one of that name as it was.
    """

    def __init__(
        self, path: str | os.PathLike, fps: float, *, crf: int = 18, gop: int | None = None, fragmented: bool = False
    ):
        """Prepares a file; nothing is written before the first frame.

        Args:
          path: target, in a folder that exists.
          fps: frames a second, > 0.
          crf: x264's constant rate factor, 0 (lossless) to 51; 18 is visually lossless.
          gop: frames from key frame to key frame; None leaves it to x264 (up to 250).
          fragmented: can be read up to where it was cut off, instead of having its index in front for streaming.
        """
        for name, value, good in (("fps", fps, 0 < fps < 1000), ("crf", crf, 0 <= crf <= 51), ("gop", gop, gop != 0)):
            if not good:
                raise ValueError(f"{name} is {value}; give 0 < fps < 1000, 0 <= crf <= 51, gop >= 1 or None.")
        self.path, self.num_frames = os.fspath(path), 0
        self._temporary = _temporary_name(self.path)
        self._rate = fractions.Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf)} | ({} if gop is None else {"g": str(gop)})
        self._flags = "frag_keyframe+empty_moov+default_base_moof" if fragmented else "faststart"
        self._container = None
        self._reformatter = reformatter.VideoReformatter()

    def __exit__(self, kind, *_):
        try:
            if kind is None and self._container is None:
                raise ValueError(f"{self.path}: no frame was written.")
            if kind is None:
                self._container.mux(self._stream.encode())
                self._container.close()
                os.replace(self._temporary, self.path)
        finally:
            if self._container is not None:
                self._container.close()
            if os.path.exists(self._temporary):
                os.remove(self._temporary)

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 [n, H, W, 3], RGB; H and W even and always the same."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; give uint8 [n, H, W, 3].")
        if self._container is None and len(frames):
            self._start(*frames.shape[1:3])
        if len(frames) and frames.shape[1:3] != (self._stream.height, self._stream.width):
            raise ValueError(f"frames of {frames.shape[1:3]} after {(self._stream.height, self._stream.width)} (H, W).")
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame = self._reformatter.reformat(frame, format="yuv420p", threads=1, **_TO_YUV)
            frame.pts, frame.time_base = self.num_frames, 1 / self._rate
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1

    def _start(self, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"frames are {height}x{width}; H.264 in yuv420p needs even sides: pad or crop by a pixel.")
        self._container = av.open(self._temporary, "w", format="mp4", options={"movflags": self._flags})
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=self._options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        codec = self._stream.codec_context
        codec.time_base, codec.color_range = 1 / self._rate, _LIMITED_RANGE
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709


def write_mp4(path: str | os.PathLike, frames: np.ndarray | Iterable[np.ndarray], fps: float, **options: Any) -> int:
    """Writes uint8 [F, H, W, 3], or an iterable of such chunks, as `VideoWriter` does; returns F."""
    with VideoWriter(path, fps, **options) as writer:
        for chunk in [frames] if hasattr(frames, "shape") else frames:
            writer.write(chunk)
    return writer.num_frames


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """An endless GIF of uint8 [F, H, W, 3], 256 colours a frame; equal neighbours become one longer frame."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; give uint8 [F, H, W, 3], F >= 1.")
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    # GIF counts hundredths of a second, and browsers slow down frames shorter than two of them.
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0)
    return buffer.getvalue()


def write_gif(path: str | os.PathLike, frames: np.ndarray, fps: float) -> None:
    """Writes `gif_bytes` to a file, all or nothing."""
    data, temporary = gif_bytes(frames, fps), _temporary_name(path)
    with open(temporary, "xb") as file:
        file.write(data)
    os.replace(temporary, path)
