"""Encoders as Google's TensorFlow code computes them, where timm's differ."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.models.xception_aligned import SeparableConv2d
from torch import Tensor, nn

from degrid.models.library_encoders import TimmEncoder
from degrid.models.strides import pair


class GoogleMobileNetV2(TimmEncoder):
    """MobileNetV2 with TensorFlow's padding and batch norm epsilon.

    Args:
        name: "google:mobilenetv2_100", or with the width 035, 050, 075 or 140.
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name.removeprefix("google:"), **settings)
        modules: list[Any] = list(self.net.modules())
        for module in modules:
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
            elif isinstance(module, nn.Conv2d) and pair(module.stride) != (1, 1):
                module.__class__, module.padding = Conv2dSame, (0, 0)


class _ReluFirst(SeparableConv2d):
    """A separable convolution that applies the ReLU which timm has before it."""

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,out,h,w]."""
        y: Tensor = super().forward(F.relu(x))  # type: ignore[no-untyped-call]
        return y


class GoogleXception(TimmEncoder):
    """Xception whose feature at stride 4, which the decoder reads, is that before the ReLU.

    Args:
        name: "google:xception41", 65 or 71; "bonlime:xception65" pads the first convolution by TensorFlow's rule.
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name.partition(":")[2], **settings)
        if name.startswith("bonlime:"):
            stem: Any = self.net.stem_0.conv
            stem.__class__, stem.padding = Conv2dSame, (0, 0)
        tap = self.net.feature_info.module_name(1).replace("blocks.", "blocks_").rpartition(".")
        stack: Any = self.net.get_submodule(tap[0])
        getattr(stack, tap[2]).__class__ = nn.Identity  # in place, as timm takes the feature from this module
        stack.conv3.__class__ = _ReluFirst


GOOGLE_ENCODERS: dict[str, type[TimmEncoder]] = {
    **{f"google:xception{depth}": GoogleXception for depth in (41, 65, 71)},
    "bonlime:xception65": GoogleXception,
    **{f"google:mobilenetv2_{width}": GoogleMobileNetV2 for width in ("035", "050", "075", "100", "140")},
}
