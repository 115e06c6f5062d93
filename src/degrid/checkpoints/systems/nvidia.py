"""NVIDIA/semantic-segmentation, which is recognised so that it can be refused by its name."""

from __future__ import annotations

from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.types import ConversionError


class Nvidia(System):
    """DeepV3Plus and DeepWV3Plus: their decoder joins a feature at stride 2, and their ASPP has no projection."""

    title = "NVIDIA/semantic-segmentation: DeepV3Plus (recognised, not converted)"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return "bot_fine.weight" if {"bot_fine.weight", "aspp.img_conv.0.weight"} <= tensors.keys() else None

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Always refused."""
        raise ConversionError(
            "this is DeepV3Plus of NVIDIA/semantic-segmentation; degrid has neither its decoder at stride 2 nor its "
            "encoders (WideResNet-38, SE-ResNeXt); run it with the code that it comes from"
        )
