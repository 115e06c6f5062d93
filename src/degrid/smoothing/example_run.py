"""What only a run of a network shows: maps that it pads itself, and dilated convolutions that are no layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from degrid.contracts import unchanged
from degrid.smoothing.own_forward import called_convolution, change_of, geometry_of, per_axis
from degrid.types import UserError


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
                continue  # it takes no hooks, and shows no calls
            hooks.append(module.register_forward_pre_hook(lambda *_, it=(name, module): self._inside.append(it)))
            hooks.append(module.register_forward_hook(lambda *_: _dropped(self._inside), always_call=True))
        self._before = {module: geometry_of(module) for module in model.modules() if _is_layer(module)}
        try:
            with unchanged(model), torch.no_grad(), self:
                model(example)
        except Exception as error:  # a user's network may fail in any way
            raise UserError(
                f"could not run {type(model).__name__} on the example of {tuple(example.shape)} "
                f"({type(error).__name__}: {str(error)[:120]}); give an example that it can take, or none"
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
    """How wide the zeros are on both sides of each axis; () where they are not equally wide, or no zeros."""
    before, after = tuple(pad[::2]), tuple(pad[1::2])
    return tuple(reversed(before)) if mode == "constant" and not value and before == after else ()
