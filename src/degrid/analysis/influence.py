"""What one pixel of a prediction depends on: its effective receptive field on a given image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from degrid.resize import resize
from degrid.types import UserError


def influence(
    function: Callable[[Tensor], Tensor], image: Tensor, row: int, column: int, convention: str = "half_pixel"
) -> tuple[np.ndarray, int]:
    """How much the score of a pixel's class depends on each pixel of the image: mean over its bands of |dy / dx|.

    Args:
        function: a network in evaluation mode, from images [1,C,H,W] (0-255) to logits [1,K,h,w].
        image: uint8 [C,H,W].
        row, column: the pixel.
        convention: of enlarging the logits, a name in `degrid.types.RESIZES`.
    Returns:
        float32 [H,W] in logits per grey level, and the class of the pixel.
    Raises:
        UserError: the pixel is outside the image, or the network has no gradient with respect to it.
    Source: Luo et al., NeurIPS 2016 (arXiv 1701.04128), for one output on one image.
    """
    height, width = image.shape[-2:]
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(f"expected a pixel in the image of {width}x{height}, got row {row}, column {column}")
    with torch.inference_mode(False), torch.enable_grad():
        x = image[None].float().requires_grad_()
        logits = function(x)
        scores = resize(logits, (height, width), convention)[0, :, row, column]
        best = int(scores.argmax())
        gradient = torch.autograd.grad(scores[best], x, allow_unused=True)[0] if scores.requires_grad else None
        if gradient is None:
            raise UserError("this network gives no gradients, so that its receptive field cannot be measured")
    field: np.ndarray = gradient[0].abs().mean(0).cpu().numpy()
    return field, best
