"""What the test-time options do: scales, flips, a sliding window, and a CRF, and how sure a network is of a pixel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Protocol

import torch
from torch import Tensor

from degrid.engine.inference.options import InferenceOptions
from degrid.kernels.dense_crf import refine
from degrid.kernels.upsample_argmax_numpy import places
from degrid.resize import resize, resize_mirrored
from degrid.types import UserError

Forward = Callable[[Tensor], Tensor]
"""From RGB images [N,3,H,W] (0-255) to logits [N,C,h,w]."""


def fused_scores(
    forward: Forward,
    image: Tensor,
    options: InferenceOptions,
    convention: str,
    stride: int = 1,
    room: Callable[[], int] | None = None,
) -> Tensor:
    """Scores at the image's size, [1,C,H,W]: with a CRF its marginals, else see `InferenceOptions.sums_probabilities`.

    Args:
        forward: the network.
        image: RGB [1,3,H,W], 0-255.
        convention: of resizing, a name in `degrid.types.RESIZES`.
        stride: of the network's coarsest feature, to refuse scales that leave less than one of its pixels.
        room: how many bytes a CRF may take, asked when it begins; None: as many as it needs.
    Raises:
        UserError: a scale makes the image too small, or the CRF needs more memory.
    """
    size = tuple(image.shape[-2:])
    total: Tensor | None = None
    for flipped, pixels in _views(image, options, convention, stride):
        part = slide(forward, pixels, options, convention)
        width = pixels.shape[3]
        part = resize_mirrored(part, size, convention, width) if flipped else resize(part, size, convention)
        # There are never more than three maps of scores at a time, including the total.
        part = part.softmax(1) if options.sums_probabilities else part
        join = torch.add if options.fusion == "mean" else torch.maximum
        total = part if total is None else join(total, part)
    assert total is not None
    if options.crf is None:
        return total
    total = probabilities(total, options)[0]
    return refine(total, image[0].to(total.device), options.crf, room and room())[None]


def probabilities(scores: Tensor, options: InferenceOptions) -> Tensor:
    """What `fused_scores` gives without a CRF as probabilities, which sum to 1 over the classes."""
    return scores / scores.sum(1, keepdim=True) if options.sums_probabilities else scores.softmax(1)


def _views(image: Tensor, options: InferenceOptions, convention: str, stride: int) -> Iterator[tuple[bool, Tensor]]:
    """The image at each scale, and mirrored: (whether mirrored, [1,3,h,w])."""
    height, width = image.shape[-2:]
    for scale in options.scales:
        size = (round(height * scale), round(width * scale))
        if min(size) < min(stride, height, width):
            raise UserError(
                f"scale {scale:g} makes the image of {width}x{height} pixels {size[1]}x{size[0]}, less than one "
                f"feature of stride {stride}; leave that scale out"
            )
        pixels = image if size == (height, width) else resize(image.float(), size, convention)
        yield False, pixels
        if options.flip:
            yield True, pixels.flip(-1)


def slide(forward: Forward, image: Tensor, options: InferenceOptions, convention: str) -> Tensor:
    """Logits of an image: [1,C,H,W] if windows slide over it, otherwise those of `forward`, at the head's stride."""
    if not options.slides_over(tuple(image.shape[-2:])):
        return forward(image)
    whole: Tensor | None = None
    for top, band in slide_in_bands(forward, image, options, convention):
        if whole is None:
            whole = band.new_empty(1, band.shape[1], *image.shape[-2:])
        whole[:, :, top : top + band.shape[2]] = band
    assert whole is not None
    return whole


class Sliced(Protocol):
    """An image [1,C,H,W] of which parts are read when they are asked for, from top to bottom."""

    @property
    def shape(self) -> Sequence[int]:
        """1, C, H, W."""

    @property
    def device(self) -> torch.device:
        """Where its parts are."""

    def __getitem__(self, place: tuple[EllipsisType, slice, slice], /) -> Tensor:
        """The part [1,C,h,w] of these rows and columns."""


def slide_in_bands(
    forward: Forward, image: Tensor | Sliced, options: InferenceOptions, convention: str
) -> Iterator[tuple[int, Tensor]]:
    """The logits of an image from top to bottom, in bands as they are completed: (first row, logits [1,C,rows,W]).

    Where windows overlap, each fades into the next, so that no seam shows; the outer quarter of an overlap gets weight
    0. For a network that sees no further than that around a pixel, and sides that are multiples of 32 pixels, the
    result is that of the whole image up to rounding. Only as many rows of logits are in memory as a window is high,
    whatever the height of the image: a band is overwritten when the next one is asked for.
    """
    assert options.window is not None
    height, width = image.shape[-2:]
    tall, wide = min(options.window[0], height), min(options.window[1], width)
    rows, columns = _starts(height, tall, options.overlap), _starts(width, wide, options.overlap)
    down, across = _fades(rows, tall, image.device), _fades(columns, wide, image.device)
    total: Tensor | None = None
    weights = torch.zeros(tall, width, device=image.device)
    for index, top in enumerate(rows):
        for column, left in enumerate(columns):
            weight = down[index][:, None] * across[column]
            logits = resize(forward(image[..., top : top + tall, left : left + wide]), (tall, wide), convention)
            if total is None:
                total = torch.zeros(1, logits.shape[1], tall, width, dtype=logits.dtype, device=image.device)
            total[..., left : left + wide].addcmul_(logits, weight)
            del logits
            weights[:, left : left + wide] += weight
        assert total is not None
        done = (rows[index + 1] if index + 1 < len(rows) else height) - top
        yield top, total[:, :, :done].div_(weights[:done])
        for sums in (total, weights):
            for first in range(0, tall - done, done):  # not beyond the first row that is moved
                part = sums[..., first + done : first + 2 * done, :]
                sums[..., first : first + part.shape[-2], :] = part
            sums[..., tall - done :, :] = 0


_GRID = 32
"""Windows begin at multiples of this if possible, so that a stride up to it samples the same pixels as without."""


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin, so that neighbours overlap by at least `overlap`; the last one ends with the image."""
    last = size - window
    if last <= 0:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    step = step // _GRID * _GRID or step
    return [*range(0, last, step), last]


def _fades(starts: list[int], window: int, device: torch.device) -> list[Tensor]:
    """Weights of each window along one axis, float32 [window]; those of two neighbours add up to 1."""
    place = torch.arange(window, dtype=torch.float32, device=device)
    shared = [first + window - second for first, second in itertools.pairwise(starts)]
    weights = []
    for before, after in zip([0, *shared], [*shared, 0], strict=True):
        fade_in = _rise(place, before, window) if before > 0 else torch.ones_like(place)
        fade_out = _rise(place.flip(0), after, window) if after > 0 else torch.ones_like(place)
        weights.append(torch.minimum(fade_in, fade_out))
    return weights


def _rise(place: Tensor, shared: int, window: int) -> Tensor:
    """From 0 to 1 over the pixels shared with a neighbour, and 0 on the outer quarter of them."""
    idle = min(shared // 4, (window - shared) // 2)
    return ((place + 1 - idle) / (shared - 2 * idle + 1)).clamp(0, 1)


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
