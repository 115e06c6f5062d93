"""Batch norm folded into the convolution before it: the same numbers in evaluation mode, with one pass fewer."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from degrid.contracts import FoldingConv2d, bands_of, copied, has_own_forward, in_evaluation_mode, unchanged
from degrid.dispatch import DispatchMode
from degrid.lookup import loaded

# How much a folded layer may differ, relative to its largest output: rounding and nothing more.
_TOLERANCE = 1e-4
# Largest error of the whole network in 16 bits and in more, as a fraction of the largest output; deep ones enlarge it.
_LARGEST_ERROR = (0.05, 1e-3)
# Side of the image that the model is tried with; odd, and small enough to cost little.
_SIDE = 65


@dataclass(frozen=True)
class Folding:
    """A model with its batch norms folded, and what was done.

    pairs: names of (convolution, batch norm) that are one layer now. left: names of the batch norms that stay, with the
    reason.
    """

    model: nn.Module
    pairs: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        reasons = sorted({reason for _, reason in self.left})
        stay = f"; {len(self.left)} stay ({'; '.join(reasons)})" if self.left else ""
        return f"{len(self.pairs)} batch norms folded into convolutions{stay}"


def folded(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A copy of a model in evaluation mode with its batch norms folded; see `fold_batch_norm`."""
    return fold_batch_norm(model, example).model


def fold_batch_norm(model: nn.Module, example: Tensor | None = None) -> Folding:
    """Fold each batch norm into the convolution that it follows; the model itself stays as it was.

    With running statistics fixed a batch norm is a factor and a shift per channel: W' = W g / sqrt(v + eps) and
    b' = (b - m) g / sqrt(v + eps) + beta, worked out in double precision. The model is run, also on parts of the
    example (see `of_other_sides`), and a pair is folded where the convolution's output goes to that batch norm and
    nowhere else, and the batch norm gets nothing else. This needs no graph of the model, and works for networks that
    call a layer several times, or hold it in several places. A subclass of nn.Conv2d with a forward of its own
    (smoothed, padded, ..) is folded if its output for the input it got stays the same. The activation inside a batch
    norm of timm stays. Layers with hooks are left as they are, and so are those whose weights the model reads
    elsewhere; where its path depends on values, or the folded copy does not give what the model gives (it may ask what
    its layers are), nothing is folded.

    Args:
        model: any module from one tensor to anything.
        example: its input; by default one image [1,3,65,65] of values 0-255.
    Returns:
        The copy, without gradients for what was folded, and what was folded and left.
    Source: fixed batch norm is an affine map, Ioffe & Szegedy (arXiv 1502.03167) section 3.1.
    """
    own = _copied(model)
    given = example_image(own, _SIDE) if example is None else example
    with unchanged(own):
        wiring = wiring_of(own, given)
        output = wiring.output
        for other in of_other_sides(given) if wiring.sources else ():
            with suppress(Exception):  # it may accept one size only
                wiring = wiring_of(own, other, wiring)
    pairs, left = [], []
    for name, norm in own.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        sources = wiring.sources.get(norm, set())
        conv = next(iter(sources), None) if len(sources) == 1 else None
        reason = reason_to_leave(conv, norm, wiring) or _fold(conv, norm, wiring)
        if reason:
            left.append((name, reason))
        else:
            pairs.append((next(key for key, module in own.named_modules() if module is conv), name))
    if pairs and not _gives(own, model, given, output):
        stay = tuple((norm, "the folded network computes something else") for _, norm in pairs)
        return Folding(_copied(model), (), (*left, *stay))
    return Folding(own, tuple(pairs), tuple(left))


