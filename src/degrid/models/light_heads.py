"""Heads without dilated branches: FCN, and Lite R-ASPP of MobileNetV3."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from degrid.models.aspp import classifier, conv_norm_relu, no_window_for_free_sizes
from degrid.resize import resize


class FCNHead(nn.Module):
    """A 3x3 convolution to a quarter of the channels, and a classifier; logits at the last feature's stride.

    Args:
        dropout: fraction of values dropped before the classifier, 0 to 1.
    Source: torchvision's fcn_*, after arXiv 1411.4038.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.refine = conv_norm_relu(in_channels, in_channels // 4, 3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier(in_channels // 4, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,h,w]."""
        return cast(Tensor, self.classifier(self.dropout(self.refine(features[-1]))))


class LiteRASPPHead(nn.Module):
    """The sum of two classifiers: on a 1x1 convolution of the last feature times a gate from its mean, and on a finer
    feature. Logits at the stride of that one.

    Args:
        channels: of the last feature, of the 1x1 convolution, and of the finer feature.
        low_level: index of the finer feature.
        gate: from numbers to factors. bias: whether they have one.
        window: rows and columns of the feature map: on a larger map, means over such windows at every fourth row and
            fifth column take the place of the map's mean, and their factors are enlarged to the map.
        resize: how that and the last feature are enlarged; a name in `degrid.types.RESIZES`.
    Source: MobileNetV3 (arXiv 1905.02244) section 6.4.
    """

    steps = (4, 5)

    def __init__(
        self,
        channels: tuple[int, int, int],
        num_classes: int,
        low_level: int,
        gate: nn.Module,
        bias: bool = False,
        window: tuple[int, int] | None = None,
        resize: str = "half_pixel",
    ) -> None:
        super().__init__()
        last, width, fine = channels
        self.project = conv_norm_relu(last, width, 1)
        self.scale = nn.Sequential(nn.Conv2d(last, width, 1, bias=bias), gate)
        self.branches = nn.ModuleList([classifier(width, num_classes), classifier(fine, num_classes)])
        self.low_level, self.window, self.convention = low_level, window, resize

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,H/8,W/8]."""
        fine, x = features[self.low_level], features[-1]
        gated = resize(self.project(x) * self._factors(x), fine.shape[-2:], self.convention)
        return cast(Tensor, self.branches[0](gated) + self.branches[1](fine))

    def _factors(self, x: Tensor) -> Tensor:
        """[N,C,h,w] -> [N,channels,1,1], or [N,channels,h,w] where windows slide over the map."""
        if self.window is not None:
            no_window_for_free_sizes(x)
            sides = tuple(min(side, most) for side, most in zip(x.shape[-2:], self.window, strict=True))
            if sides != tuple(x.shape[-2:]):
                return resize(self.scale(F.avg_pool2d(x, sides, self.steps)), x.shape[-2:], self.convention)
        return cast(Tensor, self.scale(x.mean((2, 3), keepdim=True)))
