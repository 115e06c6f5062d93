"""Does a dataset keep its promises? For people's own datasets."""

from __future__ import annotations

import torch

from degrid.types import IGNORE_INDEX, Dataset, LabelSpace, Sample, UserError


def check_dataset(dataset: Dataset, num: int = 8) -> None:
    """Look at `num` samples spread over a dataset.

    Raises:
        UserError: the first promise that is broken: labels, length, types, shapes, ids, or the same sample twice.
    """
    if not isinstance(getattr(dataset, "labels", None), LabelSpace):
        raise UserError("a dataset needs the attribute labels, a degrid.LabelSpace")
    if len(dataset) == 0:
        raise UserError("the dataset is empty")
    for index in sorted({round(i * (len(dataset) - 1) / max(1, num - 1)) for i in range(num)}):
        sample, again = dataset[index], dataset[index]
        where = f"sample {index}"
        if not isinstance(sample, Sample):
            raise UserError(f"{where}: expected a degrid.Sample, got {type(sample).__name__}")
        image, label = sample.image, sample.label
        if not isinstance(sample.name, str) or not sample.name:
            raise UserError(f"{where}: name must be a word that is not empty, got {sample.name!r}")
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise UserError(f"{where}: image must be uint8 [3,H,W], got {image.dtype} {list(image.shape)}")
        if label.dtype != torch.uint8 or label.shape != image.shape[1:]:
            raise UserError(
                f"{where}: label must be uint8 [H,W] = {list(image.shape[1:])}, got {label.dtype} {list(label.shape)}"
            )
        foreign = sorted(set(torch.unique(label).tolist()) - {*range(len(dataset.labels)), IGNORE_INDEX})
        if foreign:
            raise UserError(f"{where}: label holds the ids {foreign[:5]}; map them to classes or {IGNORE_INDEX}")
        if not (torch.equal(image, again.image) and torch.equal(label, again.label)):
            raise UserError(f"{where}: a second look gave another sample; put randomness into the transform")
