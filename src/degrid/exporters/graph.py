"""A network made ready for export: layers folded or in a form that tracers accept, class ids at the image's size."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.acceleration.fold import Folding, fold_batch_norm
from degrid.contracts import (
    DressedConv,
    MultiScaleNetwork,
    WithPlainForm,
    bands_of,
    convention_of,
    copied,
    declared,
    in_evaluation_mode,
    logits_of,
)
from degrid.exporters.exporter import quiet
from degrid.exporters.facts import FIXED, ImageInput
from degrid.lookup import in_a_line, unknown
from degrid.resize import resize, scaled_size
from degrid.types import UserError

OUTPUTS = ("ids", "logits")
# The sizes of multi-scale input are checked for every side of an image up to this one.
_LARGEST_SIDE = 16384
# The traced size: two images, so that the batch is not fixed to one, of sides that differ and are multiples of no
# stride and no rate, so that a tracer which distinguishes cases follows the general one.
TRACED = (2, 3, 97, 161)


class ExportGraph(nn.Module):
    """A network in evaluation mode, its batch norms folded and its smoothing fixed.

    Args:
        model: from RGB images [N,3,H,W] (0-255) to logits [N,C,h,w], on the CPU; stays as it is. Of a network that does
            not declare its classes see `logits_of`; images are floats to one that refuses bytes.
        output: "ids": class ids at the image's size; "logits": as the model gives them.
    Raises:
        UserError: an unknown output, or a scale that is no simple fraction.
    """

    def __init__(self, model: nn.Module, output: str = "ids") -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise unknown("output", output, OUTPUTS)
        self._own = declared(model) is None
        folding = _folding(model)
        self.network = folding.model
        self._given = _given(self.network) if self._own else _as_it_is
        self.fixed = to_plain_layers(self.network)
        self.folded = len(folding.pairs)
        self.output, self.resize = output, convention_of(model)
        scales = model.scales if isinstance(model, MultiScaleNetwork) else ()
        self.fractions = tuple(_fraction(scale, self.resize) for scale in scales)
        for parameter in self.network.parameters():
            if parameter.is_leaf:  # TorchScript's may be missing
                parameter.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """RGB [N,3,H,W], 0-255 -> ids [N,H,W], or logits, float32 [N,C,h,w].

        Ids are uint8 for pixels of uint8, and int64, as argmax gives them, for those of float32: runtimes that ask for
        float32 know no uint8.
        """
        logits = self._multi_scale(image) if self.fractions else self.network(self._given(image))
        if self._own:
            logits = logits_of(self.network, logits)
        if self.output == "logits":
            return cast(Tensor, logits)
        scores = resize(logits, image.shape[-2:], self.resize)
        # Runtimes are faster with the classes last: together 10 ms rather than 16 for 21 classes on 513x513.
        ids = scores.permute(0, 2, 3, 1).argmax(3)
        return ids if image.is_floating_point() else ids.to(torch.uint8)

    def _multi_scale(self, image: Tensor) -> Tensor:
        """The network's output, with integer arithmetic for the sizes: tracers turn int(0.75 * H) into a constant."""
        network = cast(MultiScaleNetwork, self.network)
        height, width = image.shape[-2:]
        sizes = [(_scaled(height, each, self.resize), _scaled(width, each, self.resize)) for each in self.fractions]
        return network.fused(network.scale_logits(image, sizes))


def _folding(model: nn.Module) -> Folding:
    """A copy with its batch norms folded; unchanged if it does not accept the usual example image."""
    try:
        return fold_batch_norm(model)
    except Exception:  # a user's network may raise anything; if it always fails, tracing it says why
        return Folding(in_evaluation_mode(copied(model)), (), ())


