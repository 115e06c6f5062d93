"""Which layers of a network are dilated, which of them can be smoothed, and what a run on an example shows of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from degrid.contracts import FoldingConv2d, Rate, has_own_forward, unchanged
from degrid.lookup import in_a_line, loaded
from degrid.smoothing.layers import SmoothedLayer, name_of, tried_smoothed
from degrid.smoothing.operators import GroupInteraction, Operator
from degrid.smoothing.own_forward import called_convolution, change_of, geometry_of, per_axis
from degrid.types import UserError

Where = Callable[[str, Any], bool]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# transformers' MobileNets: with the setting tf_padding, F.pad before the convolution, by as much as keeps the size.
_PADS_BY_SETTING = {
    f"transformers.models.mobilenet_{version}.modeling_mobilenet_{version}": f"MobileNet{version.upper()}ConvLayer"
    for version in ("v1", "v2")
}


@dataclass(frozen=True)
class Candidate:
    """A dilated convolution that can be smoothed.

    direct: whether it computes what nn.ConvNd computes with its weight and bias.
    size_keeping: with stride 1 and zeros outside.
    stored_bias: it adds its attribute `bias`, or nothing.
    rim: see `SmoothedLayer`.
    """

    name: str
    layer: Any
    direct: bool
    size_keeping: bool = True
    stored_bias: bool = True
    rim: tuple[int, ...] | None = None

    def unsuitable_for(self, operator: nn.Module) -> str | None:
        """Why an operator cannot smooth this layer; None if it can."""
        if self.direct or (isinstance(operator, Operator) and operator.keeps_constants):
            return None
        name, kind = name_of(operator), type(self.layer).__name__
        if not self.size_keeping:
            return f"stride {max(self.layer.stride)}: {name} is defined for outputs at stride 1 only"
        if self.stored_bias and isinstance(operator, GroupInteraction):
            return None
        return f"{kind} computes its weights itself, and {name} needs its convolution in another form"


def candidates(
    model: nn.Module, where: Where, padded_outside: bool, example: Tensor | None
) -> Iterator[tuple[str, Candidate | str]]:
    """Every dilated layer of a model by name: as one to smooth, or the reason why not; see `smooth_dilated_convs`."""
    rims = _rims(model)
    changing: dict[nn.Module, str] = {}
    if example is not None:
        run = ExampleRun(model, example)
        rims |= run.rims
        changing = run.changing
        for name, rates in dict.fromkeys(run.functions):
            yield name, f"a function, not a layer, convolves at rate {rate_text(shortest(rates))}"
    for name, module in model.named_modules():
        if module in changing:
            yield name, changing[module]
            continue
        rim = rims.get(module) or (_same(module) if padded_outside and isinstance(module, _CONVOLUTIONS) else None)
        found = _candidate(name, module, where, rim)
        if found is not None:
            yield name, found


def _candidate(name: str, module: Any, where: Where, rim: tuple[int, ...] | None) -> Candidate | str | None:
    """None for a layer that is not dilated, which needs no report."""
    compiled = isinstance(module, torch.jit.ScriptModule)
    reason = _reason_of_compiled(module) if compiled else _reason_to_skip(module)
    if reason is not None:
        return reason or None
    made = _conditional(name, module) if _is_conditional(module) else _plan(name, module, rim)
    if isinstance(made, str):
        return made
    return made if where(name, module) else f"rate {rate_text(shown_rate(module))} left out by where"


def _reason_to_skip(module: Any) -> str | None:
    """None for a dilated convolution, "" for what is not dilated, otherwise why it cannot be smoothed."""
    kind = type(module).__name__
    if isinstance(module, SmoothedLayer):
        return f"already smoothed by {module.operator_name}"
    if not _looks_dilated(module):
        return ""
    if not isinstance(module, nn.modules.conv._ConvNd) and not _is_conditional(module):
        return f"{kind} is none of PyTorch's convolutions"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return f"{kind} writes on a grid where others read from one: a filter before it would not help"
    if isinstance(module, FoldingConv2d):
        return "a frozen batch norm is folded into it: smooth the network before"
    if is_lazy(module.weight):
        return f"{kind} has no weight yet: run the network once before"
    if has_own_forward(module):
        return "a function stands in place of its class's forward"
    if max(module.kernel_size) == 1:
        return f"{_sides(module)} kernel: its rate has no effect"
    if max(rates_of(module)) == 1:
        return f"{_sides(module)} kernel: it is 1 wide along its dilated axis, so its rate has no effect"
    if any(size % 2 == 0 for size in module.kernel_size):
        return f"even kernel {_sides(module)}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding of {module.padding_mode}: filters and mixing are defined with zeros outside"
    return None


def _looks_dilated(module: nn.Module) -> bool:
    """Whether a layer has a rate: a convolution, a pooling, or one of another library that holds no convolution."""
    own = vars(module)
    given = own.get("dilation", own.get("dilation_rate", 1)), own.get("kernel_size")  # the second name is Keras's
    rate = given[0] if isinstance(given[0], tuple | list) else (given[0],)
    if given[1] is None or not all(isinstance(each, int) for each in rate) or max(rate, default=1) == 1:
        return False
    return not any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules() if part is not module)


def _reason_of_compiled(module: Any) -> str:
    """The same for TorchScript: of a convolution with a rate, or one that was traced, whose rate is not known."""
    dilated = module.original_name.startswith("Conv") and max(getattr(module, "dilation", (2,))) > 1
    return "compiled by TorchScript: smooth the network before" if dilated else ""


def _is_conditional(module: nn.Module) -> bool:
    """Whether it is timm's CondConv2d, which mixes its weights for each image."""
    return isinstance(module, loaded("timm.layers.cond_conv2d", "CondConv2d"))


