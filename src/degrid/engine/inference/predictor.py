"""The class ids of an image, at the image's own size."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import EllipsisType
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from degrid.arguments import checked
from degrid.bands import PART, LargeScene, Scene, read_scene, to_bytes, values_of
from degrid.contracts import (
    ExportedNetwork,
    bands_of,
    convention_of,
    copied,
    declared,
    evaluating,
    in_evaluation_mode,
    unchanged,
)
from degrid.dispatch import DispatchMode
from degrid.engine.device import available_bytes, pick_device, used_bytes
from degrid.engine.inference.fast_network import FastNetwork
from degrid.engine.inference.options import DimWarning, InferenceOptions, Prediction, needs_the_whole, no_limit_of_files
from degrid.engine.inference.tta import Sliced, confidence_bands, fused_scores, probabilities, slide_in_bands
from degrid.engine.memory import give_back_freed_memory
from degrid.engine.ranks import gathered, together
from degrid.image import oriented, to_array
from degrid.kernels.dense_crf import refine_bytes, runs_compiled
from degrid.kernels.support import code_bytes
from degrid.kernels.upsample_argmax import upsample_argmax
from degrid.raster import CACHE
from degrid.threads import limited_threads
from degrid.types import IGNORE_INDEX, RGB, Bands, Dataset, OnProgress, Progress, UserError

T = TypeVar("T")
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor | Scene | LargeScene

_LARGE = 2_000_000
"""Images of fewer pixels are assumed to fit into memory, unless a limit is given, and show no progress of their own."""
_USABLE = 0.8
"""Fraction of the free memory that feature maps may take if no limit is given."""
_BEYOND = 1.1
"""Multiple of the limit that a process may take before a CRF is refused that was expected to need less."""
_WINDOW = (2048, 2048)
"""Window for images that are read part by part although the feature maps of the whole would fit into memory."""
_ASIDE = 64 << 20
"""Bytes that libraries use inside an operation and that the allocator keeps in reserve."""
_ROW, _CLASSES, _BESIDE = 4, 21, 3
"""Bytes for each pixel and class of a row of windows; how many classes there are where a network does not say; and what
else there is, as classes: the windows' weights, and the pixels of a large image, of which two parts are joined."""
MIB = 1 << 20
_SMALLEST, _GRID = 128, 32
"""Side of the smallest window that is still useful, and what the sides of windows are multiples of, pixels."""


