"""Videos: read frame by frame with their times, and written with the same times.

Needs PyAV, which is imported when a video is opened: `pip install degrid[video]`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

_SUFFIXES = ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .wmv .flv .3gp .ogv"
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""Endings of the files that count as videos, in lower case."""
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""How results are written, by the ending of their names."""
MARK = "result of degrid predict"
"""Comment in what is written, so that results are not taken for videos to segment."""
_BT709 = 1  # the number of a colour space, and of its primaries and transfer curve
_NARROW = 1  # values from 16 to 235
_SLACK = 0.5
"""Seconds by which the last frame may end early before the file counts as truncated."""


def reads_videos() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_result_video(path: Path) -> bool:
    """Whether a file is a video that `VideoWriter` wrote."""
    av = _library()
    try:
        with av.open(os.fspath(path)) as container:
            return MARK in (container.metadata.get("comment"), container.metadata.get("COMMENT"))
    except (av.error.FFmpegError, OSError, ValueError):
        return False


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Attributes:
        pixels: upright, uint8 [H,W,3].
        pts: when it is shown, in units of the video's time base.
        duration: until the next frame, or until the video ends, in the same units; 0 if that is unknown.
    """

    pixels: np.ndarray
    pts: int
    duration: int


class VideoReader:
    """A video that is read from its beginning to its end; use as a context manager.

    Args:
        path: of the file.
        said: what it is called in messages; by default its path.
        opening: further arguments of PyAV's `open`.
    Attributes:
        path: what it is called.
        size: height and width of the upright frames, pixels.
        time_base: seconds in a unit of time.
        rate: frames per second, on average.
        expected: how many frames there are, as far as the file says; None if it does not.
        sound: the stream of its sound, for `VideoWriter`; None without.
    Raises:
        UserError: no such file, no video, or PyAV is missing.
    """

    def __init__(self, path: Path | str, said: str = "", **opening: Any) -> None:
        self.path, self._av = said or os.fspath(path), _library()
        try:
            self._container = self._av.open(os.fspath(path), **opening)
        except FileNotFoundError as error:
            raise UserError(f"no such video: {self.path}") from error
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            what = "cannot be opened" if said else "is not a readable video, or is damaged"
            raise UserError(f"{self.path} {what}: {reason(error)}") from error
        pictures = [stream for stream in self._container.streams.video if stream.codec_context is not None]
        if not pictures or pictures[0].time_base is None:
            self._container.close()
            raise UserError(f"{self.path} is damaged, or contains no frames; give a video")
        self._stream = pictures[0]
        self._stream.thread_type = "AUTO"
        self.time_base: Fraction = self._stream.time_base
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.expected = self._stream.frames or self._estimated()
        self.sound = next(iter(self._container.streams.audio), None)
        self._last_duration = 0

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._container.close()

    def _seconds(self) -> float | None:
        """The duration of the pictures according to the file."""
        stream = self._stream
        if stream.duration is not None:
            return float(stream.duration * self.time_base)
        text = stream.metadata.get("DURATION", "").split(":")
        with contextlib.suppress(ValueError):
            return sum(float(part) * unit for part, unit in zip(text, (3600, 60, 1), strict=True))
        return None

    def _estimated(self) -> int | None:
        seconds = self._seconds()
        if seconds is None and self._container.duration is not None:
            seconds = self._container.duration / 1_000_000
        return round(seconds * self.rate) if seconds else None

    def items(self) -> Iterator[Frame | Any]:
        """The frames in the order in which they are shown, and between them the packets of the sound as they are.

        Durations are what lies between the times. Those of the file are in the order in which frames are stored.

        Raises:
            UserError: the file is damaged, or cut off.
        """
        waiting: tuple[np.ndarray, int] | None = None
        for item in self._decoded():
            if not isinstance(item, tuple):
                yield item
                continue
            frame, pts = item
            if waiting:
                yield Frame(*waiting, pts - waiting[1])
            waiting = _upright(frame), pts
        if waiting:
            end = (self._stream.start_time or 0) + (self._stream.duration or 0)
            yield Frame(*waiting, max(end - waiting[1], 0) or self._last_duration)

    def _decoded(self) -> Iterator[tuple[Any, int] | Any]:
        """Frames with their times, and packets of the sound."""
        streams = [self._stream, *([] if self.sound is None else [self.sound])]
        packets, last, count = 0, None, 0
        try:
            for packet in self._container.demux(*streams):
                if packet.stream is not self._stream:
                    if packet.dts is not None:
                        yield packet
                    continue
                packets += packet.size > 0
                for frame in packet.decode():
                    pts = self._time(frame, last)
                    if packet.is_corrupt or frame.is_corrupt:
                        raise self._damaged(pts)
                    last, count = pts, count + 1
                    self._last_duration = frame.duration or 0
                    yield frame, pts
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise self._damaged(last, error) from error
        self._check_end(packets, count, last)

    def _time(self, frame: Any, last: int | None) -> int:
        """When a frame is shown: as the file says, but always after the one before."""
        step = max(1, round(1 / (self.rate * self.time_base)))
        pts: int = frame.pts if frame.pts is not None else 0 if last is None else last + step
        return pts if last is None else max(pts, last + 1)

    def _damaged(self, pts: int | None, error: BaseException | None = None) -> UserError:
        when = "at its beginning" if pts is None else f"after {float(pts * self.time_base):.2f} s"
        return UserError(f"{self.path} is damaged or cut off {when}{f': {reason(error)}' if error else ''}")

    def _check_end(self, packets: int, count: int, last: int | None) -> None:
        """Refuse a file whose index or length says that there should be more.

        Raises:
            UserError: it does.
        """
        wanted, seconds, start = 0, self._seconds(), float((self._stream.start_time or 0) * self.time_base)
        if "mp4" in self._container.format.name.split(","):
            wanted = len(self._stream.index_entries)
        if not count or packets < wanted:
            raise UserError(f"{self.path} is damaged or cut off: {packets} of {wanted or 'its'} frames are there")
        ended = float((last or 0) * self.time_base) - start
        if not wanted and seconds is not None and ended < seconds - _SLACK - 1 / float(self.rate):
            raise UserError(f"{self.path} is damaged or cut off: {ended:.2f} of {seconds:.2f} s are there")


