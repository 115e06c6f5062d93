"""Convolutions with a smoothing operator: subclasses of the class that the layer had, which keep its parameters."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from degrid.contracts import (
    CONVOLUTIONS,
    DressedConv,
    ExchangeableConv2d,
    MadeClass,
    Rate,
    members_of_made,
    same_geometry,
)
from degrid.smoothing.operators import Operator
from degrid.smoothing.own_forward import OwnConvolution, change_of, geometry_of, tried
from degrid.smoothing.plain_layers import Inside, constant_conv, without_rim
from degrid.types import UserError


class SmoothedLayer(MadeClass, DressedConv):
    """A dilated convolution with a smoothing operator; otherwise the layer that it was.

    Only `smooth_dilated_convs` makes them. Parameters keep their names; those of the operator begin with `smoothing.`.

    Attributes:
        rim: how wide a rim of zeros the network puts around the map before this layer, along each axis; None: none.
        fitted: the kernel, steps, padding and rate that it had when the operator was made for them.
    """

    smoothing: Operator
    rim: tuple[int, ...] | None = None
    fitted: Mapping[str, Any] | None = None  # networks pickled by earlier versions have none
    _free: ClassVar[Sequence[str]] = ()

    def check_fit(self) -> None:
        """Make sure that the operator still fits.

        Raises:
            UserError: the kernel, steps, padding or rate were changed since.
        """
        if self.fitted is None or torch._C._get_tracing_state() or torch.compiler.is_compiling():
            return
        change = change_of(self, self.fitted, self._free)
        if change:
            raise UserError(
                f"a convolution was changed after it was smoothed by {self.operator_name} ({change}); change it "
                "before, or leave it out (where=...) if the network changes it as it runs"
            )

    @property
    def operator_name(self) -> str:
        """The name of the smoothing operator."""
        return name_of(self.smoothing)

    def operator_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the smoothing operator."""
        yield from self.smoothing.parameters()

    def as_plain_layers(self) -> nn.Module | None:
        """See `degrid.smoothing.operators.Operator.as_plain_layers`."""
        made = self.smoothing.as_plain_layers(cast(Any, self)) if isinstance(self.smoothing, Operator) else None
        return made if made is None or self.rim is None else nn.Sequential(Inside(self.rim), made)

    def __prepare_scriptable__(self) -> Any:
        raise UserError(
            "torch.jit.script cannot compile smoothed convolutions; use torch.jit.trace, which takes any size, or "
            "torch.export"
        )


class _Direct(SmoothedLayer):
    """A layer that computes only `convolve`, as nn.ConvNd does, whatever forward its class had."""

    weight: Tensor
    bias: Tensor | None
    convolve: Any

    def forward(self, input: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]; or without N. One or three axes instead of H and W if the layer has them."""
        x = input  # called so by nn.Conv2d
        if x.is_quantized:
            return _requantised(self.forward, x)
        axes = self.weight.ndim - 2
        if x.ndim == axes + 1:
            return self.forward(x[None])[0]
        self.check_fit()
        if self.rim is not None:
            x = without_rim(x, self.rim)
        y: Tensor = self.smoothing(x, self.convolve)
        return y if self.bias is None else y + self.bias.to(y.dtype).reshape(-1, *[1] * axes)


class SmoothedConv2d(_Direct, ExchangeableConv2d):
    """A smoothed convolution of two axes, whose own convolution can be exchanged for a faster one."""


class _Several(_Direct):
    """One axis or three."""

    def convolve(self, x: Tensor, rate: Rate, margin: int = 0) -> Tensor:
        """As `ExchangeableConv2d.convolve`."""
        return CONVOLUTIONS[self.weight.ndim - 2](x, self.weight, None, *same_geometry(self, rate, margin))


class SmoothedConv1d(_Several, nn.Conv1d):
    """A smoothed convolution of one axis."""


class SmoothedConv3d(_Several, nn.Conv3d):
    """A smoothed convolution of three axes."""


class _Indirect(SmoothedLayer):
    """A layer whose own forward computes the convolution: its weights are computed, or its steps are wider than 1.

    The operator convolves at the layer's own rate only.
    """

    _free = ("padding",)  # some layers set it for every image

    def forward(self, input: Tensor, *more: Any, **named: Any) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]; or without N. What else is given goes to the layer."""
        x = input
        if x.is_quantized:
            return _requantised(self.forward, x, *more, **named)
        own: Any = super().forward
        layer: Any = self
        axes = len(layer.kernel_size)
        if x.ndim == axes + 1:
            return self.forward(x[None], *more, **named)[0]
        self.check_fit()
        # Operators that mix outputs want them without bias; for filters it makes no difference.
        bias = None
        if not self.smoothing.keeps_constants and layer.bias is not None:
            bias = layer.bias.reshape(-1, *[1] * axes)

        def convolve(x: Tensor, rate: Rate, margin: int = 0) -> Tensor:
            y: Tensor = own(nn.functional.pad(x, [margin] * 2 * axes) if margin else x, *more, **named)
            return y if bias is None else y - bias.to(y.dtype)

        y: Tensor = self.smoothing(x, convolve)
        return y if bias is None else y + bias.to(y.dtype)

    def without_operator(self) -> nn.Module:
        """The layer alone, as constants where its weights do not depend on the input."""
        found = tried_smoothed(self)
        if isinstance(found, OwnConvolution) and found.same:
            layer: Any = self
            return cast(nn.Module, constant_conv(found.weight, found.bias, *same_geometry(self, layer.dilation)))
        twin = copy.copy(self)
        twin.__class__ = cast(Any, class_below(type(self)))
        twin._parameters = dict(self._parameters)
        twin._modules = {name: module for name, module in self._modules.items() if name != "smoothing"}
        return twin


