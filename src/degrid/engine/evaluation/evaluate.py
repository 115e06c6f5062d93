"""Score a model on a dataset: every image whole, at its own size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from degrid.background import Background, ahead
from degrid.engine.evaluation.metrics import BoundaryCounts, ConfusionMatrix, Ids, scores
from degrid.engine.ranks import own_items, together
from degrid.lookup import some
from degrid.types import AnyDataset, AnySample, Sample, Scores, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from degrid.engine.evaluation.calibration import CalibrationCounts
    from degrid.engine.inference.predictor import Predictor

OnImage = Callable[[int, Any, Any], object]
"""Called with an image's index, its sample, and the predicted ids, uint8 [H,W]: tensors, or arrays of a predictor that
gives arrays."""


class Classifier(Protocol):
    """What `score` needs of a predictor, such as `degrid.Predictor`."""

    num_classes: int | None
    windowed: int

    def settle(self, dataset: Any, /) -> None:
        """Decide on a precision by the first images if none was set; all processes decide alike."""

    def class_ids(self, image: Any, /) -> Any:
        """Class ids, uint8 [H,W], of an image [C,H,W]; both tensors or both arrays."""


def score(
    predictor: Classifier,
    dataset: AnyDataset,
    boundary: bool = True,
    calibration: bool = False,
    on_image: OnImage | None = None,
) -> Scores:
    """Predict every image of a dataset and count, all in one precision.

    Where the predictor chooses it ("auto"), it has done so before on the first images of the dataset.

    Where `torch.distributed` is initialised every process must call this: each takes a part of the images (rank,
    rank + processes, ..), the counts are added up, and all return the same scores.

    Args:
        boundary: also boundary IoU (costs a few milliseconds per image).
        calibration: also the expected calibration error and its bins (costs a softmax at the size of the image); of a
            `degrid.Predictor` only.
        on_image: called after each image with its index, the sample and the predicted ids, uint8 [H,W]; in each process
            for its own images.
    Raises:
        UserError: an empty dataset, an image that cannot be read, or a model with another number of classes than the
            dataset; in the other processes that one of them failed.
    """
    if len(dataset) == 0:
        raise UserError("nothing to evaluate: the dataset holds no image")
    confusion = ConfusionMatrix(len(dataset.labels))
    contours = BoundaryCounts(len(dataset.labels)) if boundary else None
    confidences = _confidences() if calibration else None
    predictor.settle(dataset)

    def count(ids: Ids, label: Ids) -> None:
        confusion.update(ids, label)
        if contours:
            contours.update(ids, label)

    own = own_items(len(dataset))
    reads = ahead(partial(dataset.__getitem__, index) for index in own)
    with together(), closing(reads), Background() as background:
        for index, read in zip(own, reads, strict=True):
            sample = read()
            ids = _predict(predictor, sample, confidences)
            _check_classes(predictor, dataset)
            background.run(partial(count, ids, sample.label))
            if on_image:
                on_image(index, sample, ids)
    return scores(
        confusion.merged(),
        dataset.labels,
        len(dataset),
        contours.merged() if contours else None,
        confidences.merged() if confidences else None,
    )


def _confidences() -> CalibrationCounts:
    from degrid.engine.evaluation.calibration import CalibrationCounts  # imported here: it needs torch

    return CalibrationCounts()


def _predict(predictor: Classifier, sample: AnySample, confidences: CalibrationCounts | None) -> Ids:
    """Class ids, uint8 [H,W], of the CPU; their confidence is counted where wanted."""
    if confidences is None:
        found: Ids = predictor.class_ids(sample.image)
        return found if isinstance(found, np.ndarray) else found.cpu()
    return _predict_and_count(cast("Predictor", predictor), cast(Sample, sample), confidences)


def _predict_and_count(predictor: Predictor, sample: Sample, confidences: CalibrationCounts) -> Tensor:
    found = predictor.scores(sample.image)
    ids = predictor.ids(found, tuple(sample.label.shape))
    confidences.add_image(found, ids, sample.label, predictor.resize, predictor.options.gives_probabilities)
    return ids.cpu()


def _check_classes(predictor: Classifier, dataset: AnyDataset) -> None:
    names = dataset.labels.names
    if predictor.num_classes != len(names):
        raise UserError(
            f"the model predicts {predictor.num_classes} classes, the dataset has {len(names)} ({some(names, 5)})"
        )
