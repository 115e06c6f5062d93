"""Segment videos, as `degrid predict` does: overlays as videos with the same times, and class ids frame by frame."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from degrid.background import Background, ahead
from degrid.bands import Scene
from degrid.camera import SourceReader, source_name
from degrid.files import atomic_write, explained, file_mask, make_folder
from degrid.image import overlay_classes, palette_image
from degrid.lookup import counted
from degrid.types import RGB, LabelSpace, OnProgress, Progress, UserError
from degrid.verbs.find_images import FoundImages, is_result
from degrid.verbs.open_network import AnyPredictor
from degrid.verbs.outputs import IdFiles, ResultFiles, ResultWriter, save_picture
from degrid.video import CONTAINERS, Frame, VideoReader, VideoWriter, is_result_video, is_video, reads_videos

if TYPE_CHECKING:
    from degrid.engine.inference.predictor import Predictor


@dataclass
class VideoResults:
    """What became of the videos.

    Attributes:
        rows: for the summary, by the names of their results.
        failures: for each video that could not be used a sentence that says why, by its name.
        remarks: what may surprise, one sentence each.
        places: of what was written.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    places: list[Path] = field(default_factory=list)

    def written(self, out: Path, writer: ResultWriter) -> str:
        """Write the summary of a folder, and say in one line what is where; some video was predicted."""
        if is_video(out):
            (row,) = self.rows.values()
            return (
                f"{counted(row['frames'], 'frame')}, {row['seconds']:.2f} s, in {' and '.join(map(str, self.places))}"
            )
        assert isinstance(writer, IdFiles)
        writer.videos = self.rows
        writer.failures |= self.failures
        return writer.finish()


def without_videos(
    source: str | None, found: FoundImages, out: Path, files: ResultFiles, smooth: float
) -> tuple[FoundImages, dict[str, Path | str]]:
    """The images alone, and the videos, or the source, see `degrid.camera`.

    Raises:
        UserError: files or a place that do not fit to what was found.
    """
    videos: dict[str, Path | str] = {name: path for name, path in found.images.items() if _moves(path)}
    images = {name: path for name, path in found.images.items() if name not in videos}
    if source is not None:
        videos = {source_name(source): source}
    if is_video(out):
        _check_single(out, len(images), len(videos))
    _check_files(videos, files, smooth)
    if source is None and files.seconds is not None:
        raise UserError("--seconds (ResultFiles.seconds) is for cameras and streams; leave it out")
    return FoundImages(images, found.left_out), videos


def _moves(path: Path) -> bool:
    """Whether a file is a video, or a GIF of several pictures, which is read like one."""
    if path.suffix.lower() != ".gif" or not reads_videos():
        return is_video(path)
    try:
        with Image.open(path) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except (OSError, ValueError):  # not a GIF, as reading it will report
        return False


def _check_files(videos: Mapping[str, Path | str], files: ResultFiles, smooth: float) -> None:
    """Refuse options that do not fit videos, or fit only videos, or leave nothing to write.

    Raises:
        UserError: such files are asked for.
    """
    if videos and files.format != "ids":
        raise UserError(
            f"--format {files.format} (format=...) is for images, and {next(iter(videos.values()))} is a video; leave "
            "one of them out"
        )
    if videos and files.overlay is False and files.video_ids is None:
        raise UserError("nothing would be written for the videos: add --video-ids (ResultFiles.video_ids)")
    if not videos and (smooth or files.video_ids):
        raise UserError("--smooth and --video-ids are for videos, and none was found; leave them out")


def _check_single(out: Path, images: int, videos: int) -> None:
    """Refuse a video as the place for anything but the result of one video.

    Raises:
        UserError: there are others, or its ending is unknown.
    """
    if out.suffix.lower() not in CONTAINERS:
        raise UserError(f"{out}: videos are written as {', '.join(CONTAINERS)}; choose one of these endings")
    if images or videos != 1:
        what = f"{counted(images, 'image')} and {counted(videos, 'video')}"
        raise UserError(f"{out} takes the result of one video, got {what}; name a folder with -o (out=...)")


