"""Which convolutions lose most when they are computed in int8: those to leave in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from degrid.exporters.graph import ExportGraph

_LEVELS = 255


@dataclass(frozen=True)
class LayerLoss:
    """A convolution, and what int8 in it alone does.

    name: of the module in the network. loss: root mean square of the change of the logits, over that of the logits.
    """

    name: str
    loss: float

    def __str__(self) -> str:
        return f"{self.name} ({100 * self.loss:.2g} %)"


def by_loss(graph: ExportGraph, images: Sequence[Tensor]) -> list[LayerLoss]:
    """All convolutions, first the one whose rounding alone changes the logits most.

    Weights are rounded to 255 levels per output channel, and the input to 256 over its range, as the formats do it.
    Without the biases' correction, so that this shows which layer loses most, and not how much the file will lose.

    Args:
        graph: the network as it is exported; stays as it is.
        images: [N,C,H,W] each, 0-255: one or a few, each run once for every convolution.
    """
    with torch.no_grad():
        wanted = [graph.network(image) for image in images]
        scale = sum(float(logits.square().sum()) for logits in wanted) or 1.0
        found = []
        for name, module in graph.network.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            weight = module.weight.data
            hook = module.register_forward_pre_hook(_rounded_input)
            try:
                module.weight.data = _rounded_weight(weight)
                changes = (graph.network(image) - logits for image, logits in zip(images, wanted, strict=True))
                change = sum(float(each.square().sum()) for each in changes)
            finally:
                module.weight.data = weight
                hook.remove()
            found.append(LayerLoss(name, (change / scale) ** 0.5))
    return sorted(found, key=lambda layer: -layer.loss)


def _rounded_weight(weight: Tensor) -> Tensor:
    """[out,in,h,w] rounded to steps of 1/127 of the largest value of each output channel."""
    step = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30) / (_LEVELS // 2)
    return (weight / step).round() * step


def _rounded_input(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The input rounded to 256 levels over its range, which holds 0."""
    x, *others = given
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    step = ((high - low) / _LEVELS).clamp(min=1e-30)
    return ((x / step).round() * step, *others)
