"""HRNet with its four resolutions joined at stride 4, as one project puts it below DeepLab."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.models.own_rates import OwnRates
from degrid.resize import resize


class PeerHRNet(OwnRates):
    """HRNetV2 of timm; features at stride 4: the first stage, and the last with all resolutions joined.

    The stem has no ReLU between its convolutions, since that project runs its layers in the order of their definition.

    Images are padded by zeros at the bottom and right to sides of a multiple of 32, which the network needs, and the
    features cropped.

    Args:
        name: "vainf:hrnetv2_32" or "vainf:hrnetv2_48", with the channels of the finest resolution.
        output_stride: 4.
        settings: see `OwnRates`.
    Source: arXiv 1908.07919 section 3.
    """

    strides = (4,)

    def __init__(self, name: str, output_stride: int = 4, *, in_channels: int = 3, **settings: Any) -> None:
        super().__init__(name, output_stride, in_channels=in_channels, **settings)
        width = int(name.rpartition("_")[2])
        self.net: Any = timm.create_model(
            f"hrnet_w{width}", features_only=True, feature_location="", in_chans=in_channels
        )
        self.channels, self.reductions = (256, 15 * width), (4, 4)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> two features at stride 4."""
        net, (height, width) = self.net, image.shape[-2:]
        x = F.pad(image, (0, -width % 32, 0, -height % 32))
        x = net.act2(net.bn2(net.conv2(net.bn1(net.conv1(x)))))
        fine: Tensor = net.layer1(x)
        maps: list[Tensor] = net.stage2([branch(fine) for branch in net.transition1])
        for transition, stage in ((net.transition2, net.stage3), (net.transition3, net.stage4)):
            maps = stage([*maps, transition[-1](maps[-1])])
        joined = torch.cat([resize(each, maps[0].shape[-2:]) for each in maps], dim=1)
        size = -(-height // 4), -(-width // 4)
        return [each[..., : size[0], : size[1]] for each in (fine, joined)]
