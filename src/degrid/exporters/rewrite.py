"""Parts of a network in the form that tracers and runtimes take, with the same results up to rounding."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.contracts import DressedConv, WithPlainForm

# Where timm's layers with TensorFlow's "SAME" padding look up the function that pads.
_TIMM_PADDING = ("timm.layers.conv2d_same", "timm.layers.pool2d_same", "timm.layers.std_conv")


def to_plain_layers(model: nn.Module) -> int:
    """Put plain layers in the place of every part that knows such a form, in place; see `WithPlainForm`.

    A part that has no such form stays as it is, and must be traceable. Outputs are the same up to rounding.

    Returns:
        How many smoothed convolutions have fixed filters now.
    """
    smoothed = 0
    for name, module in reversed(list(model.named_modules())):  # parts before what holds them
        with torch.no_grad():
            layer = module.as_plain_layers() if isinstance(module, WithPlainForm) else None
        if layer is not None and name:
            parent, _, leaf = name.rpartition(".")
            model.get_submodule(parent).add_module(leaf, layer)
            smoothed += isinstance(module, DressedConv)
    return smoothed


@contextmanager
def traceable_padding() -> Iterator[None]:
    """Inside, timm's "SAME" padding is worked out without `ceil`, which torch.export cannot store.

    At stride 1 it is constant, so that files of a free size hold no arithmetic for it.
    """
    modules: list[Any] = [importlib.import_module(name) for name in _TIMM_PADDING if name in sys.modules]
    before = [module.pad_same for module in modules]
    try:
        for module in modules:
            module.pad_same = pad_same
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            module.pad_same = function


def pad_same(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1), value: float = 0
) -> Tensor:
    """Pad [N,C,H,W] so that a layer of this stride gives ceil(H / stride) rows, with the odd pixel at the end.

    With K = rate (kernel - 1), these rows read (ceil(H / s) - 1) s + K + 1 padded ones. The padding is written as this
    number less H, so that a tracer finds H gone and ceil(H / s) rows: its terms would grow with every layer otherwise.
    """
    pads: list[int] = []
    for side, kernel, step, rate in zip(x.shape[-1:1:-1], kernel_size[::-1], stride[::-1], dilation[::-1], strict=True):
        whole = rate * (kernel - 1)
        if step == 1:
            pads += [whole // 2, whole - whole // 2]
        elif whole >= step - 1:
            padded = (side - 1) // step * step + whole + 1
            before = (padded - side) // 2
            pads += [before, padded - side - before]
        else:  # the kernel is smaller than the step, so that there may be nothing to pad
            pad = max(whole - (side - 1) % step, 0) if whole else 0
            pads += [pad // 2, pad - pad // 2]
    return F.pad(x, pads, value=value)
