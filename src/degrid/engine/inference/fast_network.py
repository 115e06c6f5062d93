"""A network made ready for inference: the same results, up to rounding, in a fraction of the time."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import cast

import torch
from torch import Tensor, nn

from degrid.acceleration.fold import folded
from degrid.acceleration.taps import TapConv2d, use_taps
from degrid.acceleration.winograd_layer import use_winograd
from degrid.contracts import ExportedNetwork
from degrid.engine.device import autocast, resolved_precision
from degrid.kernels.upsample_argmax import upsample_argmax

CHECKS = 3
"""Images on which bfloat16 is compared with float32 if the precision is "auto"."""
AGREEMENT = 0.995
"""Fraction of an image's pixels that must get the same class in bfloat16 as in float32."""
_CORNER = 128
"""Side of the part of an image that is used to find which layers can be folded, pixels."""


class FastNetwork:
    """A copy of a network for inference; the network itself stays as it is.

    Batch norms are folded into convolutions, tensors are channels_last, and the convolutions run in bfloat16, or in
    float32 by Winograd's algorithm where that is faster.

    Args:
        model: from RGB images [N,3,H,W] (0-255) to logits [N,C,h,w], on its device.
        precision: "float32", "bfloat16" or "auto": bfloat16 where the hardware multiplies in it and, on each of the
            first images, at least 99.5 % of the pixels get the class that float32 gives; else float32.
        convention: of enlarging the logits, for that comparison.
        compiled: also compile it (torch.compile): some 20 seconds at the first image of each size.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, precision: str, convention: str, compiled: bool = False
    ) -> None:
        self.device, self.convention, self.compiled = device, convention, compiled
        self.precision = resolved_precision(device, precision)
        """The precision it computes in now: "bfloat16" or "float32"."""
        self.agreement: float | None = None
        """The lowest fraction of equal pixels, in bfloat16 and float32, over the images compared so far."""
        self._checks = CHECKS if precision == "auto" and self.precision == "bfloat16" else 0
        self._model = model
        self._as_it_is = isinstance(model, ExportedNetwork)
        self._networks: dict[str, nn.Module] = {}

    def __str__(self) -> str:
        if self._as_it_is:
            return "the exported model's own precision"
        if self.agreement is None:
            return self.precision
        if self.agreement == 1:
            return "bfloat16 (all pixels of the first images get the same class as in float32)"
        same = f"{min(100 * self.agreement, 99.99):.2f} % of the pixels of the first images"
        if self.precision == "float32":
            return f"float32 (bfloat16 gave only {same} the same class; --precision bfloat16 takes it nevertheless)"
        return f"bfloat16 (at least {same} get the same class as in float32)"

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits [N,C,h,w], float32, of RGB images [N,3,H,W], 0-255."""
        if self._as_it_is:
            exported: Tensor = self._model(batch)
            return exported
        logits = self._run(self.precision, batch)
        if self._checks:
            self._checks -= 1
            exact = self._run("float32", batch)
            size = tuple(batch.shape[-2:])
            same = upsample_argmax(logits, size, self.convention) == upsample_argmax(exact, size, self.convention)
            agreement = same.float().mean().item()
            self.agreement = min(agreement, self.agreement or 1.0)
            if agreement < AGREEMENT:
                self.precision, self._checks = "float32", 0
                del self._networks["bfloat16"]
                return exact
            if not self._checks:
                self._networks.pop("float32", None)
        return logits

    def _run(self, precision: str, batch: Tensor) -> Tensor:
        if precision not in self._networks:
            self._networks[precision] = self._prepared(precision, batch)
        with autocast(self.device, precision):
            logits: Tensor = self._networks[precision](batch)
        return logits.float()

    def _prepared(self, precision: str, batch: Tensor) -> nn.Module:
        network = _folded(self._model, batch)
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        if self.device.type == "cpu":
            use_taps(network, kind)
            use_winograd(network)
        for module in network.modules():
            # Autocast then finds the weights in its type already, and casts the first layer's input only.
            if kind == torch.bfloat16 and isinstance(module, nn.Conv2d | nn.Linear | TapConv2d):
                module.to(kind)
        network.to(memory_format=torch.channels_last)
        return cast(nn.Module, torch.compile(network)) if self.compiled else network


def _folded(model: nn.Module, batch: Tensor) -> nn.Module:
    """A copy with batch norm folded, found on a corner of the image.

    Finding out which layer feeds which keeps every feature map, which would take too much memory for a whole image.
    """
    corner = batch[:1, :, :_CORNER, :_CORNER]
    if corner.shape == batch.shape:
        return folded(model, batch)
    try:
        return folded(model, corner)
    except Exception:  # perhaps the network takes no other size than this image's; if not, the next line says why
        return folded(model, batch)


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that were freed, instead of asking the system for them anew each time.

    On Linux with glibc this makes large networks on the CPU 5 to 25 % faster; the process keeps the memory of its
    largest image. It acts on the whole process, so it is up to a program to call it; the command line does. Returns
    whether it worked.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    return all(mallopt(*pair) for pair in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)))
