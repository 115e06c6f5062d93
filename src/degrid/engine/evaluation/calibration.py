"""Expected calibration error: whether a network's confidence is as high as its accuracy, over the valid pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from degrid.engine.inference.tta import confidence_bands
from degrid.engine.ranks import summed_over_ranks
from degrid.types import IGNORE_INDEX, ConfidenceBin

NUM_BINS = 15
"""Bins of confidence, as many as published."""

UNIT = 2**24
"""Confidences are added up as integers in this many parts of 1, float32's own resolution just below 1: such a sum is
the same in every order, however images and processes are divided up."""


class CalibrationCounts:
    """Counts per interval of confidence, the probability of the class that was predicted; void pixels are skipped.

    Bin m of M holds the confidences above (m-1)/M and up to m/M.

    pixels, hits: int64 [M], how many pixels, and how many of them are right. confidence: int64 [M], their summed
    confidence in parts of 1/UNIT. Counts of parts of a dataset can be added.
    Source: Guo et al. 2017, arXiv 1706.04599, section 2 and equation 3; 15 bins as in its section 5.
    """

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        self.num_bins = num_bins
        self.pixels, self.hits, self.confidence = torch.zeros(3, num_bins, dtype=torch.int64)

    def update(self, confidence: Tensor, hit: Tensor) -> None:
        """Add pixels.

        Args:
            confidence: float32, 0 to 1, any shape.
            hit: bool, the same shape: whether the predicted class is the true one.
        """
        confidence, hit = confidence.reshape(-1), hit.reshape(-1)
        edges = torch.linspace(0, 1, self.num_bins + 1, device=confidence.device)[1:-1]
        home = torch.bucketize(confidence, edges)
        # Sums of integers in float64 are exact up to 2 ** 53, which no band reaches.
        parts = (confidence * UNIT).round().double()
        for total, weights in ((self.pixels, None), (self.hits, hit.double()), (self.confidence, parts)):
            total += torch.bincount(home, weights, minlength=self.num_bins).long().cpu()

    def add_image(self, scores: Tensor, ids: Tensor, label: Tensor, convention: str, probabilities: bool) -> None:
        """Add an image. Its scores are enlarged in bands of rows, so that they are never all in memory.

        Args:
            scores: float32 [1,C,h,w], see `degrid.engine.inference.predictor.Predictor.scores`.
            ids: uint8 [H,W], the predicted classes.
            label: uint8 [H,W].
            convention: of resizing, a name in `degrid.types.RESIZES`.
            probabilities: whether the scores are probabilities or sums of them; see
                `degrid.engine.inference.tta.InferenceOptions.gives_probabilities`.
        """
        ids, label = ids.to(scores.device), label.to(scores.device)
        with torch.inference_mode():
            for rows, confidence in confidence_bands(scores, tuple(label.shape), convention, probabilities):
                valid = label[rows] != IGNORE_INDEX
                self.update(confidence[valid], (ids[rows] == label[rows])[valid])

    def merged(self) -> CalibrationCounts:
        """The counts of all processes, see `summed_over_ranks`; this one's stay as they are."""
        whole = CalibrationCounts(self.num_bins)
        whole.pixels, whole.hits, whole.confidence = (
            summed_over_ranks(counts) for counts in (self.pixels, self.hits, self.confidence)
        )
        return whole

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: |accuracy - confidence| of each bin, averaged by its pixels."""
        gaps = (self.hits - self.confidence.double() / UNIT).abs()
        return float(gaps.sum()) / max(1, int(self.pixels.sum()))

    def bins(self) -> tuple[ConfidenceBin, ...]:
        """The bins from the least confidence to the most: the points of a reliability diagram."""
        rows = zip(self.pixels.tolist(), self.confidence.tolist(), self.hits.tolist(), strict=True)
        return tuple(
            ConfidenceBin(pixels, confidence / UNIT / pixels, hits / pixels) if pixels else ConfidenceBin(0, None, None)
            for pixels, confidence, hits in rows
        )
