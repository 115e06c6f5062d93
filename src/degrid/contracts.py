"""What one part of degrid may expect of another's network or layer, as base classes.

A user's own network may have attributes of any name (`output`, `scales`, `resize`, `encoder`, ...). Only a class that
derives from one of these is treated accordingly.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from degrid.chance import GENERATORS, drawing_nothing, of_everybody
from degrid.lookup import in_a_line, loaded
from degrid.types import RGB, Bands, LabelSpace, UserError

Geometry = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation and groups, as `torch.nn.functional.conv2d` takes them."""
_KEYS = ("out", "logits")  # torchvision's and transformers' names
Rate = int | tuple[int, ...]
"""A dilation rate: one number for both axes of a map, or a tuple with one for each axis, 1 without dilation."""
Convolve = Callable[..., Tensor]
"""(x [N,C,H,W], rate, margin=0) -> [N,out,H+2*margin,W+2*margin]; see `ExchangeableConv2d.convolve`."""
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""The convolution for maps of this many axes."""


class SegmentationNetwork(nn.Module):
    """A network that declares its classes and how its logits are enlarged.

    Attributes:
        labels: the classes.
        resize: how logits are enlarged to the image's size, a name in `degrid.types.RESIZES`.
        bands: how image files become the pixels that the network takes.
    """

    labels: LabelSpace
    resize: str
    bands: Bands = RGB

    @property
    def stride(self) -> int:
        """Side of the image over side of the coarsest feature map: a smaller image leaves less than one feature."""
        return 1


class MultiScaleNetwork(SegmentationNetwork):
    """A network that can run at several scales of the image (DeepLab v2, arXiv 1606.00915 section 4.1.2).

    Attributes:
        scales: the scales beside the original one; empty where there is none.
    """

    scales: tuple[float, ...]

    def scale_logits(self, image: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """The logits [N,C,h,w] of every scale, the original one first.

        Args:
            image: RGB [N,3,H,W], 0-255.
            sizes: height and width for each of `scales`, instead of those that follow from the image.
        """
        raise NotImplementedError

    def fused(self, logits: list[Tensor]) -> Tensor:
        """One map of logits [N,C,h,w] out of those of all scales."""
        raise NotImplementedError


class ExportedNetwork(SegmentationNetwork):
    """A network that another runtime computes, exactly as it was written to a file.

    Attributes:
        output: "logits" [N,C,h,w], or "ids": class ids [N,H,W], uint8, at the image's size.
    """

    output: str


class WithPlainForm:
    """A module that can be written with layers of PyTorch that every tracer and runtime takes."""

    def as_plain_layers(self) -> nn.Module | None:
        """The same computation, with what was learned as constants; None where there is no such form."""
        return None


class DressedConv(WithPlainForm, nn.Module):
    """A convolution with an operator around it."""

    @property
    def operator_name(self) -> str:
        """The name of what is done around the convolution."""
        return type(self).__name__

    def operator_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of what is done around it."""
        yield from ()

    def without_operator(self) -> nn.Module | None:
        """The convolution alone, where its forward does more than its weight and bias say; None elsewhere."""
        return None


class ExchangeableConv2d(DressedConv, nn.Conv2d):
    """A convolution whose forward calls `convolve` for the convolution itself and does something around it.

    What computes that convolution can be exchanged: Winograd's algorithm, or one that includes a batch norm. The layer
    is size-keeping with stride 1, and pads with zeros.
    """

    def convolve(self, x: Tensor, rate: Rate, margin: int = 0) -> Tensor:
        """The layer's kernel at a dilation rate: zeros outside, no bias, and `margin` more outputs on each side."""
        return F.conv2d(x, self.weight, None, *self.geometry(rate, margin))

    def geometry(self, rate: Rate, margin: int = 0) -> Geometry:
        """Stride, padding, dilation and groups at a dilation rate."""
        return same_geometry(self, rate, margin)

    def exchange(self, convolve: Convolve) -> None:
        """Compute the convolution by another function, which gives what `convolve` gives."""
        self.__dict__["convolve"] = convolve


