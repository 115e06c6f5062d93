"""Segment images with a model, as `degrid predict` does."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from degrid.arguments import checked
from degrid.background import DEPTH, Background, ahead
from degrid.bands import DIM_SENTENCE, LargeScene, Scene, is_dim, open_scene
from degrid.camera import is_source
from degrid.engine.inference.options import InferenceOptions, Prediction
from degrid.engine.memory import available_to_process
from degrid.files import check_place
from degrid.lookup import counted
from degrid.types import Bands, OnProgress, Progress, UserError
from degrid.verbs.find_images import FoundImages, find_images, model_and_images
from degrid.verbs.open_network import AnyModel, AnyPredictor, open_predictor
from degrid.verbs.outputs import ResultFiles, ResultWriter, make_writer
from degrid.verbs.predict_video import predict_videos, without_videos
from degrid.video import is_video

Images = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""An image, a folder (searched through with its sub-folders) or a glob pattern, or several of these; or to `predict` a
camera or stream, see `degrid.camera.is_source`."""

SMALL = 2_000_000
"""Pixels from which even a single image is predicted faster by a network prepared for it first."""


@dataclass(frozen=True)
class PredictResult:
    """What `predict` wrote.

    Attributes:
        out: the folder.
        images: how many images were predicted.
        failures: for each image or video that could not be used, a sentence that says why.
        left_out: how many files were skipped, by kind, such as ".heic" or "results of earlier runs".
        precision: the precision of the network, as a sentence.
        written: what was written where, as a sentence; empty if nothing was, or not everything that a benchmark needs.
        remarks: what may surprise about the images, one sentence each.
        videos: how many videos were predicted.
        failed_videos: how many of the failures are videos.
        model: a sentence on the model that comes with degrid, if none was named; otherwise empty.
    """

    out: Path
    images: int
    failures: tuple[str, ...]
    left_out: dict[str, int]
    precision: str
    written: str
    remarks: tuple[str, ...] = ()
    videos: int = 0
    failed_videos: int = 0
    model: str = ""


@checked
def predict(
    model: AnyModel,
    images: Images = (),
    out: str | os.PathLike[str] = "predictions",
    *,
    device: str = "auto",
    precision: str | None = None,
    compiled: bool = False,
    options: InferenceOptions | None = None,
    files: ResultFiles | None = None,
    multi_scale: bool = False,
    progress: OnProgress | None = None,
) -> PredictResult:
    """Segment images and videos and write the results; files are read ahead and results written behind, in threads.

    A result is named after its image. If images in several folders share a name, the folders become part of it; if the
    name is taken by a file that is not a result of an earlier run, the extension does: photo.png.png for photo.png. A
    video gives NAME.overlay.mp4, with the times of its frames and its sound. From a camera or stream the newest frame
    is taken whenever the model is ready, until it ends or is interrupted; then the result is completed.

    Args:
        model: a model folder, run folder, exported file or network; a name, see `degrid.load`; or the first of the
            images, which the model that comes with degrid then segments.
        images: files, folders and glob patterns; or a camera (/dev/video0) or an address (rtsp://HOST/PATH).
        out: folder for the results, which may be that of the images; results of earlier runs are not taken for images.
            For a single video also the file for its overlay: a name that ends in .mp4, .mov or .mkv.
        device, compiled: see `degrid.Predictor`.
        precision: see `degrid.Predictor`; by default "auto", or "float32" if logits are written. A single image is
            predicted in float32 unless it is "bfloat16": comparing both would take longer than it saves.
        options: scales, flips, windows, CRF and smoothing over time; by default the network runs once on the image.
        files: which files to write; by default masks and overlays, see `ResultFiles`.
        multi_scale: DeepLab v2's multi-scale input: the maximum over scales 1, 0.75 and 0.5.
        progress: called after each image or frame, and after each row of windows of a large image.
    Raises:
        UserError: no image or no model, or options that exclude each other. An image that cannot be used is not an
            error: it is listed in the result's failures.
    """
    model, images, told = model_and_images(model, [images] if isinstance(images, str | os.PathLike) else images)
    out, files, options = Path(out), files or ResultFiles(), options or InferenceOptions()
    _check_logits(files, options)
    check_place(out if is_video(out) else out / "summary.json")
    found, videos = without_videos(*_source_or_images(_patterns(images), out), out, files, options.smooth)
    exact = precision or ("float32" if files.logits else "auto")
    small = not videos and len(found.images) == 1 and all(map(_is_small, found.images.values()))
    once = all([options.is_plain, exact != "bfloat16", not compiled, small])
    with open_predictor(model, device, exact, options, compiled, multi_scale, once) as predictor:
        writer = make_writer(files, out, predictor.labels, found)
        chosen = writer.names(found.images)
        _check_gives_logits(predictor, files)
        failures, dim = _write_all(predictor, writer, chosen, files.logits, progress)
        films = predict_videos(predictor, videos, out, files, progress)
    count = len(chosen) - len(failures)
    complete = count and not (failures and writer.needs_all)
    written = films.written(out, writer) if films.rows else writer.finish() if complete else ""
    remarks = (*_said(dim), *_said_of_windows(predictor), *films.remarks)
    failures += films.failures.values()
    said = str(predictor.network), written, remarks
    moving = len(films.rows), len(films.failures)
    return PredictResult(out, count, tuple(failures), found.left_out, *said, *moving, told)