class Predictor:
    """Predict class ids with a model, one image at a time, as fast as the machine can; see `FastNetwork` for how.

    Args:
        model: any module from RGB images [1,3,H,W] (0-255) to logits [1,C,h,w], or an exported model. It gets images as
            uint8, or as floats if it refuses uint8; see `degrid.contracts.logits_of` for what it may return. It is
            moved to the device, and is in evaluation mode while it runs; later changes of its weights have no effect
            here.
        device: "auto", "cpu", "cuda", ...
        precision: "float32"; "bfloat16" (faster where the hardware has it, less exact); or "auto": bfloat16 where the
            hardware has it and it agrees with float32 on at least 99.5 % of the pixels of the first images.
        options: scales, flips, windows and CRF; by default the network runs once on the whole image.
        compiled: also use torch.compile, which needs a C++ compiler and some 20 seconds for each size of image.
        whole: use windows only if the options ask for them, not because memory is short, so that results do not depend
            on memory.
        once: for a program that ends after one image: use the network itself and PyTorch's own operations in float32,
            since preparing the fast copy would take longer than it saves.
    Attributes:
        network: how the network runs; str(network) says in which precision.
        labels: the classes; None if the network does not declare them.
        bands: how image files become the network's input.
        num_classes: classes of the model's logits; None before the first image.
        windowed: images so far that were larger than a window.
        windows: the windows that slid over them, height and width.
        progress: called after each row of windows of a large image, with how many rows of pixels are done; by default
            nothing is.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        device: str = "auto",
        precision: str = "auto",
        options: InferenceOptions | None = None,
        compiled: bool = False,
        whole: bool = False,
        once: bool = False,
    ) -> None:
        self.device, self.whole, self.once = pick_device(device), whole, once
        self.options = options or InferenceOptions()
        self.num_classes: int | None = None
        self.windowed = 0
        self.windows: set[tuple[int, int]] = set()
        self.progress: OnProgress | None = None
        network = declared(model)
        self.stride = 1 if network is None else network.stride
        self.labels = None if network is None else network.labels
        self.bands = RGB if network is None else network.bands
        self.warn_if_dim = DimWarning(self.bands)
        self.resize = convention_of(model)
        self.model = model.to(self.device)
        self.gives_ids = isinstance(model, ExportedNetwork) and model.output == "ids"
        """Whether it is an exported model that gives class ids at the image's size, and no logits."""
        if isinstance(model, ExportedNetwork) and self.options.memory is not None:
            raise no_limit_of_files()
        if self.gives_ids and not self.options.is_plain:
            raise UserError(
                "this exported model gives class ids, which cannot be fused over scales, flips or windows or sharpened "
                "by a CRF; export it with --output logits (output=...)"
            )
        self.network = FastNetwork(self.model, self.device, precision, self.resize, compiled, once)
        self._bytes_per_pixel: float | None = None
        self._usable: int | None = None
        self._has_warned = False

    def evaluating(self) -> AbstractContextManager[object]:
        """Within it the network is in evaluation mode; afterwards as it was before."""
        return evaluating(self.model)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Class ids of an image, uint8 [H,W]; 255 where a TIFF holds no data.

        Args:
            image: a file, a PIL image, a uint8 array [H,W,C] or [H,W], or a uint8 tensor [C,H,W], where C is
                `bands.count`; RGB where that is 3. Files, PIL images and arrays of other types become bytes through the
                range that the model was trained with.
        Raises:
            UserError: the file is missing or damaged, or the array is of another kind.
        """
        return self.predict(image).ids

    @limited_threads()
    def predict(self, image: ImageLike) -> Prediction:
        """Class ids together with the logits and the image as the model saw it."""
        if isinstance(image, LargeScene):
            return self._predict_large(image)
        pixels, empty = _scene(image, self.bands)
        if isinstance(image, str | os.PathLike | Image.Image):
            self.warn_if_dim(image, pixels)
        batch, options = self._prepared(torch.from_numpy(pixels).permute(2, 0, 1))
        if self.gives_ids or options.only_slides:
            ids, logits = self._ids_directly(batch, options), None
        else:
            scores = self._scores(batch, options)
            ids, logits = self.ids(scores, pixels.shape[:2]), scores[0].float().cpu().numpy()
        found = ids.cpu().numpy()
        if empty is not None:
            found[empty] = IGNORE_INDEX
        return Prediction(found, logits, pixels)

    def settle(self, dataset: Dataset) -> None:
        """Choose a precision on the first images of a dataset, if it is "auto"; the same one in all processes."""
        windowed = self.windowed
        with together(), unchanged(self.model):  # the network may count its images
            for index in range(len(dataset)):
                if self.network.is_decided:
                    break
                self.class_ids(dataset[index].image)
        self.windowed = windowed
        if "float32" in gathered(self.network.precision):
            self.network.use_float32()

    @limited_threads()
    def scores(self, image: Tensor) -> Tensor:
        """Scores [1,C,h,w], float32, of a uint8 image [3,H,W].

        By default logits at the head's stride; with scales, flips, windows or a CRF see `tta.fused_scores`.
        """
        self._check_gives_logits()
        return self._scores(*self._prepared(image))

    @limited_threads()
    def class_ids(self, image: Tensor) -> Tensor:
        """Class ids, uint8 [H,W], of a uint8 image [3,H,W]; with windows in bounded memory."""
        batch, options = self._prepared(image)
        if self.gives_ids or options.only_slides:
            return self._ids_directly(batch, options)
        return self.ids(self._scores(batch, options), tuple(image.shape[-2:]))

    @limited_threads()
    def probabilities(self, image: Tensor) -> Tensor:
        """Probabilities at the image's size, [1,C,H,W], float32, of a uint8 image [3,H,W]; before any CRF."""
        self._check_gives_logits()
        batch, options = self._prepared(image)
        options = dataclasses.replace(options, crf=None)
        with torch.inference_mode():
            return probabilities(self._scores(batch, options, fuse=True), options)

    def _check_gives_logits(self) -> None:
        if self.gives_ids:
            raise UserError(
                "this exported model gives class ids, no logits; export it with --output logits (output=...)"
            )

    @limited_threads()
    def confidence(self, prediction: Prediction) -> np.ndarray | None:
        """The probability of the class of each pixel, float32 [H,W], 0 to 1; 0 where the image holds no data.

        None for a prediction without logits, such as one in windows.
        """
        if prediction.logits is None:
            return None
        found = np.empty(prediction.ids.shape, np.float32)
        with torch.inference_mode():
            scores = torch.from_numpy(prediction.logits)[None]
            for rows, band in confidence_bands(scores, found.shape, self.resize, self.options.gives_probabilities):
                found[rows] = band.numpy()
        found[prediction.ids == IGNORE_INDEX] = 0
        return found

    def ids(self, scores: Tensor, size: tuple[int, ...]) -> Tensor:
        """Enlarge scores [1,C,h,w] to `size`, as the model's `resize` says, and take the best class; uint8 [H,W]."""
        with torch.inference_mode():
            compiled = self.network.uses_compiled and not self.once
            return upsample_argmax(scores, size, self.resize, compiled=compiled)[0]

    def options_for(self, size: tuple[int, ...], reading: int = 0) -> InferenceOptions:
        """The options for an image of this height and width.

        Its window is None if one window covers the image, and chosen if the feature maps would take too much memory.
        How much is free is asked once, so that all images are treated alike.

        Args:
            reading: bytes that reading the image part by part takes.
        Raises:
            UserError: a memory limit that is too small for the process and any window.
        """
        options, scale = self.options, max(self.options.scales)
        height, width = (round(side * scale) for side in size)
        if options.window is not None:
            return options if options.slides_over((height, width)) else dataclasses.replace(options, window=None)
        pixels = size[0] * size[1] * scale**2
        exported = isinstance(self.model, ExportedNetwork)  # its runtime manages its own memory
        if exported or (options.memory is None and pixels < _LARGE):
            return options
        if self._bytes_per_pixel is None:
            try:
                # Feature maps grow with the image, so one size is enough; 5 % more because sides are rounded up.
                self._bytes_per_pixel = 1.05 * activation_bytes(self.model, (512, 512)) / 512**2
            except UserError:
                if options.memory is not None:
                    raise
                return options  # no limit was requested
        left = self._left_beside_results(size, reading)
        if pixels * self._bytes_per_pixel <= left:
            return options
        if self.whole and options.memory is None:
            self._warn_of_memory(size)
            return options
        tall, wide = self._window(height, width, left)
        if min(tall, wide) < min(_SMALLEST, height, width):
            raise UserError(self._too_little(options.memory or left, left, width))
        return dataclasses.replace(options, memory=None, window=(tall, wide))

    def _window(self, height: int, width: int, left: int) -> tuple[int, int]:
        """The largest window, as square as possible, that leaves room for the scores of a row of windows."""
        assert self._bytes_per_pixel
        of_row = self._bytes_of_row(width)
        side = (math.sqrt(of_row**2 + 4 * self._bytes_per_pixel * max(left, 0)) - of_row) / (2 * self._bytes_per_pixel)
        tall = min(height, int(side) // _GRID * _GRID)
        wide = (left / max(tall, 1) - of_row) / self._bytes_per_pixel
        return tall, max(0, min(width, int(wide) // _GRID * _GRID))

    def _bytes_of_row(self, width: int) -> int:
        """Bytes of a row of windows per pixel of height."""
        return _ROW * width * ((len(self.labels) if self.labels else _CLASSES) + _BESIDE)

    def _too_little(self, limit: int, left: int, width: int) -> str:
        """The error that a limit cannot be kept."""
        assert self._bytes_per_pixel
        taken = limit - left
        need = self._bytes_per_pixel * _SMALLEST**2 + self._bytes_of_row(width) * _SMALLEST
        return (
            f"a memory limit of {limit / MIB:.0f} MiB cannot be kept: the program and the network take "
            f"{taken / MIB:.0f} MiB, and windows of {_SMALLEST}x{_SMALLEST} pixels {need / MIB:.0f} MiB more; allow "
            f"{(taken + 2 * need) / MIB:.0f} MiB or more, or give a window instead"
        )

    def _left_beside_results(self, size: tuple[int, ...], reading: int) -> int:
        """Bytes for feature maps, and then for the CRF.

        Raises:
            UserError: the CRF, which takes the whole image, needs more than a limit leaves.
        """
        beside, need = self._bytes_of_results(size) + reading, self._bytes_of_crf(size)
        left = self._usable_memory(beside + need) - beside
        if self.options.memory is None or not need or need <= left:
            return left
        taken = self.options.memory - left
        raise UserError(
            f"a memory limit of {self.options.memory / MIB:.0f} MiB cannot be kept: the program, the network and the "
            f"scores take {taken / MIB:.0f} MiB, and the CRF of an image of {size[1]}x{size[0]} pixels "
            f"{need / MIB:.0f} MiB more; allow {(taken + need) / MIB:.0f} MiB or more, or leave the CRF out"
        )

    def _bytes_of_crf(self, size: tuple[int, ...]) -> int:
        """Bytes that a CRF takes beside the scores, after the feature maps are freed."""
        if self.options.crf is None:
            return 0
        classes = len(self.labels) if self.labels else _CLASSES
        return refine_bytes(size[0] * size[1], classes, runs_compiled(self.device, self.options.crf))

    def _room_for_crf(self) -> int:
        """Bytes that a CRF may take now under a memory limit, which may be exceeded by the factor above."""
        assert self.options.memory is not None
        give_back_freed_memory()
        return round(_BEYOND * self.options.memory) - used_bytes(self.device)

    def _bytes_of_results(self, size: tuple[int, ...]) -> int:
        """Class ids of an image, and where views of it are fused the scores of the whole, and the views' pixels.

        Scores are there three times, see `tta.fused_scores`; one of these has the size of a view.
        """
        largest, views = max(1.0, *self.options.scales) ** 2, 1 + self.options.flip
        classes = len(self.labels) if self.labels else _CLASSES
        scores = 0 if self.options.is_single and self.options.crf is None else _ROW * classes * (2 + largest)
        pixels = 0 if self.options.is_single else _ROW * self.bands.count * views * largest
        return round(size[0] * size[1] * (1 + scores + pixels))

    def _usable_memory(self, beside: int = 0) -> int:
        """Bytes that feature maps may take with what is `beside` them; asked once, before there is a copy of the
        network."""
        if self._usable is None:
            limit = self.options.memory
            self._usable = (
                int(_USABLE * available_bytes(self.device)) if limit is None else self._left_of(limit, beside)
            )
        return self._usable

    def _left_of(self, limit: int, beside: int) -> int:
        """What a limit leaves when the network is there. What makes it fast is left out where it takes over half of the
        rest."""
        give_back_freed_memory()
        copied, faster = self.network.bytes_to_come()
        left = limit - used_bytes(self.device) - copied - _ASIDE
        narrow = self.network.precision == "bfloat16"
        code = code_bytes() if self.device.type == "cpu" else 0
        if self.options.crf is not None and runs_compiled(self.device, self.options.crf):
            left, code = left - code, 0  # always loaded
        more = (0 if narrow else faster) + code
        self.network.uses_compiled = 2 * more <= left - beside
        self.network.spares_memory = narrow or not self.network.uses_compiled
        return left - more if self.network.uses_compiled else left

    def _warn_of_memory(self, size: tuple[int, ...]) -> None:
        if not self._has_warned:
            self._has_warned = True
            logging.getLogger("degrid").warning(
                f"an image of {size[1]}x{size[0]} pixels may not fit into memory whole; --window (options=...) takes "
                "less, but its scores are those of windows"
            )

    def _begin(self, options: InferenceOptions) -> None:
        """Called at the beginning of an image."""
        self.network.next_image()
        if options.window is not None:
            self.windowed += 1
            self.windows.add(options.window)

    def _in_one_precision(self, compute: Callable[[], T]) -> T:
        """The result; computed again if the network has switched its precision meanwhile and can run again."""
        before = self.network.precision
        result = compute()
        return result if self.network.precision == before or self.network.counts_runs else compute()

    def _prepared(self, image: Tensor) -> tuple[Tensor, InferenceOptions]:
        """The image on the device, [1,3,H,W], and its options."""
        options = self.options_for(tuple(image.shape[-2:]))
        self._begin(options)
        return image[None].to(self.device, memory_format=torch.channels_last), options

    def _ids_directly(self, batch: Tensor, options: InferenceOptions) -> Tensor:
        """Class ids, uint8 [H,W], from an exported model, or from bands of windows."""
        if self.gives_ids:
            return self._forward(batch)[0]
        return self._in_one_precision(lambda: self._ids_in_bands(batch, options))

    def _ids_in_bands(self, batch: Tensor, options: InferenceOptions) -> Tensor:
        with torch.inference_mode():
            return torch.cat([_best(band) for _, band in self._bands(batch, options)])

    def _bands(self, image: Tensor | Sliced, options: InferenceOptions) -> Iterator[tuple[int, Tensor]]:
        """See `tta.slide_in_bands`; says how far a large image has come."""
        height, width = image.shape[-2:]
        for top, band in slide_in_bands(self._forward, image, options, self.resize):
            yield top, band
            if self.progress and height * width >= _LARGE:
                self.progress(Progress("rows of pixels", top + band.shape[2], height))

    def _predict_large(self, scene: LargeScene) -> Prediction:
        """Predict in windows, with the image's rows in memory for one row of windows at a time; see `Prediction`.

        Raises:
            UserError: options or a network that need the whole image.
        """
        options = self.options_for(scene.size, CACHE + 2 * PART)
        if self.gives_ids or not options.is_single or options.crf is not None:
            raise needs_the_whole(scene)
        if options.window is None:
            options = dataclasses.replace(options, memory=None, window=_WINDOW)
        self._begin(options)
        found = self._in_one_precision(lambda: self._ids_of_rows(scene, options))
        return Prediction(found, None, scene.reduced.pixels)

    def _ids_of_rows(self, scene: LargeScene, options: InferenceOptions) -> np.ndarray:
        found, rows = np.empty(scene.size, np.uint8), _Rows(scene, self.device)
        with torch.inference_mode():
            for top, band in self._bands(rows, options):
                ids = _best(band).cpu().numpy()
                empty = rows.held.empty
                if empty is not None:
                    ids[empty[: len(ids)]] = IGNORE_INDEX
                found[top : top + len(ids)] = ids
        return found

    def _scores(self, batch: Tensor, options: InferenceOptions, fuse: bool = False) -> Tensor:
        """See `scores`; `fuse`: at the size of the image even if there is nothing to fuse."""

        def compute() -> Tensor:
            with torch.inference_mode():
                if options.is_plain and not fuse:
                    return self._forward(batch)
                room = None if self.options.memory is None else self._room_for_crf
                return fused_scores(self._forward, batch, options, self.resize, self.stride, room)

        return self._in_one_precision(compute)

    def _forward(self, batch: Tensor) -> Tensor:
        logits = self.network(batch)
        network = declared(self.model)
        self.num_classes = len(network.labels) if network and self.gives_ids else logits.shape[1]
        return logits


def _best(band: Tensor) -> Tensor:
    """The best class of scores [1,C,H,W], uint8 [H,W]; in parts, since PyTorch counts in int64."""
    return torch.cat([part.argmax(0).to(torch.uint8) for part in torch.split(band[0], 64, 1)])


class _Rows:
    """A large scene as `tta.slide_in_bands` reads it: the rows of one row of windows are held."""

    def __init__(self, scene: LargeScene, device: torch.device) -> None:
        self.scene, self.device = scene, device
        self.shape = (1, scene.bands.count, *scene.size)
        self.held, self._range = Scene(np.empty((0, scene.size[1], scene.bands.count), np.uint8)), (0, 0)

    def __getitem__(self, place: tuple[EllipsisType, slice, slice], /) -> Tensor:
        """See `tta.Sliced`; the rows must not begin before those asked for last."""
        _, rows, columns = place
        if (rows.start, rows.stop) != self._range:
            self._hold(rows.start, rows.stop)
        part = torch.from_numpy(self.held.pixels[:, columns]).permute(2, 0, 1)[None]
        return part.to(self.device).contiguous(memory_format=torch.channels_last)

    def _hold(self, first: int, last: int) -> None:
        known = max(first, self._range[1])
        new, old = self.scene.rows(known, last), self.held
        kept = slice(first - self._range[0], None)
        empty = None if old.empty is None or new.empty is None else np.concatenate([old.empty[kept], new.empty])
        self.held = Scene(np.concatenate([old.pixels[kept], new.pixels]), new.empty if old.empty is None else empty)
        self._range = first, last


@contextmanager
def predictor_of(
    model: nn.Module,
    device: str = "auto",
    precision: str = "auto",
    options: InferenceOptions | None = None,
    compiled: bool = False,
    whole: bool = False,
    once: bool = False,
) -> Iterator[Predictor]:
    """A predictor for a while; afterwards the model's modules are in the modes, training or evaluation, they were in.

    Of `DistributedDataParallel` pass the module inside, since processes may have different numbers of images.
    """
    with evaluating(model):
        yield Predictor(model, device, precision, options, compiled, whole, once)


def _scene(image: str | os.PathLike[str] | Image.Image | np.ndarray | Tensor | Scene, bands: Bands) -> Scene:
    if isinstance(image, Scene):
        return image
    return read_scene(image, bands) if isinstance(image, str | os.PathLike) else Scene(_pixels(image, bands))


def _pixels(image: Image.Image | np.ndarray | Tensor, bands: Bands) -> np.ndarray:
    if isinstance(image, Image.Image):
        return to_array(image) if bands == RGB else to_bytes(values_of(oriented(image)), bands, "the image")
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != bands.count or image.dtype != torch.uint8:
            raise UserError(f"expected a uint8 tensor [{bands.count},H,W], got {image.dtype} {list(image.shape)}")
        return np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
    return _pixels_of_array(np.asarray(image), bands)


def _pixels_of_array(pixels: np.ndarray, bands: Bands) -> np.ndarray:
    grey, count = pixels.ndim == 2, bands.count
    if pixels.dtype != np.uint8 and pixels.ndim in (2, 3) and bands.range != "bytes":
        return to_bytes(pixels[..., None] if grey else pixels, bands, "the image")
    if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 3 and pixels.shape[2] == count)):
        raise UserError(f"expected a uint8 array [H,W,{count}] or [H,W], got {pixels.dtype} {list(pixels.shape)}")
    return np.repeat(pixels[..., None], count, axis=2) if grey else np.array(pixels)


def activation_bytes(model: nn.Module, size: tuple[int, int]) -> int:
    """Bytes of all feature maps that exist at the same time while one image is predicted, at most.

    The network runs on PyTorch's "meta" device, whose tensors have sizes but no content. Weights are not counted, nor
    is memory that a library uses inside one operation.

    Args:
        model: from RGB images [1,3,H,W] to logits.
        size: height and width of the image, pixels.
    Raises:
        UserError: the network cannot run without content, for instance because its forward depends on values.
    """
    # The parameters are shared until they move, so the copy costs no memory.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    shadow = in_evaluation_mode(copied(model, memo).to("meta"))
    count = _LiveBytes()
    try:
        with torch.inference_mode(False), torch.no_grad(), count:
            shadow(torch.empty(1, bands_of(model).count, *size, device="meta"))
    except Exception as error:  # a user's network may fail in any way
        raise UserError(
            f"cannot tell how much memory this {type(model).__name__} needs ({error}); give a window instead of a limit"
        ) from error
    return count.peak


class _LiveBytes(DispatchMode):
    """Adds up the storages that operations create, and subtracts those that are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
