"""What each map of a network can depend on, from the shapes of its layers alone: weights and values play no part.

Rows and columns are followed separately, as the operations of networks treat them: a map's `Reach` says which rows of
an earlier map each of its rows can see, and likewise for columns.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from degrid.analysis.part import main_map, maps_in, run, stride_between
from degrid.contracts import DressedConv
from degrid.dispatch import DispatchMode
from degrid.types import UserError

aten = torch.ops.aten


@dataclass(frozen=True)
class Reach:
    """Which rows and columns of a source map a map depends on.

    rows: bool [h,H], whether row i can see row j of the source; columns: bool [w,W].
    """

    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of_itself(cls, height: int, width: int) -> Reach:
        """Every position sees itself alone."""
        return cls(np.eye(height, dtype=bool), np.eye(width, dtype=bool))

    def box(self) -> tuple[int, int]:
        """Height and width of what the centre can see, pixels of the source."""
        return _extent(self.rows[len(self.rows) // 2]), _extent(self.columns[len(self.columns) // 2])

    def coverage(self) -> float:
        """The fraction of the rows within reach of the centre row that it reads, 0..1; of columns if that is less."""
        return min(_density(seen[len(seen) // 2]) for seen in (self.rows, self.columns))

    def divisor(self) -> tuple[int, int]:
        """The greatest common divisor of the distances between rows, and columns, that the centre reads; 0 for one."""
        return _divisor(self.rows[len(self.rows) // 2]), _divisor(self.columns[len(self.columns) // 2])

    def networks(self) -> tuple[int, int]:
        """Into how many parts the rows, and the columns, of the source fall that no position of the map sees together.

        The product is the number of independent networks that lie interleaved in this one.
        """
        return _parts(self.rows), _parts(self.columns)


def _extent(seen: np.ndarray) -> int:
    places = np.flatnonzero(seen)
    return int(places[-1] - places[0] + 1) if len(places) else 0


def _density(seen: np.ndarray) -> float:
    extent = _extent(seen)
    return float(np.count_nonzero(seen) / extent) if extent else 0.0


def _divisor(seen: np.ndarray) -> int:
    return math.gcd(*np.diff(np.flatnonzero(seen)).tolist())


def _parts(seen: np.ndarray) -> int:
    """Connected components of the places in the source that are seen at all; two are joined by a row that sees both."""
    together = seen.T.astype(np.float32) @ seen.astype(np.float32) > 0
    left, count = set(np.flatnonzero(together.any(1)).tolist()), 0
    while left:
        count += 1
        waiting = [left.pop()]
        while waiting:
            near = left.intersection(np.flatnonzero(together[waiting.pop()]).tolist())
            left -= near
            waiting += near
    return count


Transfer = np.ndarray | None
"""bool [out,in], which rows of an operation's result depend on which of its input; None: each on its own."""
_Source = tuple[str, bool]
"""Its name, and whether averages over the whole map count."""