def _copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, of layers that can be folded."""
    made = in_evaluation_mode(copied(model))
    for module in list(made.modules()):
        if isinstance(module, FoldingConv2d):
            module.take_apart()
    return made


def _gives(folded: nn.Module, model: nn.Module, example: Tensor, output: Any) -> bool:
    """Whether a folded model computes what the model did, up to rounding and its growth in deep networks."""
    error = _error(_run(folded, example), output)
    sizes = (leaf.element_size() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    limit = _LARGEST_ERROR[max(sizes, default=4) > 2]
    if error <= limit or error == math.inf or example.dtype == torch.float64:
        return error <= limit
    try:  # Some networks enlarge rounding 100,000 times, which leaves nothing of it in double precision.
        return bool(fold_batch_norm(copied(model).double(), example.double()).pairs)
    except Exception:  # a user's network may raise anything
        return False


def _run(model: nn.Module, example: Tensor) -> Any:
    """What a model gives; None where it fails, as what it reads of a batch norm may be gone."""
    try:
        with unchanged(model), torch.no_grad():
            return model(example)
    except Exception:
        return None


def _error(found: Any, output: Any) -> float:
    """The largest difference as a fraction of the largest number, of all tensors; infinite where they do not match."""
    ours, theirs = tree_leaves(found), tree_leaves(output)
    if len(ours) != len(theirs):
        return math.inf
    return max((_distance(*both) for both in zip(ours, theirs, strict=True)), default=0.0)


def _distance(ours: Any, theirs: Any) -> float:
    if not isinstance(theirs, Tensor):
        return 0.0
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
        return math.inf
    both = torch.isfinite(theirs)
    if not torch.equal(both, torch.isfinite(ours)):
        return math.inf
    if not both.any():
        return 0.0
    if not (theirs.is_floating_point() or theirs.is_complex()):
        ours, theirs = ours.double(), theirs.double()  # class ids and truth values
    difference = (ours - theirs)[both].abs().max().item()
    return difference and float(difference / theirs[both].abs().max().item() if theirs[both].any() else math.inf)


@dataclass
class Wiring:
    """Which layer feeds which in one run of a model.

    sources: of each batch norm the convolutions whose output it got, None for anything else. targets: of each
    convolution the batch norms that took its output, None for any other use. inputs: of each convolution the last one.
    read_elsewhere: convolutions and batch norms whose weights or statistics something else reads, too.
    by_value: whether a value of a tensor was read, as for a condition. output: what the model gave.
    """

    sources: dict[nn.Module, set[nn.Conv2d | None]] = field(default_factory=lambda: defaultdict(set))
    targets: dict[nn.Module, set[nn.Module | None]] = field(default_factory=lambda: defaultdict(set))
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    read_elsewhere: set[nn.Module] = field(default_factory=set)
    by_value: bool = False
    output: Any = None


class _Uses(DispatchMode):
    """Calls `used` with every tensor that an operation reads, and `asked` where one gives its values to Python."""

    def __init__(self, used: Callable[[Tensor], None], asked: Callable[[], None]) -> None:
        super().__init__()
        self.used, self.asked = used, asked

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.used(leaf)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, bool | int | float | complex) or _has_size_by_value(func, args):
            self.asked()
        return result


# What consists of `nonzero`, which inference mode does not show.
_NONZERO = (torch.ops.aten.where.default, torch.ops.aten.argwhere.default, torch.ops.aten.nonzero_numpy.default)


def _has_size_by_value(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the size of an operation's result depends on values, as how many pixels are bright."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return func in _NONZERO
    if func is not torch.ops.aten.index.Tensor:
        return True
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


class _Handed(TorchFunctionMode):
    """Notices, like `_Uses`, values that reach Python or NumPy without an operation."""

    def __init__(self, used: Callable[[Tensor], None], asked: Callable[[], None]) -> None:
        super().__init__()
        self.used, self.asked = used, asked

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _HANDING:
            self.used(args[0])
            self.asked()
        return func(*args, **(kwargs or {}))


_HANDING = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__)


def wiring_of(model: nn.Module, example: Tensor, before: Wiring | None = None) -> Wiring:
    """Run a model once on an example, and see which convolution feeds which batch norm.

    Args:
        before: what was seen in another run, to add to.
    """
    wiring = before or Wiring()
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # the tensors are kept, so that no id is used twice
    owners: dict[int, set[nn.Module]] = defaultdict(set)  # of weights and statistics
    inside: list[nn.Module] = []
    thread = threading.get_ident()

    def used(tensor: Tensor) -> None:
        if id(tensor) in made:
            norm = inside[-1] if inside and isinstance(inside[-1], _BatchNorm) else None
            wiring.targets[made[id(tensor)][1]].add(norm)
        readers = owners.get(id(tensor))
        if readers and readers.isdisjoint(inside):
            wiring.read_elsewhere |= readers

    def asked() -> None:
        wiring.by_value |= not inside  # what a layer does inside is its own affair

    def enter(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if isinstance(layer, _BatchNorm):
            x = _input(args, named)
            wiring.sources[layer].add(made[id(x)][1] if id(x) in made else None)
        inside.append(layer)

    def leave(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        inside.pop()
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = (output, layer)
            if threading.get_ident() != thread or _is_wrapped(output):
                wiring.targets[layer].add(None)  # reading it there is not noticed
            wiring.inputs[layer] = _input(args, named)

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | _BatchNorm):
            # First and last, so that what the user's own hooks do counts as use from elsewhere.
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave, prepend=True, with_kwargs=True))
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                owners[id(tensor)].add(module)
    try:
        with torch.no_grad(), _Uses(used, asked), _Handed(used, asked):
            found = model(example)
        wiring.output = found
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                used(leaf)
    finally:
        for hook in hooks:
            hook.remove()
    return wiring


def _is_wrapped(output: Any) -> bool:
    """Whether a tensor exists within a transformation (torch.vmap, torch.func) only, as another one outside."""
    return isinstance(output, Tensor) and bool(cast(Any, torch._C._functorch).is_functorch_wrapped_tensor(output))


def _input(args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The first argument of a layer, positional or by keyword; None: there is none."""
    return next(iter((*args, *named.values())), None)


