"""How sure a network is: the probability of the class that it predicts, pixel by pixel, in little memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from degrid.kernels.upsample_argmax_numpy import places
from degrid.resize import resize

BAND_VALUES = 4_000_000
"""Scores of a band of rows that are enlarged at a time."""


def confidence_bands(
    scores: Tensor, size: tuple[int, ...], convention: str, probabilities: bool
) -> Iterator[tuple[slice, Tensor]]:
    """The largest probability of each pixel, from top to bottom: (rows, float32 [rows,W], 0 to 1).

    Args:
        scores: float32 [1,C,h,w], see `degrid.engine.inference.predictor.Predictor.scores`.
        size: height and width of the image.
        convention: of resizing, a name in `degrid.types.RESIZES`.
        probabilities: whether the scores are probabilities or sums of them; see
            `degrid.engine.inference.options.InferenceOptions.gives_probabilities`.
    """
    for first, band in row_bands(scores, size, convention):
        best = band.amax(0)
        # The largest softmax is 1 over the sum of all exp(logit - largest), without a division for each class.
        confidence = best / band.sum(0) if probabilities else (band - best).exp_().sum(0).reciprocal_()
        yield slice(first, first + len(best)), confidence.clamp(max=1)


def row_bands(scores: Tensor, size: tuple[int, ...], convention: str) -> Iterator[tuple[int, Tensor]]:
    """Scores [1,C,h,w] enlarged to `size` by `degrid.resize.resize`, from top to bottom: (first row, [C,rows,W]).

    Bilinear resizing is separable, so a band is mixed from its rows first and then resized along them.
    """
    height, width = size
    last = scores.shape[2] - 1
    lower, weight = (torch.from_numpy(found).to(scores.device) for found in places(last + 1, height, convention))
    weight = weight.to(scores.dtype)[:, None]
    rows = max(1, BAND_VALUES // (scores.shape[1] * width))
    for first in range(0, height, rows):
        part = slice(first, first + rows)
        low = scores[:, :, lower[part]]
        high = scores[:, :, (lower[part] + 1).clamp(max=last)]
        band = torch.lerp(low, high, weight[part])
        yield first, resize(band, (band.shape[2], width), convention)[0]
