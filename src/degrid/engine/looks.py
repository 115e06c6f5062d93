"""More than one look at an image: scales, flips, and windows that slide over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.engine.crf import CRF, refine
from degrid.resize import resize
from degrid.types import UserError

FUSIONS = ("mean", "max")
Forward = Callable[[Tensor], Tensor]
"""From RGB images [N,3,H,W] (0-255) to logits [N,C,h,w]."""


@dataclass(frozen=True)
class Inference:
    """How often, and in which pieces, a network looks at an image.

    scales: of the image; 1 alone is the image as it is.
    flip: also the image from right to left.
    fusion: "mean" of the probabilities (DeepLab v3, arXiv 1706.05587 section 4.1) or "max" of the logits (v2, arXiv
        1606.00915 section 4.1.2) over scales and flips.
    window: height and width of windows that slide over the image, in pixels; None: the whole image at once. A window
        that covers the image is the whole image.
    overlap: share of a window that the next one covers again, 0 to below 1.
    crf: a dense conditional random field on the probabilities; None: none.

    Raises:
        UserError: a value out of its range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fusion: str = "mean"
    window: tuple[int, int] | None = None
    overlap: float = 0.5
    crf: CRF | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise UserError(f"scales: expected factors above 0, up to 8, such as 0.75,1,1.25; got {self.scales}")
        if self.fusion not in FUSIONS:
            raise UserError(f'fusion: expected {" or ".join(FUSIONS)}, got "{self.fusion}"')
        if self.window is not None and min(self.window) < 1:
            raise UserError(f"window: expected a height and width of at least 1 pixel, got {self.window}")
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap: expected a share from 0 to below 1, got {self.overlap}")

    @property
    def is_plain(self) -> bool:
        """Whether the image is looked at once, as it is, and nothing is done to the result."""
        return self.looks_once and self.window is None and self.crf is None

    def slides_over(self, size: tuple[int, ...]) -> bool:
        """Whether an image of this height and width needs more than one window."""
        return self.window is not None and (self.window[0] < size[0] or self.window[1] < size[1])

    @property
    def looks_once(self) -> bool:
        """Whether there is nothing to fuse."""
        return self.scales == (1.0,) and not self.flip


def fused_scores(forward: Forward, image: Tensor, how: Inference, convention: str, stride: int = 1) -> Tensor:
    """Scores at the image's size, [1,C,H,W]: sums of probabilities for the fusion "mean" of several looks, logits
    otherwise; with a CRF its marginals.

    Args:
        forward: the network.
        image: RGB [1,3,H,W], 0-255.
        convention: of resizing, a name in `degrid.resize.RESIZES`.
        stride: of the network's coarsest feature, to refuse scales that leave less than one of its pixels.
    Raises:
        UserError: a scale makes the image too small.
    """
    size = tuple(image.shape[-2:])
    total: Tensor | None = None
    for look in _looks(image, how, convention, stride):
        flipped, pixels = look
        logits = slide(forward, pixels, how, convention)
        logits = resize(logits.flip(-1) if flipped else logits, size, convention)
        part = logits.softmax(1) if _sums_probabilities(how) else logits
        join = torch.add if how.fusion == "mean" else torch.maximum
        total = part if total is None else join(total, part)
    assert total is not None
    if how.crf is None:
        return total
    probabilities = total / total.sum(1, keepdim=True) if _sums_probabilities(how) else total.softmax(1)
    return refine(probabilities[0].cpu(), image[0].cpu(), how.crf)[None].to(total.device)


def _sums_probabilities(how: Inference) -> bool:
    return how.fusion == "mean" and not how.looks_once


def _looks(image: Tensor, how: Inference, convention: str, stride: int) -> Iterator[tuple[bool, Tensor]]:
    height, width = image.shape[-2:]
    for scale in how.scales:
        size = (round(height * scale), round(width * scale))
        if min(size) < min(stride, height, width):
            raise UserError(
                f"scale {scale:g} makes the image of {width}x{height} pixels {size[1]}x{size[0]}, less than one "
                f"feature of stride {stride}; leave that scale out"
            )
        pixels = image if size == (height, width) else resize(image.float(), size, convention)
        yield False, pixels
        if how.flip:
            yield True, pixels.flip(-1)


def slide(forward: Forward, image: Tensor, how: Inference, convention: str) -> Tensor:
    """Logits [1,C,H,W] of an image, window by window; where it is whole, at the head's stride."""
    if not how.slides_over(tuple(image.shape[-2:])):
        return forward(image)
    bands = [band for _, band in slide_in_bands(forward, image, how, convention)]
    return torch.cat(bands, dim=2)


def slide_in_bands(forward: Forward, image: Tensor, how: Inference, convention: str) -> Iterator[tuple[int, Tensor]]:
    """The same from top to bottom, in bands that are ready: (first row, logits [1,C,rows,W]).

    Each window counts most in its middle and less towards its rim, so that no seam shows. Only as many rows of logits
    are in memory as a window is high, whatever the height of the image.
    """
    assert how.window is not None
    height, width = image.shape[-2:]
    tall, wide = min(how.window[0], height), min(how.window[1], width)
    rows, columns = _starts(height, tall, how.overlap), _starts(width, wide, how.overlap)
    weight = (_ramp(tall)[:, None] * _ramp(wide)).to(image.device)
    total: Tensor | None = None
    weights = torch.zeros(tall, width, device=image.device)
    for index, top in enumerate(rows):
        for left in columns:
            logits = resize(forward(image[..., top : top + tall, left : left + wide]), (tall, wide), convention)
            if total is None:
                total = torch.zeros(1, logits.shape[1], tall, width, dtype=logits.dtype, device=image.device)
            total[..., left : left + wide] += logits * weight
            weights[:, left : left + wide] += weight
        assert total is not None
        done = (rows[index + 1] if index + 1 < len(rows) else height) - top
        yield top, total[:, :, :done] / weights[:done]
        total = F.pad(total[:, :, done:], (0, 0, 0, done))
        weights = F.pad(weights[done:], (0, 0, 0, done))


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin: evenly spread, from the first pixel to the last, at least `overlap` shared."""
    if window >= size:
        return [0]
    steps = math.ceil((size - window) / max(1.0, window * (1 - overlap)))
    return [round(index * (size - window) / steps) for index in range(steps + 1)]


def _ramp(size: int) -> Tensor:
    """Weights of a window along one axis: a tent, never zero."""
    place = torch.arange(size, dtype=torch.float32)
    return torch.minimum(place + 1, size - place) / ((size + 1) // 2)
