"""A convolution by Winograd's algorithm where that is faster, with its weight packed for map sizes that recur."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections import OrderedDict
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.acceleration.fold import has_hooks
from degrid.contracts import ExchangeableConv2d, Rate
from degrid.kernels.support import has_matrix_units, numba_installed
from degrid.kernels.winograd import (
    LIMIT,
    MARGIN,
    NARROWEST,
    PAIRS,
    Tile,
    best_tile,
    convolve_pairs,
    convolve_tiles,
    products_of,
    winograd_weight,
)
from degrid.types import UserError

MARGIN_BFLOAT16 = 0.48
"""As MARGIN, beside a direct convolution in bfloat16 by vector units, which takes about half of float32's time."""
PACKINGS = 3
"""Most map sizes for which a layer keeps its weight packed, each up to seven times the size of the weight."""


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution that uses Winograd's algorithm where it is faster, and plain nn.Conv2d otherwise.

    It uses it for float32 on the CPU without gradient (`torch.no_grad` or `inference_mode`), if numba is installed and
    `best_tile` has tiles for the input's size; for bfloat16, also under autocast, only where its float32 is still
    faster, on processors without matrix units. Made by `from_conv` or `use_winograd`.

    The transformed weight takes up to seven times the memory of the weight, for each kind of tile. For map sizes that
    occur more than once it is packed in the order that the library wants, of which few differ, and the plain one is
    given up. Neither is saved or copied; both are recomputed when the weight changes. A change that PyTorch does not
    count, as through `weight.data` or NumPy, is found by comparison with a copy of the weight.

    Attributes:
        watched: whether the weight may change; where it cannot, no copy is kept.
    """

    watched = True
    _prepared: _Prepared | None = None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> WinogradConv2d:
        """A layer with the parameters of `conv` itself, not copies.

        Raises:
            UserError: `conv` is not one that `use_winograd` replaces.
        """
        if not _eligible(conv):
            raise UserError(
                "expected a plain 3x3 nn.Conv2d of stride 1, one group, zero padding as wide as its rate, and channels "
                f"in multiples of 16, from {NARROWEST} up; got {conv}; leave it as it is"
            )
        rate = cast(Any, conv.dilation[0])
        layer = cls(conv.in_channels, conv.out_channels, 3, 1, rate, rate, bias=conv.bias is not None, device="meta")
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,K,H,W]; or without N."""
        tile = self._tile(x)
        if tile is None:
            return super().forward(x)
        if self._prepared is None or not self._prepared.is_of(self.weight):
            self._prepared = _Prepared(self.weight, self.watched)
        bias, rate = None if self.bias is None else self.bias.float(), self.dilation[0]
        with torch.autocast("cpu", enabled=False):
            if tile == PAIRS:
                found = convolve_pairs(x.float(), self._prepared.weight_for(tile), rate, bias)
            else:
                multiply = functools.partial(self._prepared.multiply, tile=tile)
                found = convolve_tiles(x.float(), multiply, self.out_channels, rate, bias, tile)
        return found.to(x.dtype)

    def _tile(self, x: Tensor) -> Tile | None:
        """The tiles to use; None for the direct convolution."""
        if torch.is_grad_enabled() or _recorded() or x.ndim != 4 or x.device.type != "cpu" or not _can_win():
            return None
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        margin = _margins().get(kind)
        if margin is None or not kind == x.dtype == self.weight.dtype:
            return None
        return best_tile(tuple(x.shape), self.out_channels, self.dilation[0], margin)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be computed again: packed weights can be neither copied nor saved."""
        return {name: value for name, value in self.__dict__.items() if name != "_prepared"}


def use_winograd(model: nn.Module, watched: bool = True) -> int:
    """Replace every 3x3 convolution of a model that Winograd may speed up by a `WinogradConv2d`, in place.

    Names and parameters stay, and so does what the network computes, up to rounding. Fold batch norm before. Each layer
    still decides for each input. An `ExchangeableConv2d`, such as a smoothed layer, stays and uses the algorithm for
    the convolution inside it. Other subclasses of nn.Conv2d and layers with hooks are left alone.

    Args:
        watched: see `WinogradConv2d`; False for a model whose weights nobody changes any more.
    Returns:
        How many were replaced. A `model` that is itself a convolution stays; use `WinogradConv2d.from_conv`.
    """
    made: dict[nn.Module, WinogradConv2d] = {}
    layers = [layer for layer in model.modules() if isinstance(layer, ExchangeableConv2d)]
    # A weight that is computed (torch.nn.utils.parametrize) changes without notice.
    inner = [layer for layer in layers if "weight" in layer._parameters and _eligible(_plain(layer, 1))]
    for layer in inner:
        layer.exchange(_InnerConvolution(layer, watched))
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _eligible(child):
                made[child] = made.get(child) or WinogradConv2d.from_conv(cast(nn.Conv2d, child))
                made[child].watched = watched
                setattr(parent, name, made[child])
    return len(made) + len(inner)


def winograd_bytes(model: nn.Module) -> int:
    """Memory that `use_winograd` takes for one kind of tile and order of the weights, at most, in bytes.

    Where all layers have their weights transformed, and while the largest is packed.
    """
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d) and "weight" in each._parameters]
    plain = [_plain(each, 1) if isinstance(each, ExchangeableConv2d) else each for each in convolutions]
    most = products_of((6, 6))
    sizes = [4 * most * conv.weight.numel() // 9 for conv in plain if _eligible(conv)]
    return sum(sizes) + 2 * max(sizes, default=0) + (8 * LIMIT if sizes else 0)


class _InnerConvolution:
    """The convolution inside an `ExchangeableConv2d`, by a `WinogradConv2d` for each rate that it asks for."""

    def __init__(self, layer: ExchangeableConv2d, watched: bool) -> None:
        self.layer, self.watched = layer, watched
        self.at: dict[int, WinogradConv2d] = {}

    def __call__(self, x: Tensor, rate: Rate, margin: int = 0) -> Tensor:
        if not isinstance(rate, int):
            return ExchangeableConv2d.convolve(self.layer, x, rate, margin)
        if margin:
            x = F.pad(x, [margin] * 4)
        if rate not in self.at:
            self.at[rate] = WinogradConv2d.from_conv(_plain(self.layer, rate)).train(self.layer.training)
            self.at[rate].watched = self.watched
        return cast(Tensor, self.at[rate](x))


def _plain(layer: ExchangeableConv2d, rate: int) -> nn.Conv2d:
    """The convolution of a layer at a rate, with the layer's own weight and no bias."""
    stride, padding, dilation, groups = (cast(Any, each) for each in layer.geometry(rate))
    kernel = cast(Any, layer.kernel_size), tuple(stride), tuple(padding), tuple(dilation)
    made = nn.Conv2d(layer.in_channels, layer.out_channels, *kernel, groups, bias=False, device="meta")
    made.weight = layer.weight
    return made