def _given(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Prepares images for a user's network: bytes, floats if it refuses bytes, copies if it changes them."""
    pixels = example_image((1, bands_of(network).count, *TRACED[2:]))
    for image, given in ((pixels, _as_it_is), (pixels.float(), Tensor.float)):
        try:
            with torch.no_grad():
                network(image)
        except Exception:  # a user's network may raise anything
            continue
        if image._version == 0:
            return given
        return _copied_floats if image.is_floating_point() else Tensor.clone
    return _as_it_is


def _as_it_is(image: Tensor) -> Tensor:
    return image


def _copied_floats(image: Tensor) -> Tensor:
    return image.to(torch.float32, copy=True)


def _scaled(side: int, fraction: Fraction, convention: str) -> int:
    """`degrid.resize.scaled_size` for one side, but without its lower limit of 1, which only tiny images need."""
    return side * fraction.numerator // fraction.denominator + (1 if convention == "align_corners" else 0)


def _fraction(scale: float, convention: str) -> Fraction:
    """A scale as a fraction that gives the same sizes in integer arithmetic."""
    fraction = Fraction(scale).limit_denominator(1000)
    for side in range(-(-fraction.denominator // fraction.numerator), _LARGEST_SIDE):
        if _scaled(side, fraction, convention) != scaled_size((side, side), scale, convention)[0]:
            raise UserError(
                f"the scale {scale} of this multi-scale network cannot be exported: its sizes are not those of a "
                "fraction; expected one like 0.75 or 0.5"
            )
    return fraction


def example_image(shape: tuple[int, ...], input_type: str = "uint8", seed: int = 0) -> Tensor:
    """Pixels [N,C,H,W] with coarse and fine structure, 0-255; equal for equal arguments."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = shape
    coarse = torch.rand(count, channels, 5, 7, generator=generator) * 200
    coarse = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    pixels = (coarse + 55 * torch.rand(count, channels, height, width, generator=generator)).round().to(torch.uint8)
    return pixels if input_type == "uint8" else pixels.float()


@dataclass(frozen=True)
class Source:
    """A network that is ready to be written: the module, and images to trace it with, of the type that the file takes.

    takes: which images the file takes.
    """

    graph: ExportGraph
    example: Tensor
    takes: ImageInput

    @classmethod
    def of(cls, model: nn.Module, output: str, takes: ImageInput) -> Source:
        """The source that a network gives; see `ExportGraph`.

        Raises:
            UserError: an unknown output, or a scale that is no simple fraction.
        """
        graph = ExportGraph(model, output).eval()
        shape = takes.shape((TRACED[0], bands_of(model).count, *TRACED[2:]))
        return cls(graph, example_image(shape, takes.type), takes)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The traced network; a UserError where it cannot be traced."""
        free = ([0] if self.takes.fixed_batch is None else []) + ([2, 3] if self.takes.size is None else [])
        shapes = {"image": dict.fromkeys(free, torch.export.Dim.DYNAMIC)} if free else None
        try:
            with torch.no_grad(), quiet(), traceable_padding():
                return torch.export.export(self.graph, (self.example,), dynamic_shapes=shapes, strict=False)
        except UserError:  # of a layer that cannot be traced as it is
            raise
        except Exception as error:  # the tracer has exceptions of many kinds
            raise UserError(
                f"this network cannot be exported: tracing it failed ({in_a_line(error)})"
                f"{'; ' + FIXED if free else ''}; its forward must use tensor operations only"
            ) from error


# Where timm's layers with TensorFlow's "SAME" padding look up the function that pads.
_TIMM_PADDING = ("timm.layers.conv2d_same", "timm.layers.pool2d_same", "timm.layers.std_conv")


def to_plain_layers(model: nn.Module) -> int:
    """Put plain layers in the place of every part that knows such a form, in place; see `WithPlainForm`.

    A part that has no such form stays as it is, and must be traceable. Outputs are the same up to rounding.

    Returns:
        How many smoothed convolutions have fixed filters now.
    """
    smoothed = 0
    for name, module in reversed(list(model.named_modules())):  # parts before the modules that hold them
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
