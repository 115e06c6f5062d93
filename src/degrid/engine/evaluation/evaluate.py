"""Score a model on a dataset: every image whole, at its own size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from degrid.background import Background, ahead
from degrid.engine.evaluation.calibration import CalibrationCounts
from degrid.engine.evaluation.metrics import BoundaryCounts, ConfusionMatrix, scores
from degrid.engine.inference.predictor import Predictor
from degrid.engine.ranks import own_items, summed_over_ranks, together
from degrid.lookup import some
from degrid.types import Dataset, Sample, Scores, UserError

OnImage = Callable[[int, Sample, Tensor], object]
"""Called with an image's index, its sample, and the predicted ids, uint8 [H,W]."""


def score(
    predictor: Predictor,
    dataset: Dataset,
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
        calibration: also the expected calibration error and its bins (costs a softmax at the size of the image).
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
    confidences = CalibrationCounts() if calibration else None
    settle(predictor, dataset)

    def count(ids: Tensor, label: Tensor) -> None:
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


def settle(predictor: Predictor, dataset: Dataset) -> None:
    """Let a predictor choose its precision on the first images, the same one in all processes."""
    windowed = predictor.windowed
    with together():
        for index in range(len(dataset)):
            if predictor.network.is_decided:
                break
            predictor.class_ids(dataset[index].image)
    predictor.windowed = windowed
    if int(summed_over_ranks(torch.tensor(int(predictor.network.precision == "float32")))):
        predictor.network.use_float32()


def _predict(predictor: Predictor, sample: Sample, confidences: CalibrationCounts | None) -> Tensor:
    """Class ids, uint8 [H,W]; their confidence is counted where wanted."""
    if confidences is None:
        return predictor.class_ids(sample.image).cpu()
    found = predictor.scores(sample.image)
    ids = predictor.ids(found, tuple(sample.label.shape))
    with torch.inference_mode():
        probabilities = predictor.options.gives_probabilities
        confidences.add_image(found, ids, sample.label, predictor.resize, probabilities)
    return ids.cpu()


def _check_classes(predictor: Predictor, dataset: Dataset) -> None:
    names = dataset.labels.names
    if predictor.num_classes != len(names):
        raise UserError(
            f"the model predicts {predictor.num_classes} classes, the dataset has {len(names)} ({some(names, 5)})"
        )
