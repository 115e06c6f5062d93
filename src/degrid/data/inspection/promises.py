"""Check that a user's own dataset keeps the promises of `degrid.types.Dataset`."""

from __future__ import annotations

import torch

from degrid.data.dataset import bands_in
from degrid.types import IGNORE_INDEX, Dataset, LabelSpace, Sample, UserError


def check_promises(dataset: Dataset, num: int = 8) -> None:
    """Check `num` samples, spread evenly over a dataset.

    Raises:
        UserError: a promise is broken (labels, length, types, shapes, ids, repeatability); names the first one.
    """
    # isinstance of the protocol would not say which part is missing.
    if not isinstance(getattr(dataset, "labels", None), LabelSpace):
        raise UserError("a dataset needs the attribute labels, a degrid.LabelSpace")
    if len(dataset) == 0:
        raise UserError("the dataset is empty")
    channels = bands_in(dataset).count
    for index in sorted({round(i * (len(dataset) - 1) / max(1, num - 1)) for i in range(num)}):
        sample, again = dataset[index], dataset[index]
        _check_sample(sample, len(dataset.labels), channels, f"sample {index}")
        if not (torch.equal(sample.image, again.image) and torch.equal(sample.label, again.label)):
            raise UserError(f"sample {index}: two reads gave different samples; put randomness into the transform")


def _check_sample(sample: object, num_classes: int, channels: int, where: str) -> None:
    if not isinstance(sample, Sample):
        raise UserError(f"{where}: expected a degrid.Sample, got {type(sample).__name__}")
    image, label, name = sample.image, sample.label, sample.name
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: name must be a non-empty string, got {name!r}")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != channels:
        raise UserError(f"{where}: image must be uint8 [{channels},H,W], got {image.dtype} {list(image.shape)}")
    if label.dtype != torch.uint8 or label.shape != image.shape[1:]:
        raise UserError(
            f"{where}: label must be uint8 [H,W] = {list(image.shape[1:])}, got {label.dtype} {list(label.shape)}"
        )
    foreign = sorted(set(torch.unique(label).tolist()) - {*range(num_classes), IGNORE_INDEX})
    if foreign:
        raise UserError(f"{where}: label holds the ids {foreign[:5]}; map them to classes or {IGNORE_INDEX}")
