"""A part of any network, from the input of one of its layers to the output of another, run within the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from degrid.contracts import unchanged
from degrid.lookup import did_you_mean, in_a_line
from degrid.types import UserError

_MAPS = ("out", "logits", "last_hidden_state")
"""Names of the map in what networks of torchvision and transformers return."""
_AVERAGES = {"mean", "sum", "amax", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d"}


def main_map(value: Any, where: str) -> Tensor:
    """The map [N,C,h,w] in what a network or a layer takes or gives: the coarsest of several features.

    Args:
        where: what gave it, for the message.
    Raises:
        UserError: there is none.
    """
    found = value
    if isinstance(value, Mapping):
        found = next((value[name] for name in _MAPS if name in value), list(value.values()))
    maps = maps_in(found)
    if not maps:
        shape = f" of {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise UserError(f"{where}: expected a map [N,C,h,w], got {type(value).__name__}{shape}; name another layer")
    return maps[-1]


def maps_in(value: Any) -> list[Tensor]:
    """All maps [N,C,H,W] in what a layer takes or gives, in order."""
    return [each for each in tree_leaves(value) if isinstance(each, Tensor) and each.ndim == 4]


def run(network: nn.Module, image: Tensor) -> Any:
    """What a network returns.

    Raises:
        UserError: it cannot take the image.
    """
    try:
        return network(image)
    except (_Reached, UserError):
        raise
    except Exception as error:  # a user's network may fail in any way
        raise UserError(
            f"{type(network).__name__} fails on {tuple(image.shape)} ({in_a_line(error)}); "
            "choose a size that it takes with --size (size=...)"
        ) from error


class _Reached(Exception):  # noqa: N818  (no error)
    """Raised when the network reaches the end of the part."""


class Part:
    """What a network computes from the input of one layer to the output of another, where they are called first.

    Args:
        start: name of the layer whose input it begins with; "" for the image.
        end: name of the layer whose output it ends with; "" for what the network returns.
        averages: False takes averages and maxima over the whole map, such as image pooling, for constants: they have
            no gradient, and in `again` they are what they were in the run before.
    Raises:
        UserError: no such layer.
    """

    def __init__(self, network: nn.Module, start: str = "", end: str = "", averages: bool = True) -> None:
        self.network, self.averages = network, averages
        self.start, self.end = layer_of(network, start), layer_of(network, end)
        self.name = end or type(network).__name__
        self._constants = _ConstantAverages()
        self._given: Tensor | None = None
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """The network in evaluation mode, its parameters without gradients; afterwards everything as it was."""
        before = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        try:
            for parameter in before:
                parameter.requires_grad_(False)
            with unchanged(self.network):
                yield
        finally:
            for parameter in before:
                parameter.requires_grad_(True)

    def run(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The map that the part begins with, which wants a gradient where gradients are on, and the one it ends with.

        Args:
            image: what the network takes.
        """
        self._constants.kept.clear()
        return self._run(image, None)

    def again(self, image: Tensor, given: Tensor) -> Tensor:
        """The map at the end where another one than before is at the beginning.

        Args:
            image: that of the run before.
        """
        self._constants.place = 0
        try:
            return self._run(image, given)[1]
        finally:
            self._constants.place = None

    def _run(self, image: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        self._given, self._seen = given, {}
        handles = []
        if self.start is not self.network:
            handles.append(self.start.register_forward_pre_hook(self._begin))
        elif given is None:
            self._seen["start"] = image.detach().requires_grad_(torch.is_grad_enabled())
            image = self._seen["start"].clone()  # the network may modify it in place
        else:
            self._seen["start"], image = given, given.clone()
        if self.end is not self.network:
            handles.append(self.end.register_forward_hook(self._finish))
        try:
            if self.averages:
                result = run(self.network, image)
            else:
                with self._constants:
                    result = run(self.network, image)
            if self.end is self.network:
                self._seen["end"] = main_map(result, self.name)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if len(self._seen) < 2:
            raise UserError("the network does not call this layer on its way to the other")
        return self._seen["start"], self._seen["end"]

    def _begin(self, module: nn.Module, args: Any) -> Any:
        if "start" in self._seen:
            return None
        x = main_map(args, f"the input of {type(module).__name__}")
        new = x.detach().requires_grad_(torch.is_grad_enabled()) if self._given is None else self._given
        self._seen["start"], written = new, new.clone()
        return tree_map(lambda each: written if each is x else each, args)

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        if "start" in self._seen:
            self._seen["end"] = main_map(output, self.name)
            raise _Reached


def stride_between(long: int, short: int) -> int:
    """How many places of the longer side of a map lie between two of the shorter: a power of two wherever that fits."""
    fitting = (2**power for power in range(16) if short in (long // 2**power, -(-long // 2**power)))
    return next(fitting, max(1, round(long / short)))


def layer_of(network: nn.Module, name: str) -> nn.Module:
    """A layer by its dotted name.

    Raises:
        UserError: there is none of that name.
    """
    layers = dict(network.named_modules())
    if name not in layers:
        raise UserError(
            f'{type(network).__name__} has no layer "{name}".{did_you_mean(name, layers)} '
            "model.named_modules() lists them, and degrid gridding those that are dilated"
        )
    found: nn.Module = layers[name]
    return found


class _ConstantAverages(TorchFunctionMode):
    """Cuts the gradient of averages over the whole map, and keeps them.

    place: of the kept value that the next one becomes; None: they are computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.place: int | None = None

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in _AVERAGES or not _is_average(args, result):
            return result
        if self.place is None:
            self.kept.append(result.detach())
            return result.detach()
        self.place += 1
        return self.kept[self.place - 1]


def _is_average(args: Any, result: Any) -> bool:
    x = args[0] if args else None
    if not (isinstance(x, Tensor) and isinstance(result, Tensor)) or x.ndim != 4 or x.shape[-2:].numel() == 1:
        return False
    return result.ndim == 2 or (result.ndim == 4 and result.shape[-2:].numel() == 1)
