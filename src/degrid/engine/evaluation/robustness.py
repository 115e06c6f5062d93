"""How predictions hold when the image is noisy, blurred, or shifted by a few pixels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from degrid.engine.evaluation.metrics import Ids, as_array
from degrid.engine.ranks import counts_of_all
from degrid.types import AnySample, Dataset, Sample, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from degrid.engine.evaluation.evaluate import Classifier

SEVERITIES = {"noise": (0.08, 0.12, 0.18, 0.26, 0.38), "blur": (1.0, 2.0, 3.0, 4.0, 6.0)}
"""Noise: standard deviation as a fraction of 255; blur: standard deviation in pixels. Severities 1 to 5 of ImageNet-C
(Hendrycks and Dietterich, arXiv 1903.12261), which are meant for images of 224x224."""


@dataclass(frozen=True)
class CorruptedScore:
    """kind: a row of SEVERITIES. severity: 1 to 5. miou: 0 to 1."""

    kind: str
    severity: int
    miou: float


@dataclass(frozen=True)
class ShiftPoint:
    """shift: in pixels, down and to the right. agreement: fraction of pixels whose class stays, 0 to 1."""

    shift: int
    agreement: float


def parse_corruptions(words: Sequence[str]) -> list[tuple[str, int]]:
    """Kinds and severities of "noise:3", or of "noise" for all five.

    Raises:
        UserError: another kind or severity.
    """
    found: list[tuple[str, int]] = []
    for word in words:
        kind, colon, number = word.partition(":")
        known = SEVERITIES.get(kind, ())
        if not known or (colon and number not in [str(each) for each in range(1, len(known) + 1)]):
            raise UserError(
                f'corruption "{word}": expected {" or ".join(SEVERITIES)}, alone for all severities or with one from 1 '
                'to 5, as in "noise:3"'
            )
        found += [(kind, int(number))] if colon else [(kind, severity + 1) for severity in range(len(known))]
    return list(dict.fromkeys(found))


def corrupt(image: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """An image made worse.

    Args:
        image: uint8 [C,H,W].
        kind, severity: of SEVERITIES, the severity from 1.
        seed: of the noise.
    Returns:
        uint8 [C,H,W], rounded and cut off at 0 and 255.
    """
    import torch

    amount = SEVERITIES[kind][severity - 1]
    values = image.float()
    if kind == "noise":
        random = torch.Generator().manual_seed(seed)
        values = values + 255 * amount * torch.randn(image.shape, generator=random)
    else:
        values = _blurred(values, amount)
    return values.round().clamp(0, 255).byte()


def _blurred(values: Tensor, sigma: float) -> Tensor:
    """The values blurred by a Gaussian that is cut off at four deviations; the border's pixels continue beyond it."""
    import torch
    from torch.nn import functional as F

    reach = math.ceil(4 * sigma)
    taps = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    rows = F.conv2d(F.pad(values[:, None], (reach, reach, 0, 0), mode="replicate"), taps[None, None, None])
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), taps[None, None, :, None])[:, 0]


class Corrupted:
    """A dataset whose images are made worse, each always in the same way.

    Raises:
        UserError: on reading, an image that is not of bytes.
    """

    def __init__(self, dataset: Dataset, kind: str, severity: int) -> None:
        self._dataset, self._kind, self._severity = dataset, kind, severity
        self.labels = dataset.labels

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        import torch

        sample = self._dataset[index]
        if sample.image.dtype != torch.uint8:
            raise UserError(f"{sample.name}: noise and blur are defined for 8-bit images, got {sample.image.dtype}")
        seed = zlib.crc32(sample.name.encode("utf-8", "surrogateescape"))
        return Sample(corrupt(sample.image, self._kind, self._severity, seed), sample.label, sample.name)


class ShiftCounts:
    """How many pixels keep their class when the image is moved by 1 to some pixels, diagonally.

    The network sees crops of one size that begin at different pixels, so that no border is made up; the pixels that
    both crops hold are compared. A network of output stride s that treats all positions alike agrees at multiples of s.

    Args:
        predictor: gives the classes.
        most: the largest shift, in pixels.
    Source: Zhang, Making Convolutional Networks Shift-Invariant Again (arXiv 1904.11486), for classification.
    """

    def __init__(self, predictor: Classifier, most: int) -> None:
        self._predictor, self._most = predictor, most
        self._counts = np.zeros((most, 2), np.int64)

    def __call__(self, index: int, sample: AnySample, ids: Ids) -> None:
        """Add an image; an instance is an `on_image` of `degrid.engine.evaluation.evaluate.score`."""
        height, width = (side - self._most for side in sample.image.shape[-2:])
        if min(height, width) <= self._most:
            raise UserError(
                f"{sample.name}: {height + self._most}x{width + self._most} is too small for shifts of {self._most}"
            )
        windowed = self._predictor.windowed
        crops = [sample.image[:, by : by + height, by : by + width] for by in range(self._most + 1)]
        first, *others = (as_array(self._predictor.class_ids(_dense(crop))) for crop in crops)
        self._predictor.windowed = windowed
        for by, moved in enumerate(others, start=1):
            same = first[by:, by:] == moved[:-by, :-by]
            self._counts[by - 1] += same.sum(), same.size

    def curve(self) -> tuple[ShiftPoint, ...]:
        """One point per shift, over the images of all processes."""
        counts = counts_of_all(self._counts)
        return tuple(ShiftPoint(by, same / all_) for by, (same, all_) in enumerate(counts.tolist(), start=1))


def _dense(crop: Ids) -> Ids:
    """The same pixels in contiguous memory."""
    return np.ascontiguousarray(crop) if isinstance(crop, np.ndarray) else crop.contiguous()
