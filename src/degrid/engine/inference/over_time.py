"""Class ids of the frames of a video, smoothed over time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from degrid.engine.inference.predictor import Predictor
from degrid.types import UserError


class OverTime:
    """Predicts frames one after another by the exponential average of their class probabilities.

    The average of the first frame is its own; each further frame counts 1 - weight, and the average before it weight.

    Args:
        weight: of the past, above 0 and below 1.
    Raises:
        UserError: the model gives class ids, no probabilities.
    """

    def __init__(self, predictor: Predictor, weight: float) -> None:
        if predictor.gives_ids:
            raise UserError(
                "--smooth (InferenceOptions.smooth) averages probabilities, and this exported model gives class ids; "
                "export it with --output logits (output=...)"
            )
        self.predictor, self.weight = predictor, weight
        self._average: Tensor | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Class ids, uint8 [H,W], of the next frame, uint8 [H,W,3]."""
        found = self.predictor.scores(torch.from_numpy(pixels).permute(2, 0, 1))
        with torch.inference_mode():
            if self.predictor.options.gives_probabilities:
                now = found / found.sum(1, keepdim=True)
            else:
                now = found.float().softmax(1)
            before = self._average
            self._average = now if before is None else before * self.weight + now * (1 - self.weight)
            ids: np.ndarray = self.predictor.ids(self._average, pixels.shape[:2]).cpu().numpy()
        return ids
