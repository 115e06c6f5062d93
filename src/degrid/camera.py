"""Cameras, streams and videos at an address, read as `degrid.video` reads files.

Needs PyAV, which is imported when one is opened: `pip install degrid[video]`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from degrid.background import Newest
from degrid.types import UserError
from degrid.video import VideoReader, reason

_DEVICES = ("v4l2", "avfoundation", "dshow", "gdigrab", "x11grab", "lavfi")
"""FFmpeg's names for kinds of cameras and screens, and for test pictures."""
_PATIENCE = 10.0
"""Seconds after which a source that sends nothing counts as ended."""
_OPTIONS = {
    "rtsp": {"rtsp_transport": "tcp"},  # over UDP, lost packets damage frames
    "avfoundation": {"framerate": "30"},  # cameras refuse FFmpeg's own choice of 29.97
}


def is_source(name: str) -> bool:
    """Whether a name is a camera or an address rather than a file.

    Cameras are /dev/video0, or what FFmpeg calls a device, after its kind: avfoundation:0, dshow:video=NAME.
    """
    return "://" in name or name.startswith(("/dev/video", *(f"{kind}:" for kind in _DEVICES)))


def source_name(name: str) -> str:
    """What the results of a source are called."""
    if "://" in name:
        parts = urlsplit(name)
        name = PurePosixPath(parts.path).stem or parts.hostname or "stream"
    return re.sub(r"[^\w.-]+", "_", name.removeprefix("/dev/"))[:60]


def _without_secrets(name: str) -> str:
    """A source as messages name it: an address without user, password and query."""
    if "://" not in name:
        return name
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class SourceReader(VideoReader):
    """A camera, a stream, or a video at an address.

    One that has no length is live: whenever a frame is asked for, the newest is taken, and those are left out that came
    while others were computed. Its times begin at 0 and are those of the source; it has no sound.

    Args:
        source: see `is_source`.
        seconds: how long a live source is read; None: until `stop`, or until it ends.
    Attributes:
        live: see above.
        arrived: how many frames have come from a live source.
        broken: why a live source has ended, after some frames; empty if it has not, or by itself.
    Raises:
        UserError: it cannot be opened, or shows nothing.
    """

    def __init__(self, source: str, seconds: float | None = None) -> None:
        device, _, rest = source.partition(":")
        kind = device if device in _DEVICES else "v4l2" if source.startswith("/dev/video") else None
        super().__init__(
            rest if kind == device else source,
            _without_secrets(source),
            format=kind,
            options=dict(_OPTIONS.get(device, {})),
            timeout=_PATIENCE,
        )
        self.live = self._container.duration is None and not self._stream.duration
        self.arrived, self.broken = 0, ""
        self._limit, self._stopped = seconds, threading.Event()
        self._newest: Newest[Any] | None = None
        self._unstamped = bool(self._container.format.flags & self._av.format.Flags.no_timestamps.value)
        if self.live:
            self.sound = self.expected = None
            self.time_base = Fraction(1, 1000) if self._unstamped else self.time_base

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stop()
        if self._newest:
            self._newest.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)

    def stop(self) -> None:
        """Let a live source end with its next frame."""
        self._stopped.set()

    def _decoded(self) -> Iterator[Any]:
        if not self.live:
            return super()._decoded()
        self._newest = Newest(self._arriving()).__enter__()
        return self._newest

    def _arriving(self) -> Iterator[tuple[Any, int]]:
        """The frames of a live source, and their times.

        Raises:
            UserError: there is none.
        """
        began, first, last = time.monotonic(), None, -1
        try:
            for frame in self._frames():
                clock = round((time.monotonic() - began) / self.time_base)
                at = clock if self._unstamped or frame.pts is None else frame.pts
                first = at if first is None else first
                last = max(at - first, last + 1)
                if self._stopped.is_set() or (self._limit is not None and float(last * self.time_base) >= self._limit):
                    return
                self.arrived += 1
                self._last_duration = frame.duration or 0
                yield frame, last
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            self.broken = reason(error)
        if not self.arrived:
            raise UserError(f"{self.path} shows no pictures: {self.broken or 'it ended at once'}")

    def _frames(self) -> Iterator[Any]:
        """The frames that can be decoded; streams joined midway begin with pieces of frames."""
        for packet in self._container.demux(self._stream):
            try:
                yield from (frame for frame in packet.decode() if not frame.is_corrupt)
            except self._av.error.InvalidDataError:
                continue