class VideoWriter:
    """Writes a video; use as a context manager, which ends the file.

    Args:
        path: to write to, under any name.
        container: see `CONTAINERS`.
        source: the video whose times, and if it can be kept its sound, the new one has.
        size: height and width, pixels.
        lossless: write single values, uint8 [H,W] (FFV1), instead of pictures, uint8 [H,W,3] (H.264).
    Attributes:
        left_out: the name of the sound's codec, if this container cannot hold it; otherwise empty.
    """

    def __init__(
        self, path: Path, container: str, source: VideoReader, size: tuple[int, int], lossless: bool = False
    ) -> None:
        self._av, self._base, self.left_out = _library(), source.time_base, ""
        self._file = self._av.open(os.fspath(path), "w", format=container)
        self._file.metadata["comment"] = MARK
        codec, pixels = ("ffv1", "gray") if lossless else ("libx264", "yuv420p")
        # Without frames that refer to later ones, the container keeps how long each is shown, the last one too.
        options = {} if lossless else {"crf": "18", "bf": "0"}
        self._stream = self._file.add_stream(codec, rate=source.rate, options=options)
        height, width = size
        # H.264 halves the resolution of colours, so both sides must be even: the last row or column is repeated.
        self._pad = (0, 0) if lossless else (height % 2, width % 2)
        self._stream.height, self._stream.width = height + self._pad[0], width + self._pad[1]
        self._stream.pix_fmt, self._format = pixels, "gray" if lossless else "rgb24"
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = self._base
        context.flags |= self._av.codec.context.Flags.frame_duration
        if not lossless:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _NARROW
        self._sound = None
        if source.sound is not None and not lossless:
            name = source.sound.codec_context.codec.canonical_name
            if name in self._file.supported_codecs:
                self._sound = self._file.add_stream_from_template(source.sound)
            else:
                self.left_out = name

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._file.mux(self._stream.encode(None))
        finally:
            self._file.close()

    def add(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        """Write a frame, uint8 [H,W,3], or of single values [H,W], for the time of the source's frame."""
        import numpy as np

        margins = [(0, more) for more in self._pad] + [(0, 0)] * (pixels.ndim - 2)
        padded = np.pad(pixels, margins, mode="edge") if any(self._pad) else pixels
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format=self._format)
        if self._format == "rgb24":
            spaces = self._av.video.reformatter
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=spaces.Colorspace.ITU709, dst_color_range=spaces.ColorRange.MPEG
            )
        frame.pts, frame.time_base, frame.duration = pts, self._base, duration
        self._file.mux(self._stream.encode(frame))

    def add_sound(self, packet: Any) -> None:
        """Write a packet of the source's sound as it is, if the container can hold it."""
        if self._sound is not None:
            packet.stream = self._sound
            self._file.mux(packet)


def _library() -> ModuleType:
    """PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise UserError('videos need PyAV: pip install "degrid[video]"') from error
    return av


def reason(error: BaseException | None) -> str:
    """What PyAV says of its error."""
    if type(error).__name__ == "ExitError":  # a time limit has passed
        return "nothing came in time"
    return str(getattr(error, "strerror", None) or error)


def _upright(frame: Any) -> np.ndarray:
    """A frame as RGB, uint8 [H,W,3], turned and mirrored as the file says.

    Other turns than by quarters are left out.

    Source: FFmpeg, libavutil/display.h: x' = a x + c y and y' = b x + d y for the matrix [[a,b,u],[c,d,v],[x,y,w]].
    """
    import numpy as np

    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    data = next((bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), b"")
    if len(data) < 36:
        return pixels
    a, b, _, c, d = struct.unpack("=5i", data[:20])
    if a == d == 0 and b and c:
        pixels, right, down = pixels.transpose(1, 0, 2), c, b
    elif b == c == 0:
        right, down = a, d
    else:
        return pixels
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])
