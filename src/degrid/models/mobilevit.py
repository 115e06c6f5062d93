"""MobileViT as the library transformers dilates it."""

from __future__ import annotations

from typing import Any

from torch import nn

from degrid.models.dilation import set_rates
from degrid.models.library_encoders import TimmEncoder


class TransformersMobileViT(TimmEncoder):
    """MobileViT without the last 1x1 convolution, whose rates lag behind the strides that are gone.

    At output stride 16 nothing is dilated; at 8 the first convolution of the last stage has rate 2.

    Args:
        name: "transformers:mobilevit_s", xs or xxs.
        output_stride: 8, 16 or 32.
        settings: the others of `TimmEncoder`.
    """

    def __init__(self, name: str, output_stride: int = 16, **settings: Any) -> None:
        super().__init__(name.partition(":")[2], 32, **settings)
        net: Any = self.net
        net.final_conv = nn.Identity()
        self.channels = (*self.channels[:-1], net.stages_4[1].conv_proj.conv.out_channels)
        self.reductions = tuple(min(stride, output_stride) for stride in self.reductions)
        rate = 1
        for stage, stride in ((net.stages_3, 16), (net.stages_4, 32)):
            if stride > output_stride:
                conv = stage[0].conv2_kxk.conv
                conv.stride = (1, 1)
                set_rates(conv, (rate, rate))
                rate *= 2


TRANSFORMERS_ENCODERS = {f"transformers:mobilevit_{size}": TransformersMobileViT for size in ("s", "xs", "xxs")}