def same_geometry(conv: Any, rate: Rate, margin: int = 0) -> Geometry:
    """Stride, padding, dilation and groups of a layer's size-keeping convolution at a dilation rate."""
    sizes = conv.kernel_size
    rates = [rate] * len(sizes) if isinstance(rate, int) else list(rate)
    padding = [r * (size // 2) + margin for r, size in zip(rates, sizes, strict=True)]
    return [1] * len(sizes), padding, rates, conv.groups


class MadeClass(nn.Module):
    """Base of the classes that are made from other classes at run time, whose objects can be pickled nevertheless.

    Pickles name a class by its module, where these are not; so they say how to make it anew. See `members_of_made`.
    """

    made_by: ClassVar[tuple[Any, ...]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return _blank, (_recipe(type(self)),), *reduced[2:]


def members_of_made(make: Callable[..., Any], kind: type[nn.Module], *more: Any) -> dict[str, Any]:
    """What a class that `make(kind, *more)` makes needs: how it was made, and the module of `kind`.

    By the module torch.fx knows layers that it must not look into, which stay such layers.
    """
    return {"made_by": (make, kind, *more), "__module__": kind.__module__}


def _recipe(value: Any) -> Any:
    """How to make a class, or the value itself."""
    made_by = vars(value).get("made_by") if isinstance(value, type) else None
    return value if made_by is None else tuple(map(_recipe, made_by))


def _made(recipe: Any) -> Any:
    """The inverse of `_recipe`."""
    return recipe[0](*map(_made, recipe[1:])) if isinstance(recipe, tuple) else recipe


def _blank(recipe: Any) -> Any:
    """An object without state."""
    kind = _made(recipe)
    return kind.__new__(kind)


class FoldingConv2d(MadeClass, nn.Conv2d):
    """A convolution that also does the work of the batch norm after it, computed anew in every forward pass."""

    def take_apart(self) -> None:
        """Make the two layers independent again, in place."""
        raise NotImplementedError


def declared(model: nn.Module) -> SegmentationNetwork | None:
    """The model, without the wrapper of `torch.compile`, if it is a SegmentationNetwork; None for any other."""
    # Only a program that compiled something has loaded this module, which is slow to import.
    if isinstance(model, loaded("torch._dynamo.eval_frame", "OptimizedModule")):
        model = cast(Any, model)._orig_mod
    return model if isinstance(model, SegmentationNetwork) else None


def by_sign(logits: Tensor) -> Tensor:
    """Logits of two classes, [N,2,h,w], for the one logit [N,1,h,w] of a user's network: class 1 where it is positive.

    The softmax of the two is the sigmoid of the one. Any other number of classes stays as it is.
    """
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def logits_of(network: nn.Module, output: Any) -> Tensor:
    """Logits [N,C,h,w] in what a user's network gives.

    Of a dictionary, named tuple or dataclass "out" or "logits" is taken, of a list or any other tuple the first entry.
    One logit is two classes by its sign.

    Raises:
        UserError: the network gives no logits in any of these forms.
    """
    named = _by_name(output)
    found = next((named[key] for key in _KEYS if key in named), output)
    if isinstance(found, list | tuple) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise UserError(
            f"{type(network).__name__} gives {_described(output)}; expected logits [N,C,h,w], or a dictionary with "
            f"them under {' or '.join(_KEYS)}"
        )
    return by_sign(found)


def _by_name(output: Any) -> Mapping[str, Any]:
    """The entries of a dictionary, named tuple or dataclass; none of anything else."""
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        output = output._asdict()
    elif dataclasses.is_dataclass(output) and not isinstance(output, Mapping):  # transformers' outputs are both
        output = vars(output)
    return output if isinstance(output, Mapping) else {}


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    named = _by_name(output)
    keys = f" with {', '.join(map(str, named))}" if named else ""
    return f"a {type(output).__name__}{keys}"


def type_of_weights(network: nn.Module) -> torch.dtype:
    """The type of floats that a network computes in, by its first weight; float32 where it has none."""
    return next((each.dtype for each in network.parameters() if each.is_floating_point()), torch.float32)


def bands_of(model: nn.Module) -> Bands:
    """How image files become a model's input; as always if it does not declare it."""
    network = declared(model)
    return RGB if network is None else network.bands


def convention_of(model: nn.Module) -> str:
    """How a model's logits are enlarged, a name in `degrid.types.RESIZES`; half_pixel if it does not declare it."""
    network = declared(model)
    return "half_pixel" if network is None else network.resize


def has_own_forward(module: nn.Module) -> bool:
    """Whether a function was put in place of the forward of a module's class, in this module alone."""
    return not vars(module).keys().isdisjoint(("forward", "_conv_forward"))


def in_evaluation_mode(model: nn.Module) -> nn.Module:
    """The model in evaluation mode; as it is if it has one mode only, as what `torch.export` made of a network."""
    try:
        return model.eval()
    except NotImplementedError:
        return model


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, whose layers, weights and buffers may be changed without any change to the model.

    Args:
        memo: what the copy shares with the model, see copy.deepcopy.
    Raises:
        UserError: it cannot be copied, or a class in it copies itself such that copies share what they hold.
    """
    shared = set(memo or ())
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:  # a user's network may hold anything
        raise UserError(
            f"{type(model).__name__} cannot be copied ({in_a_line(error)}); it must be one that copy.deepcopy takes"
        ) from error
    check_apart(model, made, shared)
    return made


def check_apart(model: nn.Module, made: nn.Module, shared: Collection[int] = ()) -> None:
    """Refuse a copy that shares layers, weights or buffers with its model, but for those of the ids `shared`.

    Raises:
        UserError: it does, as classes with a `__deepcopy__` of their own may.
    """
    held = _held(model)  # as long as these exist, nothing else has their ids
    own = {id(each) for each in held} - set(shared)
    for each in _held(made):
        if id(each) in own:
            raise UserError(
                f"{type(model).__name__} cannot be copied: its copy by copy.deepcopy shares a {type(each).__name__} "
                "with it; correct the __deepcopy__ of its classes"
            )


def _held(model: nn.Module) -> list[object]:
    """Modules, what holds their weights by names, and the weights."""
    modules = [*model.modules()]
    names = [vars(module).get(name) for module in modules for name in ("_parameters", "_buffers", "_modules")]
    return [*modules, *(each for each in names if each is not None), *model.parameters(), *model.buffers()]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; afterwards each of its modules is in the mode that it was in.

    `model.train()` would not do: it also thaws what was put in evaluation mode by itself, such as batch norms.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield in_evaluation_mode(model)
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def unchanged(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, for a run that it must not remember.

    Afterwards its modes, attributes and buffers are as they were, also where its forward changes them, and random
    generators and iterators continue from where they were.
    """
    # A module whose sizes are not yet known takes them from the run; what is compiled keeps its attributes elsewhere.
    kinds = LazyModuleMixin, torch.jit.ScriptModule
    modules = [module for module in model.modules() if not isinstance(module, kinds)]
    kept = [(vars(module), dict(vars(module)), dict(module._buffers)) for module in modules]
    attributes = [value for _, own, _ in kept for value in _own(own).values()]
    held = _copies(attributes)
    generators = [value for value in attributes if isinstance(value, GENERATORS)] + of_everybody()
    tensors = [buffer for buffer in model.buffers() if not (buffer.is_meta or is_lazy(buffer))]
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        with torch.random.fork_rng(), drawing_nothing(generators), evaluating(model):
            for module, own, _ in kept:
                module.update(_iterators_apart(model, _own(own)))
            yield model
    finally:
        for now, own, buffers in kept:
            now["_buffers"].update(buffers)
            now.clear()
            now.update(own)
        _refill(held)
        _restore(values)


def _copies(attributes: list[Any]) -> list[tuple[Any, Any]]:
    """The lists, dictionaries and queues among them, with what they hold."""
    return [(each, copy.copy(each)) for each in attributes if isinstance(each, list | dict | deque)]


def _refill(held: list[tuple[Any, Any]]) -> None:
    for filled, items in held:
        filled.clear()
        (filled.update if isinstance(filled, dict) else filled.extend)(items)


def _own(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that not every module has."""
    return {name: value for name, value in attributes.items() if name not in _OF_EVERY_MODULE}


def _iterators_apart(model: nn.Module, attributes: dict[str, Any]) -> dict[str, Any]:
    """Copies of the iterators among a module's attributes, over the same objects; without those that have no copies."""
    found: dict[str, Any] = {}
    shared: dict[int, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, Iterator) and not isinstance(value, nn.Module):
            shared = shared or {id(each): each for each in (*model.modules(), *model.parameters(), *model.buffers())}
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python 3.12 announces that those of itertools will have none
                found[name] = copy.deepcopy(value, dict(shared))
    return found


_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"_modules"}


def _restore(values: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in values:
            if not torch.equal(tensor, value):
                tensor.copy_(value)