class ReachMode(DispatchMode):
    """Follows what each tensor depends on while a network runs, without gradients.

    Convolutions are not computed: they give zeros.

    Attributes:
        opaque: how often operations mixed the places of a map in a way that is not known here. Their results are taken
            to depend on all of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opaque: Counter[str] = Counter()
        self._paused = False
        self._known: Any = WeakTensorKeyDictionary()
        self._marks: Any = WeakTensorKeyDictionary()
        self._probes: dict[Any, np.ndarray] = {}

    def begin(self, name: str, x: Tensor) -> None:
        """Begin to follow what depends on the places of a map [N,C,H,W]."""
        start = Reach.of_itself(*x.shape[-2:])
        self._known[x] = {**self._of(x), (name, True): start, (name, False): start}

    def reach(self, name: str, y: Tensor, averages: bool = True) -> Reach | None:
        """What a map depends on in the source of that name; None: nothing.

        Args:
            averages: count averages and maxima over the whole map, such as image pooling.
        """
        return self._of(y).get((name, averages))

    def mark(self, name: str, y: Tensor) -> None:
        """Let all that is computed from a tensor remember its name."""
        self._marks[y] = self.marks(y) | {name}

    def marks(self, y: Tensor) -> frozenset[str]:
        """The names of the tensors that a map was computed from, itself included."""
        found: frozenset[str] = self._marks.get(y, frozenset())
        return found

    def probed(self, layer: DressedConv, x: Tensor, y: Tensor) -> None:
        """Find what a smoothed layer does to a map by NaNs in one row, and in one column, at a time."""
        conv: Any = layer
        transfers, self._paused = [], True
        for axis in (2, 3):
            key = layer.operator_name, conv.kernel_size, conv.dilation, conv.stride, x.shape[axis], axis
            if key not in self._probes:
                self._probes[key] = _probe(layer, x.shape[1], x.shape[axis], axis)
            transfers.append(self._probes[key])
        self._paused = False
        self._known[y] = {key: _applied(transfers, reach) for key, reach in self._of(x).items()}
        self._marks[y] = self.marks(x) | self.marks(y)  # compiled code does not propagate them

    def _of(self, x: Tensor) -> dict[_Source, Reach]:
        found: dict[_Source, Reach] = self._known.get(x, {})
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, named = func.overloadpacket, kwargs or {}
        if self._paused:
            return func(*args, **named)
        hollow = packet is aten.convolution and not args[6]
        result = _zeros(*args[:6]) if hollow else func(*args, **named)
        inputs = [each for each in tree_leaves((args, named)) if isinstance(each, Tensor)]
        marks = frozenset[str]().union(*map(self.marks, inputs))
        followed = [each for each in inputs if each in self._known]
        for output in tree_leaves(result):
            if isinstance(output, Tensor) and output.is_floating_point():
                self._marks[output] = marks | self.marks(output)
                if followed:
                    self._note(func, args, named, followed, output)
        return result

    def _note(self, func: Any, args: Any, named: Any, inputs: list[Tensor], output: Tensor) -> None:
        found: dict[_Source, Reach] = {}
        for x in inputs:
            transfers = _transfers(func, args, named, x, output)
            if transfers is None:
                self.opaque[str(func.overloadpacket).rpartition(".")[2]] += 1
                transfers = _all(x, output)
            whole = func.overloadpacket in _AVERAGES and output.ndim != 3 and _places(x) > 1 == _places(output)
            for (name, averages), reach in self._of(x).items():
                if averages or not whole:
                    made = _applied(transfers, reach)
                    before = found.get((name, averages))
                    found[name, averages] = (
                        made if before is None else Reach(before.rows | made.rows, before.columns | made.columns)
                    )
        self._known[output] = found


def _side(x: Tensor, axis: int) -> int:
    """Height or width; a single place for anything that is not a map."""
    return x.shape[axis] if x.ndim >= 4 else 1


def _places(x: Tensor) -> int:
    return _side(x, -2) * _side(x, -1)


def _applied(transfers: Any, reach: Reach) -> Reach:
    def apply(transfer: Transfer, seen: np.ndarray) -> np.ndarray:
        if transfer is None:
            return seen
        result: np.ndarray = transfer.astype(np.float32) @ seen.astype(np.float32) > 0
        return result

    return Reach(apply(transfers[0], reach.rows), apply(transfers[1], reach.columns))


def _zeros(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Zeros in the shape of a convolution's result."""
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sides = ((side + 2 * pad - rate * (taps - 1) - 1) // step + 1 for side, taps, step, pad, rate in axes)
    zeros: Tensor = x.new_zeros(x.shape[0], weight.shape[0], *sides)
    return zeros


# Pointwise operations that PyTorch does not tag as such.
_IN_PLACE = {
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
    aten.detach,
    aten.alias,
    aten._to_copy,
    aten.hardswish,
    aten.hardswish_,
    aten._prelu_kernel,
    aten.expand,
    aten.copy_,
    aten.native_dropout,
    aten.lift_fresh,
    aten.max,
    aten.amax,
    aten.sum,
    aten.mean,
    aten.split,
    aten.split_with_sizes,
    aten.unbind,
    aten.slice,
    aten.cat,
    aten.stack,
    aten.flip,
}
_AVERAGES = {
    aten.mean,
    aten.sum,
    aten.amax,
    aten.max,
    aten.avg_pool2d,
    aten.max_pool2d_with_indices,
    aten._adaptive_avg_pool2d,
    aten.adaptive_max_pool2d,
}


def _transfers(func: Any, args: Any, named: Any, x: Tensor, output: Tensor) -> tuple[Transfer, Transfer] | None:
    """What an operation does to rows and columns; None where that is not known."""
    packet = func.overloadpacket
    if 1 in (_places(x), _places(output)):
        return _all(x, output)
    made: list[Transfer] = [None, None]
    for place, axis in enumerate((-2, -1)):
        length, out = x.shape[axis], output.shape[axis]
        if packet in _RULES:
            made[place] = _windows(length, out, *_RULES[packet](*args, **named)[place])
        elif packet in _BY_SIZE:
            aligned = packet is aten.upsample_bilinear2d and bool(args[2])
            made[place] = _BY_SIZE[packet](length, out, aligned)
        elif packet not in _IN_PLACE and torch.Tag.pointwise not in func.tags:
            return None
        elif packet is aten.slice and args[1] % x.ndim == x.ndim + axis:
            bounds = [*list(args[2:]), *[None, None, 1][len(args) - 2 :]]
            made[place] = np.eye(length, dtype=bool)[slice(*bounds)]
        elif length == 1:
            made[place] = np.ones((out, 1), dtype=bool)
        elif length != out or axis in _moved(packet, args, output):
            return None
    return made[0], made[1]


def _moved(packet: Any, args: Any, output: Tensor) -> set[int]:
    """The axes, from the end, along which an operation moves places."""
    if packet not in (aten.flip, aten.cat, aten.stack):
        return set()
    given = args[1] if len(args) > 1 else 0
    return {axis % output.ndim - output.ndim for axis in ([given] if isinstance(given, int) else given)}


def _all(x: Tensor, output: Tensor) -> tuple[Transfer, Transfer]:
    """Every place of the result may depend on every place of the input."""
    rows, columns = (np.ones((_side(output, axis), _side(x, axis)), dtype=bool) for axis in (-2, -1))
    return rows, columns


Window = tuple[int, int, int, int]
"""Taps, stride, padding before, dilation: output i reads i * stride - padding + k * dilation for each tap k."""


@functools.lru_cache(maxsize=512)
def _windows(length: int, out: int, taps: int, step: int, pad: int, rate: int) -> np.ndarray:
    places = np.arange(out)[:, None] * step - pad + np.arange(taps)[None, :] * rate
    seen = np.zeros((out, length), dtype=bool)
    inside = (places >= 0) & (places < length)
    seen[np.nonzero(inside)[0], places[inside]] = True
    return seen


def _of_convolution(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any) -> list[Window]:
    return list(zip(weight.shape[2:], stride, padding, dilation, strict=True))


def _of_pooling(
    x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any, **__: Any
) -> list[Window]:
    def two(value: Any) -> list[int]:
        given = [value] if isinstance(value, int) else list(value)
        return given * 2 if len(given) == 1 else given

    sides = two(kernel)
    return list(zip(sides, two(stride) if stride else sides, two(padding), two(dilation), strict=True))


def _of_average(x: Any, kernel: Any, stride: Any = (), padding: Any = 0, *_: Any, **__: Any) -> list[Window]:
    return _of_pooling(x, kernel, stride, padding)


def _of_padding(x: Any, pad: Any, *_: Any) -> list[Window]:
    return [(1, 1, pad[2] if len(pad) > 2 else 0, 1), (1, 1, pad[0], 1)]


_RULES: Mapping[Any, Callable[..., list[Window]]] = {
    aten.convolution: _of_convolution,
    aten.max_pool2d_with_indices: _of_pooling,
    aten.avg_pool2d: _of_average,
    aten.constant_pad_nd: _of_padding,
}


@functools.lru_cache(maxsize=64)
def _enlarged(length: int, out: int, aligned: bool) -> np.ndarray:
    """Two neighbours, as bilinear resizing reads them."""
    number = np.arange(out)
    place = number * (length - 1) / max(1, out - 1) if aligned else ((number + 0.5) * length / out - 0.5).clip(0)
    low = np.floor(place).astype(int).clip(0, length - 1)
    seen = np.zeros((out, length), dtype=bool)
    seen[number, low] = True
    seen[number, (low + (place > low)).clip(0, length - 1)] = True
    return seen


@functools.lru_cache(maxsize=64)
def _nearest(length: int, out: int, aligned: bool) -> np.ndarray:
    return np.eye(length, dtype=bool)[np.arange(out) * length // out]


@functools.lru_cache(maxsize=64)
def _adaptive(length: int, out: int, aligned: bool) -> np.ndarray:
    """Row i reads from floor(i * length / out) up to ceil((i + 1) * length / out)."""
    number, place = np.arange(out)[:, None], np.arange(length)[None, :]
    seen: np.ndarray = (place >= number * length // out) & (place < -(-(number + 1) * length // out))
    return seen


_BY_SIZE: Mapping[Any, Callable[[int, int, bool], np.ndarray]] = {
    aten.upsample_bilinear2d: _enlarged,
    aten.upsample_nearest2d: _nearest,
    aten._adaptive_avg_pool2d: _adaptive,
    aten.adaptive_max_pool2d: _adaptive,
}


def _probe(layer: nn.Module, channels: int, side: int, axis: int) -> np.ndarray:
    """bool [out,in]: which rows of a layer's result a NaN in one row of its input reaches; columns for axis 3."""
    shape = (1, channels, side, 1) if axis == 2 else (1, channels, 1, side)
    parameter = next(layer.parameters())
    seen = []
    for place in range(side):
        x = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        x.select(axis, place).fill_(math.nan)
        seen.append(layer.forward(x).isnan().any(1).flatten().cpu().numpy())
    return np.stack(seen, 1)


def is_dilated(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of maps [N,C,H,W] whose taps are apart."""
    return isinstance(layer, nn.Conv2d) and max(rates_of(layer)) > 1


def rates_of(conv: nn.Conv2d) -> tuple[int, int]:
    """The rate along rows and columns, 1 where the kernel is only 1 wide."""
    rates = [rate if taps > 1 else 1 for rate, taps in zip(conv.dilation, conv.kernel_size, strict=True)]
    return rates[0], rates[1]


class Following:
    """A run of a network under `ReachMode`: which layers it calls, in which order, and what their maps depend on.

    Args:
        network: in evaluation mode.
        image: what it takes; only its size counts.
        sources: whether the input of a layer, given by its name and itself, is a source; the network's is "".
        end: the layer whose output is followed; unless it is the network itself, that may give no map.
    Attributes:
        inputs, outputs: the maps of each layer that was called, by its name, in the order of the calls; of the first
            call where there are several.
        dilated: the layers among them for which `is_dilated` holds.
        opaque: see `ReachMode`.
    """

    def __init__(
        self, network: nn.Module, image: Tensor, sources: Callable[[str, nn.Module], bool], end: str = ""
    ) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.dilated: dict[str, nn.Conv2d] = {}
        self._mode, self._sources, self._unknown = ReachMode(), sources, 0
        hooks = list(self._hooks(network))
        try:
            with torch.no_grad(), self._mode:
                result = run(network, image)
        finally:
            for hook in hooks:
                hook.remove()
        self.outputs.pop("", None)
        if not end or maps_in(result):
            self.outputs[""] = main_map(result, type(network).__name__)
            self._mode.mark("", self.outputs[""])
        self.opaque = dict(self._mode.opaque)

    def reach(self, start: str, end: str, averages: bool = True) -> Reach:
        """What the output of one layer can see of the input of another, which is a source; see `ReachMode.reach`.

        Raises:
            UserError: it cannot see it.
        """
        found = self._mode.reach(start, self.outputs[end], averages) if end in self.outputs else None
        if found is None:
            raise UserError(f'layer "{end}" does not depend on the input of layer "{start}": choose others')
        return found

    def between(self, start: str) -> list[str]:
        """The layers from the input of one, which is a source, to the network's result, in the order of their ends."""
        used = self._mode.marks(self.outputs[""])
        return [name for name, y in self.outputs.items() if name in used and self._mode.reach(start, y) is not None]

    def periods(self, height: int) -> list[int]:
        """The distances between taps that the dilated layers have on a map of that height, in ascending order."""
        found = set()
        for name, layer in self.dilated.items():
            scale = stride_between(height, self.outputs[name].shape[-2])
            found |= {rate * scale for rate in rates_of(layer) if rate > 1}
        return sorted(found)

    def _hooks(self, network: nn.Module) -> Iterator[Any]:
        dressed = {layer for layer in network.modules() if isinstance(layer, DressedConv)}
        inner = {part for layer in dressed for part in layer.modules()} - dressed
        for name, module in network.named_modules():
            if module not in inner:
                yield module.register_forward_pre_hook(functools.partial(self._before, name))
                yield module.register_forward_hook(functools.partial(self._after, name))

    def _before(self, name: str, module: nn.Module, args: Any) -> None:
        maps = maps_in(args)
        if maps and name not in self.inputs:
            self.inputs[name] = maps[-1]
            if isinstance(module, nn.Conv2d) and is_dilated(module):
                self.dilated[name] = module
            if self._sources(name, module):
                self._mode.begin(name, maps[-1])
        self._unknown = self._mode.opaque.total()

    def _after(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        maps = maps_in(output)
        if isinstance(module, DressedConv) and maps and self._mode.opaque.total() > self._unknown:
            self._mode.probed(module, maps_in(args)[-1], maps[-1])
        if maps and name not in self.outputs:
            self.outputs[name] = maps[-1]
            self._mode.mark(name, maps[-1])
