"""Score a model on a dataset: every image whole, at its own size."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from degrid.engine.infer import Predictor
from degrid.engine.looks import Inference
from degrid.engine.metrics import BoundaryCounts, ConfusionMatrix, scores
from degrid.types import Dataset, Sample, Scores, UserError


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    device: str = "auto",
    precision: str = "float32",
    how: Inference | None = None,
    boundary: bool = True,
    on_image: Callable[[int, Sample, Tensor], None] | None = None,
) -> Scores:
    """Predict every image of a dataset and count.

    Args:
        model: from RGB images [1,3,H,W] (0-255) to logits [1,C,h,w]; its training mode is put back afterwards.
        how: scales, flips and windows; by default each image once, whole.
        boundary: also boundary IoU (costs a few milliseconds per image).
        on_image: called after each image with its index, the sample and the predicted ids, uint8 [H,W].
    Raises:
        UserError: an empty dataset, or a model with another number of classes than the dataset.
    """
    num_classes = len(dataset.labels)
    if len(dataset) == 0:
        raise UserError("nothing to evaluate: the dataset holds no image")
    was_training = model.training
    predictor = Predictor(model, device, precision, how)
    confusion = ConfusionMatrix(num_classes)
    bands = BoundaryCounts(num_classes) if boundary else None
    try:
        for index in range(len(dataset)):
            sample = dataset[index]
            ids = predictor.class_ids(sample.image).cpu()
            if predictor.num_classes != num_classes:
                raise UserError(
                    f"the model predicts {predictor.num_classes} classes, the dataset has {num_classes} "
                    f"({', '.join(dataset.labels.names[:5])}{', ...' if num_classes > 5 else ''})"
                )
            confusion.update(ids, sample.label)
            if bands:
                bands.update(ids, sample.label)
            if on_image:
                on_image(index, sample, ids)
    finally:
        model.train(was_training)
    return scores(confusion, dataset.labels, len(dataset), bands)
