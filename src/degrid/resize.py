"""Resizing, in the one place where it is done, and its three conventions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.types import RESIZES, UserError


def resize(x: Tensor, size: tuple[int, ...], convention: str = "half_pixel") -> Tensor:
    """Bilinear resizing of [N,C,h,w] to [N,C,*size]; UserError if RESIZES has no such convention."""
    if convention not in RESIZES:
        raise UserError(f'unknown way to resize "{convention}"; known: {", ".join(RESIZES)}')
    recorded = isinstance(x, torch.fx.Proxy)  # its size is not known
    if not recorded and x.shape[-2:] == tuple(size):
        return x
    if convention == "tf_legacy":
        return _tf_legacy(_tf_legacy(x, size[0], 2), size[1], 3)
    return F.interpolate(x, size, mode="bilinear", align_corners=convention == "align_corners")


def resize_mirrored(x: Tensor, size: tuple[int, ...], convention: str, width: int) -> Tensor:
    """The logits [N,C,h,w] of a mirrored image enlarged and turned round, so that they lie on those of the image.

    tf_legacy puts feature k at column k * W / w although it was seen at column k * stride, which is the same only where
    the stride divides the width. Features are taken here from where they were seen in the mirrored image.

    Args:
        width: of the image that the network saw, pixels; the power of two nearest to width / w is taken as its stride.
    """
    if convention != "tf_legacy":
        return resize(x.flip(-1), size, convention)
    stride = 2 ** round(math.log2(width / x.shape[3]))
    place = (width - 1) / stride - _legacy_places(x.shape[3], size[1], x.device)
    return _interpolated(_tf_legacy(x, size[0], 2), place.clamp(min=0), 3)


def _tf_legacy(x: Tensor, size: int, axis: int) -> Tensor:
    """One axis as in TensorFlow 1: no half-pixel offset, and the upper neighbour clamped to the last pixel."""
    return _interpolated(x, _legacy_places(x.shape[axis], size, x.device), axis)


def _legacy_places(length: int, size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device, dtype=torch.float32) * (length / size)


def _interpolated(x: Tensor, place: Tensor, axis: int) -> Tensor:
    """One axis at these places, which are not negative."""
    last = x.shape[axis] - 1
    lower = place.floor().long().clamp(max=last)
    weight = (place - lower).to(x.dtype).reshape(-1, *[1] * (3 - axis))
    low, high = x.index_select(axis, lower), x.index_select(axis, (lower + 1).clamp(max=last))
    return low + weight * (high - low)


def scaled_size(size: tuple[int, ...], scale: float, convention: str = "half_pixel") -> tuple[int, int]:
    """The size of an image at a scale of multi-scale input.

    Source: the multi-scale DeepLab v2 of Caffe and early PyTorch (align_corners) uses int(s * H) + 1, so that 321
    becomes 241; those of TensorFlow use int(s * H).
    """
    extra = 1 if convention == "align_corners" else 0
    height, width = (max(1, int(side * scale) + extra) for side in size[-2:])
    return height, width
