"""The networks that verbs take: from a folder, from an exported file, or the user's own; and what predicts with them.

Imports torch only where a network needs it, which takes longer than running an exported file.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from degrid.arguments import later
from degrid.bands import LargeScene, Scene
from degrid.engine.inference.options import (
    PRECISION_OF_FILE,
    DimWarning,
    InferenceOptions,
    Prediction,
    needs_the_whole,
    no_limit_of_files,
)
from degrid.exporters.table import OpenedFile, find_exported
from degrid.kernels.support import numba_installed
from degrid.kernels.upsample_argmax_numpy import compiled_upsample_argmax, confidence, upsample_argmax
from degrid.types import IGNORE_INDEX, MSC_SCALES, PRECISIONS, AnyDataset, OnProgress, UserError

if TYPE_CHECKING:
    from torch.nn import Module

    from degrid.engine.inference.predictor import Predictor
else:
    Module = later("torch.nn", "Module")

AnyModel = str | os.PathLike[str] | Module
"""A model folder, a run folder, an exported file, or a module from images [N,3,H,W] (0-255) to logits [N,C,h,w]."""
AnyPredictor: TypeAlias = "Predictor | FilePredictor"


def open_network(model: AnyModel, multi_scale: bool = False) -> Module:
    """A network to predict with.

    Args:
        multi_scale: give it DeepLab v2's multi-scale input, `degrid.types.MSC_SCALES`; a network that was passed keeps
            its own.
    Raises:
        UserError: see `degrid.model_folder.open_model`; or the network's input scales are fixed.
    """
    from degrid.contracts import MultiScaleNetwork
    from degrid.model_folder import open_model

    network = open_model(model) if isinstance(model, str | os.PathLike) else model
    if not multi_scale:
        return network
    if not isinstance(network, MultiScaleNetwork):
        raise UserError(
            "--msc (multi_scale=True) changes a network's input scales: an exported model's are fixed (export it "
            "anew), and a network of your own has them if it derives from degrid.contracts.MultiScaleNetwork"
        )
    changed = copy.copy(network)
    changed.scales = MSC_SCALES
    return changed


def name_of(model: AnyModel) -> str:
    """A path as it was given, or the class of a module."""
    return os.fspath(model) if isinstance(model, str | os.PathLike) else type(model).__name__


@contextmanager
def open_predictor(
    model: AnyModel,
    device: str,
    precision: str,
    options: InferenceOptions,
    compiled: bool = False,
    multi_scale: bool = False,
    once: bool = False,
    whole: bool = False,
    arrays: bool = True,
) -> Iterator[AnyPredictor]:
    """A `degrid.Predictor` for a while, as `predictor_of` gives it, or a `FilePredictor` where that does the same.

    Args:
        multi_scale: see `open_network`; the others: see `degrid.Predictor`.
        arrays: whether a predictor of arrays will do.
    Raises:
        UserError: see both.
    """
    if options.memory is not None and isinstance(model, str | os.PathLike) and find_exported(model):
        raise no_limit_of_files()  # before it is loaded
    plain = arrays and options.is_plain and not options.smooth and not multi_scale
    if plain and device in ("auto", "cpu") and precision in PRECISIONS and isinstance(model, str | os.PathLike):
        file = _file_of_arrays(model)
        if file is not None:
            yield FilePredictor(file, model, options)
            return
    from degrid.engine.inference.predictor import predictor_of

    network = open_network(model, multi_scale)
    with predictor_of(network, device, precision, options, compiled, whole, once) as predictor:
        yield predictor


def _file_of_arrays(path: str | os.PathLike[str]) -> OpenedFile | None:
    """An exported file that another runtime than PyTorch's runs; None for anything else."""
    found = find_exported(path)
    return None if found is None or found[0].needs_torch else OpenedFile(path)


class FilePredictor:
    """What verbs use of `degrid.Predictor`, for an exported file; without torch.

    Args:
        path: of the file, as it was given.
        options: which ask for nothing but the ids.
    Attributes:
        See `degrid.Predictor`.
    """

    network = PRECISION_OF_FILE

    def __init__(self, file: OpenedFile, path: str | os.PathLike[str], options: InferenceOptions) -> None:
        self.file, self.path, self.options = file, path, options
        self.labels, self.bands, self.resize = file.facts.labels, file.facts.bands, file.facts.resize
        self.gives_ids = file.facts.output == "ids"
        self.num_classes: int | None = len(self.labels)
        self.warn_if_dim = DimWarning(self.bands)
        self.windowed = 0
        self.windows: set[tuple[int, int]] = set()
        self.progress: OnProgress | None = None

    def evaluating(self) -> AbstractContextManager[object]:
        """An exported network is always in evaluation mode."""
        return nullcontext()

    def predict(self, image: Scene | LargeScene) -> Prediction:
        """Class ids together with the logits, if the file gives them, and the image as the model saw it.

        Raises:
            UserError: the file takes no image of this size, or gives ids and the image is too large to be read at once.
        """
        if isinstance(image, LargeScene):
            return self._in_windows(image)
        pixels, empty = image
        found = self.file(pixels.transpose(2, 0, 1)[None])[0]
        ids = found if self.gives_ids else upsample_argmax(found, pixels.shape[:2], self.resize)
        if empty is not None:
            ids[empty] = IGNORE_INDEX
        return Prediction(ids, None if self.gives_ids else found, pixels)

    def settle(self, dataset: AnyDataset) -> None:
        """See `degrid.Predictor.settle`; a file has one precision."""

    def class_ids(self, image: np.ndarray) -> np.ndarray:
        """Class ids, uint8 [H,W], of an image, uint8 [C,H,W]; the same as those of `degrid.Predictor`.

        With compiled code where there is any: importing it takes as long as some images without.
        """
        found, size = self.file(image[None]), image.shape[1:]
        ids: np.ndarray
        if self.gives_ids:
            ids = found[0]
        elif numba_installed():
            ids = compiled_upsample_argmax(found.transpose(0, 2, 3, 1), size, self.resize)[0]
        else:
            ids = upsample_argmax(found[0], size, self.resize)
        return ids

    def _in_windows(self, scene: LargeScene) -> Prediction:
        if self.gives_ids:
            raise needs_the_whole(scene)
        from degrid.engine.inference.predictor import Predictor

        predictor = Predictor(open_network(self.path), "cpu", options=self.options)
        predictor.progress = self.progress
        found = predictor.predict(scene)
        self.windowed += predictor.windowed
        self.windows |= predictor.windows
        return found

    def confidence(self, prediction: Prediction) -> np.ndarray | None:
        """The probability of the class of each pixel, see `degrid.Predictor.confidence`; None without logits."""
        if prediction.logits is None:
            return None
        found = confidence(prediction.logits, prediction.ids.shape, self.resize)
        found[prediction.ids == IGNORE_INDEX] = 0
        return found
