"""GluonCV: DeepLab v3 and v3+ in MXNet."""

from __future__ import annotations

import re

from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.checkpoints.systems.tramac import Tramac

_TRAMAC = Tramac()
_LEAVES = {"gamma": "weight", "beta": "bias"}
# What Tramac, who ported these networks to PyTorch, calls the layers of v3+ that v3 does not have.
_PLUS = {
    "head.c1_block.0": "head.c1_block.conv",
    "head.c1_block.1": "head.c1_block.bn",
    "head.block.0": "head.block.0.conv",
    "head.block.1": "head.block.0.bn",
    "head.block.4": "head.block.2.conv",
    "head.block.5": "head.block.2.bn",
    "head.block.8": "head.block.4",
}


class GluonCV(System):
    """ResNets with a deep stem for v3, Xception for v3+, at output stride 8."""

    title = "GluonCV: DeepLab v3, v3+"
    marks = (r"head\.aspp\.concurent\.4\.gap\.1\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        plus = "head.c1_block.0.weight" in tensors
        names = {_tramac_name(name, plus): name for name in tensors}
        plan = _TRAMAC.plan({ours: tensors[name] for ours, name in names.items()})
        if plus:
            plan.model["encoder"] = "gluoncv:xception"
        return plan.called(names)


def _tramac_name(name: str, plus: bool) -> str:
    layer, _, leaf = name.rpartition(".")
    if match := re.fullmatch(r"head\.aspp\.concurent\.(\d)(\..+)?", layer):
        inner = match[2] or ""
        layer = f"head.aspp.b{match[1]}{'.block' if match[1] in '123' else ''}{inner}"
    elif plus:
        layer = _PLUS.get(layer, layer)
    if not layer.startswith(("head.", "auxlayer.")):
        layer = f"pretrained.{layer}"
    return f"{layer}.{_LEAVES.get(leaf, leaf)}"