def _eligible(conv: nn.Module) -> bool:
    if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3) or conv.stride != (1, 1) or conv.groups != 1:
        return False
    narrow = min(conv.in_channels, conv.out_channels) < NARROWEST or conv.in_channels % 16 or conv.out_channels % 16
    same = conv.dilation[0] == conv.dilation[1] and conv.padding in (conv.dilation, "same")
    return not narrow and same and conv.padding_mode == "zeros" and not has_hooks(conv)


@functools.cache
def _margins() -> dict[torch.dtype, float]:
    """The fraction of the direct convolution's cost up to which Winograd is used, by type."""
    return {torch.float32: MARGIN} | ({} if has_matrix_units() else {torch.bfloat16: MARGIN_BFLOAT16})


def _recorded() -> bool:
    """Whether the network is being compiled, exported or traced: compiled transforms cannot be recorded."""
    return torch.compiler.is_compiling() or bool(cast(Any, torch.jit).is_tracing())


def _can_win() -> bool:
    """Whether the compiled transforms and oneDNN are here; transforms in PyTorch cost more than they save."""
    return numba_installed() and bool(cast(Any, torch.backends.mkldnn).is_available())


class _Prepared:
    """The transformed weights of a layer, for map sizes that recur packed.

    Packing costs about ten products, so the first image of a size does without. Each is up to seven times as large as
    the layer's own weight, so the plain one is given up when it is packed; for the next size it is unpacked again.
    """

    def __init__(self, weight: Tensor, watched: bool = True) -> None:
        self.weight, self.mark = weight.detach().float(), self._mark(weight)
        self.copy = weight.detach().clone() if watched else None
        self.transformed: dict[Tile, Tensor] = {}
        self.packings: OrderedDict[tuple[Tile, int], Tensor | None] = OrderedDict()
        self.lock = threading.RLock()

    @staticmethod
    def _mark(weight: Tensor) -> tuple[int, int]:
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def is_of(self, weight: Tensor) -> bool:
        """Whether it was made from this weight, unchanged since."""
        return self.mark == self._mark(weight) and (self.copy is None or torch.equal(self.copy, weight))

    def multiply(self, tiles: Tensor, tile: Tile) -> Tensor:
        """[1,p*C,n,1] -> [1,p*K,n,1]: the p matrix products as one grouped convolution, the fastest there is."""
        packed = self._packed(tile, tiles.shape[2])
        if packed is None:
            return F.conv2d(tiles, self.weight_for(tile), groups=products_of(tile))
        return _packed_product(tiles, packed, products_of(tile))

    def weight_for(self, tile: Tile) -> Tensor:
        """As `winograd_weight` gives it."""
        with self.lock:
            if tile not in self.transformed:
                kept = self._kept(tile)
                self.transformed[tile] = kept[0].to_dense() if kept else winograd_weight(self.weight, tile)
            return self.transformed[tile]

    def _kept(self, tile: Tile) -> list[Tensor]:
        return [packed for (kind, _), packed in self.packings.items() if kind == tile and packed is not None]

    def _packed(self, tile: Tile, count: int) -> Tensor | None:
        if not _can_pack():
            return None
        size = tile, count
        with self.lock:
            seen = size in self.packings
            packed = self.packings.pop(size, None)
            if seen and packed is None:
                made = _pack(self.weight_for(tile), count, products_of(tile))
                packed = next((other for other in self._kept(tile) if _are_packed_alike(made, other)), made)
                self.transformed.pop(tile, None)
            self.packings[size] = packed
            if len(self.packings) > PACKINGS:
                self.packings.popitem(last=False)
        return packed