def _conditional(name: str, module: Any) -> Candidate | str:
    same = not module.dynamic_padding and tuple(module.padding) == _same(module)
    if not same and max(module.stride) == 1:
        return f'{type(module).__name__} without zero "same" padding'
    return Candidate(name, module, False, size_keeping=max(module.stride) == 1, stored_bias=module.bias is None)


def _plan(name: str, conv: Any, rim: tuple[int, ...] | None) -> Candidate | str:
    """How a convolution is to be smoothed; or why it cannot be."""
    kind = next(plain for plain in _CONVOLUTIONS if isinstance(conv, plain))
    if type(conv).forward is kind.forward and type(conv)._conv_forward is kind._conv_forward:
        return _plain(name, conv, rim)
    found = tried_smoothed(conv)
    if isinstance(found, str):
        return f"{type(conv).__name__} has a forward of its own, which {found}"
    if found.same or max(conv.stride) > 1:
        return Candidate(name, conv, found.same and found.stored, found.same, found.bias is conv.bias)
    return f'{type(conv).__name__} has a forward of its own, whose padding is not zero "same" padding'


def _plain(name: str, conv: Any, rim: tuple[int, ...] | None) -> Candidate | str:
    """The same for layers that compute as nn.ConvNd does."""
    same = _same(conv)
    if max(conv.stride) > 1:
        padded = conv.padding != "valid" and max(conv.padding) > 0
        reason = f"stride {max(conv.stride)} without padding: a filter would mix zeros into the map's edge"
        return Candidate(name, conv, direct=False, size_keeping=False) if padded else reason
    if conv.padding == "same" or tuple(conv.padding) == same:
        return Candidate(name, conv, direct=True)
    if conv.padding != "valid" and max(conv.padding) > 0:
        return f'padding {tuple(conv.padding)} is not zero "same" padding {same}'
    if rim == same:
        return Candidate(name, conv, direct=True, rim=same)
    return "no padding: if the network pads the map itself before, with zeros, say padded_outside=True"


def _rims(model: nn.Module) -> dict[nn.Module, tuple[int, ...]]:
    """How far the network pads the map with zeros before each layer, as far as its modules say so."""
    rims: dict[nn.Module, tuple[int, ...]] = {}
    pads_by_setting = sum(itertools.starmap(loaded, _PADS_BY_SETTING.items()), ())
    for module in model.modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            layers = list(module.children())
            for before, layer in itertools.pairwise(layers):
                if isinstance(before, nn.modules.padding._ConstantPadNd) and before.value == 0:
                    left, right = before.padding[::2], before.padding[1::2]
                    rims[layer] = tuple(reversed(left)) if left == right else ()
        elif isinstance(module, pads_by_setting) and cast(Any, module).config.tf_padding:
            for layer in module.children():
                if isinstance(layer, nn.Conv2d) and max(layer.stride) == 1:
                    rims[layer] = _same(layer)
    return rims


