"""MLearing/Pytorch-DeepLab-v3-plus, from which jfzhang95's code comes: DeepLab v3+."""

from __future__ import annotations

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.types import ConversionError

_PLACES = {
    **rules.aspp_places("aspp{}", (".atrous_convolution", ".bn")),
    "global_avg_pool.1": "head.aspp.branches.4.project.0",
    "global_avg_pool.2": "head.aspp.branches.4.project.1",
    "conv1": "head.aspp.project.0",
    "bn1": "head.aspp.project.1",
    "conv2": "head.reduce.0",
    "bn2": "head.reduce.1",
    "last_conv.0": "head.refine.0.0",
    "last_conv.1": "head.refine.0.1",
    "last_conv.3": "head.refine.1.0",
    "last_conv.4": "head.refine.1.1",
    "last_conv.6": "head.classifier",
}
_CITYSCAPES = {"mean": (72.39, 82.91, 73.16), "std": (255.0, 255.0, 255.0), "bgr": False}


class MLearing(System):
    """ResNet-101 at output stride 16."""

    title = "MLearing/Pytorch-DeepLab-v3-plus: DeepLab v3+"
    marks = (r"aspp1\.atrous_convolution\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Its Xception is refused."""
        if "image_pool.1.weight" in tensors or "conv1.weight" not in tensors:
            raise ConversionError(
                "doiken23/DeepLab_pytorch, and others with these names, pool the maximum over the image and have no "
                "ReLU in their heads, which degrid does not have; of MLearing's networks it can convert ResNet-101"
            )
        if "resnet_features.conv1.weight" not in tensors:
            raise ConversionError("of MLearing/Pytorch-DeepLab-v3-plus degrid can convert models on ResNet-101 only")
        depth, _ = rules.bottleneck_resnet(tensors, r"resnet_features\.layer([1-4])\.(\d+)\.")
        settings = {
            "network": "deeplabv3plus",
            "encoder": f"timm:resnet{depth}",
            "output_stride": 16,
            "uniform_rates": True,
            "multi_grid": (1, 2, 4),
            "rates": (6, 12, 18),
            **rules.ALIGNED,
            **(_CITYSCAPES if len(tensors["last_conv.6.weight"]) == 19 else rules.IMAGENET_INPUT),
        }
        plan = Plan(
            settings,
            assumed=("output_stride", "mean", "std"),
            otherwise="as in the project, which has another mean for the 19 classes of Cityscapes; --set changes them",
        )
        return plan.fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    if name.startswith("resnet_features."):
        return {name.replace("resnet_features.", "encoder.net.", 1): value}
    return rules.placed(_PLACES, name, value)