def _pack(transformed: Tensor, count: int, products: int) -> Tensor:
    """The weight in the order that oneDNN wants for this many tiles."""
    shape = [1, products * transformed.shape[1], count, 1]
    pack = cast(Any, torch._C._nn).mkldnn_reorder_conv2d_weight
    return cast(Tensor, pack(transformed.to_mkldnn(), [0, 0], [1, 1], [1, 1], products, shape))


def _are_packed_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two packings of the same values are in the same order. Multiplying by one in another order takes up to 50
    times as long."""
    library = cast(Any, torch.ops.mkldnn)
    places = [(library.data_ptr(each), library._nbytes(each)) for each in (one, other)]
    first, second = (np.frombuffer((ctypes.c_char * size).from_address(place), np.uint8) for place, size in places)
    return np.array_equal(first, second)


def _packed_product(tiles: Tensor, packed: Tensor, products: int) -> Tensor:
    multiply = torch.ops.mkldnn._convolution_pointwise
    return cast(Tensor, multiply(tiles, packed, None, [0, 0], [1, 1], [1, 1], products, "none", [], ""))


@functools.cache
def _can_pack() -> bool:
    """Whether this PyTorch has the private operators that `torch.compile` freezes weights with, and they are right."""
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(1, 36 * 16, 5, 1, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(36 * 16, 16, 1, 1, generator=generator)
    try:
        packed = _pack(weight, 5, 36)
        found = _packed_product(tiles, packed, 36)
        unpacks = torch.equal(packed.to_dense(), weight) and _are_packed_alike(packed, packed)
    except (AttributeError, RuntimeError, TypeError) as error:
        logging.getLogger("degrid").info("Winograd continues without packed weights, somewhat slower: %s", error)
        return False
    return unpacks and torch.allclose(found, F.conv2d(tiles, weight, groups=36), atol=1e-4)