def reason_to_leave(conv: nn.Conv2d | None, norm: _BatchNorm, wiring: Wiring) -> str | None:
    """Why a batch norm and the one convolution that feeds it cannot be one layer; None if they can."""
    if norm not in wiring.sources:
        return "not used in the forward"
    if wiring.by_value:
        return "the network's control flow depends on values"
    if norm.training:
        return "it stays in training mode"
    if conv is None:
        return "its input is not the output of one convolution"
    if wiring.targets[conv] != {norm}:
        return "the convolution's output is used elsewhere too"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics"
    if "weight" not in conv._parameters or is_parametrized(conv):
        return "the convolution's weight is computed, not stored"
    if has_hooks(conv) or has_hooks(norm):
        return "it or its convolution has hooks or a forward that replaces that of its class"
    if {conv, norm} & wiring.read_elsewhere:
        return "the network reads its numbers or its convolution's elsewhere too"
    return None


def of_other_sides(example: Tensor) -> list[Tensor]:
    """Parts of an image [N,C,H,W] whose maps have even sides at a stride where those of other parts have odd ones.

    Networks pad or cut maps where sides are odd, so that they fit others, perhaps before a batch norm. Sides of 64
    are even at every stride up to 32, those of 65 odd; of smaller images, those of 32 and 33.
    """
    if example.ndim != 4 or min(example.shape[-2:]) < 33:
        return []
    shape = example.shape[-2:]
    sides = (32, 33) if min(shape) < 65 else (64, 65) if any(side % 64 for side in shape) else (65,)
    return [example[..., :side, :side] for side in sides if shape != (side, side)]


def has_hooks(module: nn.Module) -> bool:
    """Whether functions of the user run before, after or in place of a module's forward, or in its backward pass."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    everywhere = any(getattr(nn.modules.module, f"_global{kind}") for kind in kinds)
    return everywhere or any(getattr(module, kind) for kind in kinds) or has_own_forward(module)


def computes_plainly(kind: type[nn.Conv2d]) -> bool:
    """Whether a class of convolution computes nothing else than nn.Conv2d does."""
    names = "forward", "_conv_forward", "__call__"
    return all(getattr(kind, name) is getattr(nn.Conv2d, name) for name in names)


def _fold(conv: nn.Conv2d | None, norm: _BatchNorm, wiring: Wiring) -> str | None:
    """Fold one pair in place; or leave it and say why."""
    assert conv is not None
    rest = _without_affine(norm)
    if rest is None:
        return f"{type(norm).__name__} does something else besides"
    x, plain = wiring.inputs[conv], computes_plainly(type(conv))
    with torch.no_grad():
        before = None if plain else norm(conv(x))
        kept = conv.weight, conv.bias
        conv.weight, conv.bias = _merged(conv, norm)
        if before is not None and not _same(rest(conv(x)), before):
            conv.weight, conv.bias = kept
            return f"{type(conv).__name__} is not linear in its weight"
    _become(norm, rest)
    return None


def _become(norm: nn.Module, rest: nn.Module) -> None:
    """Turn a batch norm into its remainder, in place: the model may hold it under several names, or in a list."""
    norm.__class__ = type(rest)
    norm.__dict__ = rest.__dict__


def _merged(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of the two in one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight.double() * scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
    kind = conv.weight.dtype
    # In the same memory layout: channels_last weights stay so.
    made = torch.empty_like(conv.weight).copy_(weight)
    return nn.Parameter(made, requires_grad=False), nn.Parameter(bias.to(kind), requires_grad=False)


def _without_affine(norm: _BatchNorm) -> nn.Module | None:
    """A batch norm without its factor and shift; None if it is of an unknown kind."""
    if type(norm).__call__ is not nn.Module.__call__:
        return None
    if type(norm).forward is _BatchNorm.forward:
        return nn.Identity().eval()
    if not any(type(norm).forward is kind.forward for kind in timm_batch_norm()):
        return None
    parts: list[Any] = [part for part in (norm.drop, norm.act) if not isinstance(part, nn.Identity)]
    return nn.Sequential(*parts).eval() if parts else nn.Identity().eval()


def timm_batch_norm() -> tuple[Any, ...]:
    """timm's batch norm with an activation, if timm is loaded."""
    return loaded("timm.layers.norm_act", "BatchNormAct2d")


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= _TOLERANCE * theirs.abs().max())


def example_image(model: nn.Module, height: int, width: int | None = None) -> Tensor:
    """Noise [1,C,height,width], 0-255, on the model's device and in its number format; square without a width."""
    state = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, bands_of(model).count, height, width or height), generator=generator)
    return image.to(state.device, state.dtype)