def predict_videos(
    predictor: AnyPredictor,
    videos: Mapping[str, Path | str],
    out: Path,
    files: ResultFiles,
    progress: OnProgress | None,
) -> VideoResults:
    """Segment videos one after another, and write their results.

    Args:
        out: a folder, or the place of the overlay of a single video.
    Raises:
        UserError: a network that does not read colours, or a place that cannot be written to.
    """
    results = VideoResults()
    if videos and predictor.bands != RGB:
        raise UserError("videos hold colours, and this model reads other bands or ranges; give it images")
    for name, path in videos.items():
        single = is_video(out)
        places = _Places.of(out.with_suffix("") if single else out / name, out if single else None, files)
        places.check()
        try:
            with _reading(path, files.seconds) as source:
                results.rows[name] = _predict_one(predictor, source, places, progress, results.remarks)
        except _UnreadableError as error:
            results.failures[name] = str(error)
        else:
            results.places += [place for place in (places.overlay, places.ids, places.frames) if place is not None]
    return results


class _UnreadableError(UserError):
    """A file that is not a video, or a damaged one."""


@dataclass(frozen=True)
class _Places:
    """Where the results of a video go; None for those that are not wanted."""

    overlay: Path | None
    ids: Path | None
    frames: Path | None

    @classmethod
    def of(cls, stem: Path, overlay: Path | None, files: ResultFiles) -> _Places:
        beside = functools.partial(Path, stem.parent)
        wanted = files.overlay is not False
        return cls(
            (overlay or beside(f"{stem.name}.overlay.mp4")) if wanted else None,
            beside(f"{stem.name}.ids.mkv") if files.video_ids == "ffv1" else None,
            stem if files.video_ids == "png" else None,
        )

    def check(self) -> None:
        """Refuse to replace anything but the result of an earlier run.

        Raises:
            UserError: there is such a file.
        """
        for place in (self.overlay, self.ids):
            if place is not None and place.exists() and not is_result_video(place):
                raise UserError(f"{place} was not written by degrid and would be lost; choose another place")
        if self.frames is not None and self.frames.exists():
            others = [file for file in self.frames.glob("*") if not (file.is_file() and is_result(file))]
            if others or not self.frames.is_dir():
                raise UserError(f"{(others or [self.frames])[0]} was not written by degrid; choose another place")


def _predict_one(
    predictor: AnyPredictor, source: VideoReader, places: _Places, progress: OnProgress | None, remarks: list[str]
) -> dict[str, Any]:
    """Predict all frames; returns the row of the summary."""
    ids_of, task, count = _ids_of(predictor), f"predicting {os.path.basename(source.path)}", 0
    with contextlib.ExitStack() as stack:
        # Entered before the thread that writes, so that they are left after it.
        written = _Writers(stack.enter_context(contextlib.ExitStack()), source, places, predictor)
        background = stack.enter_context(Background())
        items = source.items()
        reads = ahead(itertools.repeat(functools.partial(next, items, None)))
        stack.enter_context(contextlib.closing(reads))
        stack.enter_context(_until_interrupted(source, written))
        for read in reads:
            with _explained():
                item = read()
            if item is None:
                break
            if not isinstance(item, Frame):
                background.run(functools.partial(written.add_sound, item))
                continue
            background.run(functools.partial(written.add, item, ids_of(item.pixels)))
            count += 1
            if progress:
                total = source.expected
                progress(Progress(task, count, total if total is None or total > count else count + 1))
    if progress:
        progress(Progress(task, count, count))
    remarks += _remarks(source, written)
    return {"file": source.path, **written.row()}


@contextlib.contextmanager
def _until_interrupted(source: VideoReader, written: _Writers) -> Iterator[None]:
    """Ctrl+C ends a live source that has begun, and its results are completed."""
    try:
        yield
    except KeyboardInterrupt:
        if not (isinstance(source, SourceReader) and source.live and written.count):
            raise
        source.stop()


def _remarks(source: VideoReader, written: _Writers) -> Iterator[str]:
    """Notes on what may be surprising about the result."""
    if written.left_out:
        yield f"{source.path}: its sound ({written.left_out}) cannot be kept in this kind of file and is left out"
    if isinstance(source, SourceReader) and source.live:
        if source.arrived > written.count:
            yield f"{written.count} of {source.arrived} frames are predicted: the others arrived in the meantime"
        if source.broken:
            yield f"{source.path} ended: {source.broken}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Distinguish errors in a video from those in its results."""
    try:
        yield
    except UserError as error:
        raise _UnreadableError(str(error)) from error


