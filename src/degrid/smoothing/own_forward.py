"""What a convolution with a forward of its own computes, found by trying it: padding, weight and bias.

Libraries derive many classes from nn.Conv2d: TensorFlow's padding, standardised or quantised weights, and so on. Their
forward ends in a call of the convolution function, which shows everything, whatever the class is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from degrid.contracts import CONVOLUTIONS, unchanged
from degrid.lookup import in_a_line

_ARGUMENTS = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
"""The arguments of a convolution, in their order, with their defaults."""
# Two maps of unlike sides, [h,w], so that padding that depends on the size is noticed.
_SIDES = ((5, 4, 3), (2, 3, 4))


@dataclass(frozen=True)
class OwnConvolution:
    """One convolution of a padded map.

    same: it keeps the size, with stride 1 and zeros outside, whatever the size.
    weight, bias: what it convolves with; the layer's own, or computed.
    stored: these are the layer's own, in training mode, too.
    """

    same: bool
    weight: Tensor
    bias: Tensor | None
    stored: bool


def tried(conv: Any, forward: Callable[[Tensor], Tensor]) -> OwnConvolution | str:
    """What a layer's forward computes, without gradients and in evaluation mode; or why that is not one convolution.

    Args:
        conv: a layer of one of PyTorch's classes of convolutions, which is as before afterwards.
        forward: its forward pass, without hooks.
    """
    found = [_in_mode(conv, forward, sides[: len(conv.kernel_size)], False) for sides in _SIDES]
    for each in found:
        if isinstance(each, str):
            return each
    first, second = found
    assert isinstance(first, OwnConvolution)
    assert isinstance(second, OwnConvolution)
    # Some drop or add something only in training.
    training = _in_mode(conv, forward, _SIDES[0][: len(conv.kernel_size)], True)
    stored = first.stored and isinstance(training, OwnConvolution) and training.stored and training.same == first.same
    return OwnConvolution(first.same and second.same, first.weight, first.bias, stored)


def _in_mode(
    conv: Any, forward: Callable[[Tensor], Tensor], sides: Sequence[int], training: bool
) -> OwnConvolution | str:
    try:
        with unchanged(conv), torch.no_grad():
            for module in conv.modules():
                module.training = training
            return _once(conv, forward, sides)
    except Exception as error:  # a forward may raise anything
        return f"cannot be tried ({in_a_line(error)})"


def _once(conv: Any, forward: Callable[[Tensor], Tensor], sides: Sequence[int]) -> OwnConvolution | str:
    weight, rates = next(conv.parameters()), list(conv.dilation)
    x = torch.randn(1, conv.in_channels, *sides).to(weight.device, weight.dtype)
    with _Watch() as watch:
        result = forward(x)
    if len(watch.calls) != 1 or result is not watch.calls[0][1]:
        return "is more than one convolution"
    call, _ = watch.calls[0]
    again = CONVOLUTIONS[len(sides)](*call.values())
    if again.is_meta:
        return "cannot be tried without data: build the network on a device first"
    if not torch.equal(result, again):
        return "is more than one convolution"
    if per_axis(call["dilation"], sides) != rates or call["weight"].shape[2:] != conv.kernel_size:
        return "has another rate or kernel than it says"
    added = [now - before for now, before in zip(call["input"].shape[2:], sides, strict=True)]
    padded = F.pad(x, [rim for each in reversed(added) for rim in (each // 2, each - each // 2)])
    if not torch.equal(call["input"], padded):
        return "convolves something else than its padded input"
    same = _keeps_size(conv, added, call) and set(per_axis(call["stride"], sides)) == {1}
    stored = call["weight"] is conv.weight and call["bias"] is conv.bias
    return OwnConvolution(same, call["weight"], call["bias"], stored)


def _keeps_size(conv: Any, added: Sequence[int], call: Mapping[str, Any]) -> bool:
    """Whether what a forward added along each axis, and its convolution on both sides of each, is "same" padding."""
    total = [rate * (size - 1) for rate, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    padding = 0 if call["padding"] == "valid" else call["padding"]
    inner = [each // 2 for each in total] if padding == "same" else per_axis(padding, total)
    whole = [outer + 2 * each for outer, each in zip(added, inner, strict=True)]
    return whole == total and all(each % 2 == 0 for each in [*total, *added])


def per_axis(value: Any, axes: Sequence[int]) -> list[int]:
    """One number per axis."""
    return [value] * len(axes) if isinstance(value, int) else list(value)


_NAMES = ("kernel_size", "stride", "padding", "padding_mode", "dilation")


def geometry_of(layer: Any) -> dict[str, Any]:
    """What a layer says of its kernel, steps, padding and rate, and which sides its weight has."""
    found = {name: _as_tuple(getattr(layer, name, None), layer) for name in _NAMES}
    weight = layer._parameters.get("weight")
    if weight is not None and not is_lazy(weight):
        found["sides of the weight"] = tuple(weight.shape[2:])
    return found


def _as_tuple(value: Any, layer: Any) -> Any:
    """One number per axis as a tuple, which may also be given as a list, or as one number for all."""
    if isinstance(value, int):
        return (value,) * len(per_axis(layer.kernel_size, (0, 0)))
    return tuple(value) if isinstance(value, list) else value


def change_of(layer: Any, before: Mapping[str, Any], whatever: Sequence[str] = ()) -> str:
    """What is no longer as it was, but for these names; "" where nothing is."""
    now = geometry_of(layer)
    if now == before:
        return ""
    both = now.keys() & before.keys() - set(whatever)  # a weight that is computed by now has no sides
    found = ((name, was, now[name]) for name, was in before.items() if name in both)
    return ", ".join(f"{name} {was}, then {given}" for name, was, given in found if was != given)


class _Watch(TorchFunctionMode):
    """Notes every call of a convolution: its arguments and result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        call = called_convolution(func, args, kwargs)
        if call is not None:
            self.calls.append((call, result))
        return result


def called_convolution(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The arguments of a call of a convolution by name; None for a call of anything else."""
    if func not in CONVOLUTIONS.values():
        return None
    given = dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs or {})
    return {name: given.get(name, default) for name, default in _ARGUMENTS.items()}