def _same(conv: Any) -> tuple[int, ...]:
    """The padding with which it keeps the size."""
    return tuple(rate * (size // 2) for rate, size in zip(conv.dilation, conv.kernel_size, strict=True))


def rates_of(conv: Any) -> tuple[int, ...]:
    """The rate along each axis, 1 where the kernel is only 1 wide."""
    return tuple(rate if size > 1 else 1 for rate, size in zip(conv.dilation, conv.kernel_size, strict=True))


def shortest(rates: tuple[int, ...]) -> Rate:
    """One number for two equal axes."""
    return rates[0] if len(rates) == 2 and rates[0] == rates[1] else rates


def shown_rate(conv: Any) -> Rate:
    """The rate of the axes where the kernel is wider than 1, as one number where these agree."""
    rates = {rate for rate, size in zip(conv.dilation, conv.kernel_size, strict=True) if size > 1}
    return rates.pop() if len(rates) == 1 else rates_of(conv)


def rate_text(rate: Rate) -> str:
    """As a report names it: 2, or 1x2."""
    return str(rate) if isinstance(rate, int) else "x".join(map(str, rate))


def _sides(conv: Any) -> str:
    return "x".join(map(str, conv.kernel_size))


class ExampleRun(TorchFunctionMode):
    """One run of a network on an example, without gradients, in evaluation mode.

    Attributes:
        rims: by layer, how wide `F.pad` or a padding layer put zeros around its map along each axis, every time.
        functions: name of each module that convolves by a function, not by a layer, and at which rates.
        changing: layers that the network gives other rates, strides or padding than they have before the run, and what
            to say of each.

    Raises:
        UserError: the network cannot run on the example.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.rims: dict[nn.Module, tuple[int, ...]] = {}
        self.functions: list[tuple[str, tuple[int, ...]]] = []
        self.changing: dict[nn.Module, str] = {}
        self._padded: dict[int, tuple[Tensor, tuple[int, ...]]] = {}  # the maps are kept, so that no id is used twice
        self._inside: list[tuple[str, nn.Module]] = []
        hooks = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it accepts no hooks, and shows no calls
            hooks.append(module.register_forward_pre_hook(lambda *_, it=(name, module): self._inside.append(it)))
            hooks.append(module.register_forward_hook(lambda *_: _dropped(self._inside), always_call=True))
        self._before = {module: geometry_of(module) for module in model.modules() if _is_layer(module)}
        try:
            with unchanged(model), torch.no_grad(), self:
                model(example)
        except Exception as error:  # a user's network may raise anything
            raise UserError(
                f"could not run {type(model).__name__} on the example of {tuple(example.shape)} "
                f"({in_a_line(error)}); give an example that it can take, or none"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            self._padded.clear()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run it, and see whether it pads or convolves."""
        result = func(*args, **(kwargs or {}))
        call = called_convolution(func, args, kwargs)
        if call is not None:
            self._saw(call)
        elif func is F.pad:
            self._padded[id(result)] = result, _rim(*args, **(kwargs or {}))
        return result

    def _saw(self, call: dict[str, Any]) -> None:
        name, module = self._inside[-1]
        rates = tuple(per_axis(call["dilation"], call["weight"].shape[2:]))
        if _is_layer(module):
            change = change_of(module, self._before[module])
            if change and max(*rates, *per_axis(self._before[module]["dilation"], rates)) > 1:
                self.changing[module] = f"the network changes it as it runs ({change})"
            _, rim = self._padded.get(id(call["input"]), (None, ()))
            self.rims[module] = rim if self.rims.get(module, rim) == rim else ()
        elif any(rate > 1 and side > 1 for rate, side in zip(rates, call["weight"].shape[2:], strict=True)):
            self.functions.append((name, rates))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has a rate, and no parts; not what TorchScript compiled, which says neither."""
    return (
        not isinstance(module, torch.jit.ScriptModule) and hasattr(module, "dilation") and not list(module.children())
    )


def _dropped(inside: list[Any]) -> None:
    inside.pop()


def _rim(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> tuple[int, ...]:
    """The width of the zeros on both sides of each axis; () if the widths differ, or the padding is not zero."""
    before, after = tuple(pad[::2]), tuple(pad[1::2])
    return tuple(reversed(before)) if mode == "constant" and not value and before == after else ()