def _reading(path: Path | str, seconds: float | None) -> VideoReader:
    with _explained():
        return VideoReader(path) if isinstance(path, Path) else SourceReader(path, seconds)


def _ids_of(predictor: AnyPredictor) -> Callable[[np.ndarray], np.ndarray]:
    """Computes class ids, uint8 [H,W], from frames, uint8 [H,W,3], in order."""
    weight = predictor.options.smooth
    if not weight:
        return lambda pixels: predictor.predict(Scene(pixels)).ids
    from degrid.engine.inference.over_time import OverTime

    return OverTime(cast("Predictor", predictor), weight)  # a file's own is never opened for smoothing


class _Writers:
    """All that is written of a video, from its first frame on; what is there before stays until all is complete.

    count: of the frames.
    """

    def __init__(
        self, stack: contextlib.ExitStack, source: VideoReader, places: _Places, predictor: AnyPredictor
    ) -> None:
        self._stack, self._source, self._places, self._predictor = stack, source, places, predictor
        self._overlay: VideoWriter | None = None
        self._ids: VideoWriter | None = None
        self._frames: Path | None = None
        self._early: list[Any] | None = []
        self._labels = LabelSpace.of_size(1)
        self._pixels = np.zeros(256, np.int64)
        self.count, self._size, self._end = 0, (0, 0), 0.0
        self.left_out = ""

    def add(self, frame: Frame, ids: np.ndarray) -> None:
        """Write a frame, and its ids, uint8 [H,W].

        Raises:
            UserError: the size changes, or the place cannot be written to.
        """
        if self._early is not None:
            self._open(frame)
        if frame.pixels.shape[:2] != self._size:
            raise _UnreadableError(
                f"{self._source.path}: its frames are of several sizes; cut it into one video for each"
            )
        if self._overlay:
            self._overlay.add(overlay_classes(frame.pixels, ids, self._labels), frame.pts, frame.duration)
        if self._ids:
            self._ids.add(ids, frame.pts, frame.duration)
        if self._frames:
            save_picture(palette_image(ids, self._labels), self._frames / f"{self.count:06d}.png")
        self._pixels += np.bincount(ids.ravel(), minlength=256)
        self.count += 1
        self._end = float((frame.pts + frame.duration) * self._source.time_base)

    def add_sound(self, packet: Any) -> None:
        """Write a packet of sound."""
        if self._early is not None:
            self._early.append(packet)
        elif self._overlay:
            self._overlay.add_sound(packet)

    def _open(self, frame: Frame) -> None:
        assert self._predictor.num_classes is not None
        early, self._early = self._early, None
        self._labels = self._predictor.labels or LabelSpace.of_size(self._predictor.num_classes)
        self._size, enter = frame.pixels.shape[:2], self._stack.enter_context

        def writer(place: Path, lossless: bool) -> VideoWriter:
            file = enter(atomic_write(place))
            return enter(VideoWriter(file, CONTAINERS[place.suffix.lower()], self._source, self._size, lossless))

        if self._places.overlay:
            self._overlay = writer(self._places.overlay, False)
            self.left_out = self._overlay.left_out
        if self._places.ids:
            self._ids = writer(self._places.ids, True)
        if self._places.frames:
            self._frames = enter(_whole_folder(self._places.frames))
        for packet in early or ():
            self.add_sound(packet)

    def row(self) -> dict[str, Any]:
        """What the summary says."""
        names, (height, width) = self._labels.names, self._size
        pixels = {name: int(n) for name, n in zip(names, self._pixels[: len(names)], strict=True) if n}
        values = {"width": width, "height": height, "frames": self.count, "seconds": round(self._end, 6)}
        return {**values, "pixels": pixels}


@contextlib.contextmanager
def _whole_folder(place: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of an earlier one once all is in it; removed on any failure."""
    make_folder(place.parent)
    with explained(place):
        temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp"))
        try:
            yield temporary
            temporary.chmod(0o777 & ~file_mask())
            shutil.rmtree(place, ignore_errors=True)
            temporary.replace(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