def _check_gives_logits(predictor: AnyPredictor, files: ResultFiles) -> None:
    """Refuse to write logits of a model that does not return any."""
    if files.logits and predictor.gives_ids:
        raise UserError(
            "--save-logits (ResultFiles.logits): this exported model gives class ids, no logits; export it with "
            "--output logits (output=...)"
        )


def _source_or_images(given: list[str], out: Path) -> tuple[str | None, FoundImages]:
    """The camera or address among the inputs, or else the images and videos.

    Raises:
        UserError: it is not alone; or there is nothing.
    """
    source = next((name for name in given if is_source(name)), None)
    if source is None:
        return None, find_images(given, out, videos=True)
    if len(given) > 1:
        raise UserError(f"a camera or stream is predicted alone, got {source} among {len(given)}; leave the others out")
    return source, FoundImages({}, {})


def _check_logits(files: ResultFiles, options: InferenceOptions) -> None:
    if files.logits and not options.is_plain:
        raise UserError(
            "--save-logits (ResultFiles.logits) writes the network's own logits; leave out --scales, --flip, --window "
            "and --crf (options=...)"
        )


def _said_of_windows(predictor: AnyPredictor) -> tuple[str, ...]:
    """Windows that the user did not ask for."""
    if predictor.options.window is not None or not predictor.windowed:
        return ()
    sizes = " and ".join(f"{height}x{width}" for height, width in sorted(predictor.windows))
    return (f"{counted(predictor.windowed, 'image')} predicted in windows of {sizes}, to save memory",)


def _said(dim: Sequence[Path]) -> tuple[str, ...]:
    """A sentence on images that the network sees nearly black."""
    return (
        (
            f"nearly black for the network: {counted(len(dim), 'image')} of more than 8 bits, such as {dim[0]}, "
            f"{DIM_SENTENCE}",
        )
        if dim
        else ()
    )