def tried_smoothed(layer: Any) -> OwnConvolution | str:
    """What the forward of a layer's class computes, before smoothing."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return "takes more than the map"
    below = class_below(type(layer)) if isinstance(layer, SmoothedLayer) else type(layer)
    return tried(layer, functools.partial(below.forward, layer))


_DIRECT: dict[type[nn.Module], type[SmoothedLayer]] = {
    nn.Conv1d: SmoothedConv1d,
    nn.Conv2d: SmoothedConv2d,
    nn.Conv3d: SmoothedConv3d,
}


def dress(layer: nn.Module, operator: Operator, direct: bool, rim: tuple[int, ...] | None) -> None:
    """Give a layer its operator, in place: the object stays the same, with its hooks and every reference to it.

    Args:
        direct: whether it computes what nn.ConvNd computes with its weight and bias; otherwise its forward is used.
        rim: see `SmoothedLayer`.
    """
    kind = type(layer)
    if is_parametrized(layer):
        # Weights that are computed are properties of a class of the layer's own, made by PyTorch, which must remain the
        # outermost, so that they can be taken off again.
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        smoothed = _smoothed(cast(Any, kind.__bases__[0]), direct)
        layer.__class__ = type(f"Parametrized{smoothed.__name__}", (smoothed,), own)
    else:
        layer.__class__ = _smoothed(cast(Any, kind), direct)
    dressed: Any = layer
    dressed.__dict__["__module__"] = nn.Conv2d.__module__  # torch.fx does not look inside PyTorch's own layers
    dressed.smoothing = operator
    dressed.fitted = geometry_of(layer)
    if rim is not None:
        dressed.rim = rim


@functools.cache
def _smoothed(kind: type[nn.Module], direct: bool) -> Any:
    """The smoothed subclass of a class of convolution."""
    if direct and kind in _DIRECT:
        return _DIRECT[kind]
    outer = next(mine for plain, mine in _DIRECT.items() if issubclass(kind, plain)) if direct else _Indirect
    members = {**members_of_made(_smoothed, kind, direct), "__doc__": kind.__doc__}
    return type(f"Smoothed{kind.__name__}", (outer, kind), members)


def class_below(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that a smoothed layer had before."""
    for each in kind.__mro__:
        made_by = vars(each).get("made_by", (None,))
        if made_by[0] is _smoothed:
            below: type[nn.Module] = made_by[1]
            return below
    return next(each for each in kind.__mro__ if each in _DIRECT)


def _requantised(forward: Callable[..., Tensor], x: Tensor, *more: Any, **named: Any) -> Tensor:
    """The layer's output for a quantised map, as in torch.ao.quantization; its range is that of these values."""
    return torch.quantize_per_tensor_dynamic(forward(x.dequantize(), *more, **named), x.dtype, False)


def name_of(operator: nn.Module) -> str:
    """The operator's name, or its class where it is not an `Operator`."""
    return operator.name if isinstance(operator, Operator) else type(operator).__name__
