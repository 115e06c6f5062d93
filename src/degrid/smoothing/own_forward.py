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
from torch.overrides import TorchFunctionMode

from degrid.contracts import CONVOLUTIONS

_ARGUMENTS = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
"""The arguments of a convolution, in their order, with their defaults."""
# Two maps of unlike sides, [h,w], so that padding that depends on the size is noticed.
_SIDES = ((5, 4, 3), (2, 3, 4))


@dataclass(frozen=True)
class OwnConvolution:
    """One convolution of a padded map.

    same: it keeps the size, with stride 1 and zeros outside, whatever the size.
    weight, bias: what it convolves with; the layer's own, or computed.
    """

    same: bool
    weight: Tensor
    bias: Tensor | None


def tried(conv: Any, forward: Callable[[Tensor], Tensor]) -> OwnConvolution | str:
    """What a layer's forward computes, without gradients and in evaluation mode; or why that is not one convolution.

    Args:
        conv: a layer of one of PyTorch's classes of convolutions, of which only the flag `training` changes meanwhile.
        forward: its forward pass, without hooks.
    """
    modes = [(module, module.training) for module in conv.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = [_once(conv, forward, sides[: len(conv.kernel_size)]) for sides in _SIDES]
    except Exception as error:  # a forward may fail in any way
        return f"cannot be tried ({type(error).__name__}: {str(error)[:80]})"
    finally:
        for module, training in modes:
            module.training = training
    for each in found:
        if isinstance(each, str):
            return each
    first, second = found
    assert isinstance(first, OwnConvolution)
    assert isinstance(second, OwnConvolution)
    return OwnConvolution(first.same and second.same, first.weight, first.bias)


def _once(conv: Any, forward: Callable[[Tensor], Tensor], sides: Sequence[int]) -> OwnConvolution | str:
    weight = next(conv.parameters())
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
    if per_axis(call["dilation"], sides) != list(conv.dilation) or call["weight"].shape[2:] != conv.kernel_size:
        return "has another rate or kernel than it says"
    added = [now - before for now, before in zip(call["input"].shape[2:], sides, strict=True)]
    padded = F.pad(x, [rim for each in reversed(added) for rim in (each // 2, each - each // 2)])
    if not torch.equal(call["input"], padded):
        return "convolves something else than its padded input"
    same = _keeps_size(conv, added, call) and set(per_axis(call["stride"], sides)) == {1}
    return OwnConvolution(same, call["weight"], call["bias"])


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