@checked
def predict_each(
    model: AnyModel,
    images: Images,
    *,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    options: InferenceOptions | None = None,
    multi_scale: bool = False,
    on_failure: Callable[[str, UserError], object] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Segment images one by one as they are asked for, and write nothing.

    A network passed as an object is in evaluation mode from the first image until the last one, or `close()`.

    Args:
        model, images, device, precision, compiled, options, multi_scale: see `predict`.
        on_failure: called with the name and the error of an image that cannot be used, which is then left out; by
            default the error is raised.
    Yields:
        The name of an image, as `predict` names its results, and its class ids, uint8 [H,W].
    Raises:
        UserError: see `predict`; except for images, before anything is asked for.
    """
    found = find_images(_patterns(images)).images
    depth = _depth(options, found.values())
    with open_predictor(model, device, precision, options or InferenceOptions(), compiled, multi_scale) as predictor:
        pass  # mistakes show now; the network is in evaluation mode again only while images are asked for

    def each() -> Iterator[tuple[str, np.ndarray]]:
        with predictor.evaluating(), contextlib.closing(_predictions(predictor, found, depth)) as predictions:
            for name, prediction in predictions:
                if not isinstance(prediction, UserError):
                    predictor.warn_if_dim(found[name], prediction.image)
                    yield name, prediction.ids
                elif on_failure:
                    on_failure(name, prediction)
                else:
                    raise prediction

    return each()


def _depth(options: InferenceOptions | None, images: Iterable[Path]) -> int:
    """How many images are read ahead and written in the background; none under a memory limit if one is large."""
    limited = options is not None and options.memory is not None
    return DEPTH if not limited or all(_is_small(path) for path in images) else 0


def _is_small(path: Path) -> bool:
    """Whether an image has less than `SMALL` pixels."""
    try:
        with Image.open(path) as image:
            return image.width * image.height < SMALL
    except (OSError, ValueError, Image.DecompressionBombError):  # whatever the error is, reading the file reports it
        return False


def _patterns(images: Images) -> list[str]:
    return [os.fspath(each) for each in ([images] if isinstance(images, str | os.PathLike) else images)]


def _write_all(
    predictor: AnyPredictor,
    writer: ResultWriter,
    found: dict[str, Path],
    with_logits: bool,
    progress: OnProgress | None,
) -> tuple[list[str], list[Path]]:
    """Predict and write all images; returns a sentence for each unusable one, and those with few values."""
    failures: list[str] = []
    dim: list[Path] = []
    depth, predictor.progress = _depth(predictor.options, found.values()), progress
    with Background(depth) as background:
        for index, (name, prediction) in enumerate(_predictions(predictor, found, depth, with_logits), start=1):
            if isinstance(prediction, UserError):
                failures.append(str(prediction))
                writer.fail(name, str(prediction))
            else:
                assert predictor.num_classes is not None
                if is_dim(found[name], predictor.bands, prediction.image):
                    dim.append(found[name])
                sure = predictor.confidence(prediction) if writer.wants_confidence else None
                background.run(
                    functools.partial(writer.add, name, found[name], prediction, predictor.num_classes, sure)
                )
            del prediction  # before the next one is computed
            if progress:
                progress(Progress("predicting", index, len(found)))
    return failures, dim


def _predictions(
    predictor: AnyPredictor, found: dict[str, Path], depth: int, with_logits: bool = False
) -> Generator[tuple[str, Prediction | UserError], None, None]:
    """Each image's name and prediction, or the reason why there is none; the next images are read meanwhile."""
    options = predictor.options
    asked = options.window is not None or options.memory is not None
    windows = asked and options.is_single and options.crf is None and not predictor.gives_ids and not with_logits
    reading = functools.partial(_open, bands=predictor.bands, windows=windows, limit=options.memory)
    reads = ahead((functools.partial(reading, path) for path in found.values()), depth)
    # Left to the garbage collector, it could be closed in its own thread, which would wait for itself.
    with contextlib.closing(reads):
        for name, read in zip(found, reads, strict=True):
            prediction: Prediction | UserError
            try:
                prediction = predictor.predict(read())
                if with_logits and prediction.logits is None:
                    raise UserError(
                        f"{found[name]} is too large for its logits: it was predicted in windows, which keep none; "
                        "allow more with --memory (memory=...), or leave out --save-logits (logits=...)"
                    )
            except UserError as error:
                prediction = error
            yield name, prediction
            del read, prediction


def _open(path: Path, bands: Bands, windows: bool, limit: int | None) -> Scene | LargeScene:
    free = available_to_process()
    return open_scene(path, bands, free if limit is None else min(free, limit), windows)
