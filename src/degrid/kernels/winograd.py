"""Winograd's F(4x4,3x3) on the dilated grid: 3x3 convolutions in float32 with a quarter of the multiplications.

A convolution of rate r is an ordinary 3x3 convolution on each of r² phase grids. Each grid is cut into tiles of 4x4
outputs, gathered with stride r, so that the map itself is never rearranged. A tile needs 36 products per channel pair
instead of 144. Tiles of 3 outputs along an axis, 5 products instead of 9, leave less over where phases are short: 65
pixels at rate 12 are phases of 5 and 6, which is two tiles of either kind. Where the rate is at least half the map, no
phase has more than 2 pixels; with nothing but zeros around, 3 products give both, instead of 4.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.kernels.support import has_matrix_units, numba_installed, use_torch_threads
from degrid.types import UserError

Matrix = tuple[tuple[float, ...], ...]
Tile = tuple[int, int]
"""Outputs of a tile down and across, each 3 or 4; or PAIRS."""
PAIRS: Tile = (2, 2)
"""Tiles of two outputs with zeros around, for rates from half the map on."""

MATRICES: dict[int, tuple[Matrix, Matrix, Matrix]] = {
    2: (((1, 1), (0, 1), (1, 0)), ((0, 1, 0), (0, -1, 1), (1, -1, 0)), ((1, 1, 0), (1, 0, 1))),
    3: (
        ((2, -1, -2, 1, 0), (0, -2, -1, 1, 0), (0, 2, -3, 1, 0), (0, -1, 0, 1, 0), (0, 2, -1, -2, 1)),
        ((1 / 2, 0, 0), (-1 / 2, -1 / 2, -1 / 2), (-1 / 6, 1 / 6, -1 / 6), (1 / 6, 1 / 3, 2 / 3), (0, 0, 1)),
        ((1, 1, 1, 1, 0), (0, 1, -1, 2, 0), (0, 1, 1, 4, 1)),
    ),
    4: (
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}
"""For each number of outputs m the matrices B^T, G and A^T: along an axis, m outputs are A^T [(G g) * (B^T d)] of a
filter g and m + 2 inputs d; the points are 0, 1, -1, 2, infinity, and -2 for four outputs. For 2 outputs there are 2
inputs, and 3 products by Karatsuba's method."""

NARROWEST = 64
"""Fewest channels in and out: with fewer, the transforms cost what the products save."""
TRANSFORM = 85
"""What transforming one number costs, in multiplications: 88 to 110 on a busy AVX-512 Xeon, about 68 on an idle one,
about 40 on a Zen 5."""
MARGIN = 0.95
"""Largest cost, as a share of the direct convolution's, that is worth the lower exactness."""
MARGIN_BFLOAT16 = 0.48
"""The same beside a direct convolution in bfloat16 by vector units, which takes about half of float32's time."""
LIMIT = 1 << 23
"""Most numbers of transformed tiles at once, 32 MiB; twice that is in memory, input and output."""
PACKINGS = 3
"""Most map sizes for which a layer keeps its weight packed, each four times the size of the weight."""

_Multiply = Callable[[Tensor], Tensor]


def winograd_weight(weight: Tensor, tile: Tile = (4, 4)) -> Tensor:
    """The transformed weight G g G^T of p x q products per tile, [K,C,3,3] -> [p*q*K,C,1,1].

    Computed in float64, given in the weight's type.
    """
    down, across = (torch.tensor(MATRICES[m][1], dtype=torch.float64, device=weight.device) for m in tile)
    transformed = torch.einsum("ia,kcab,jb->ijkc", down, weight.detach().double(), across)
    return transformed.reshape(-1, weight.shape[1], 1, 1).to(weight.dtype).contiguous()


def winograd_conv2d(
    x: Tensor, transformed: Tensor, rate: int, bias: Tensor | None = None, relu: bool = False, tile: Tile = (4, 4)
) -> Tensor:
    """What `F.conv2d(x, weight, bias, 1, rate, rate)` gives, up to rounding; and ReLU after it, if wanted.

    The largest error in float32 is 1e-5 to 2e-5 of the largest output; the direct convolution's is 1e-6. A NaN or an
    infinity in the input reaches all outputs of each tile that reads it. There is no gradient.

    Compiled for float32 on the CPU, from 64 channels in and out on, where numba is installed; elsewhere as PyTorch.

    Args:
        x: [N,C,H,W], in any memory format; channels_last needs no copy.
        transformed: the weight as `winograd_weight` gives it for this tile, of x's type.
        rate: the dilation rate, from 1 on; the padding is zeros, `rate` wide, so that the size stays.
        bias: [K].
        tile: outputs of a tile down and across, each 3 or 4; or PAIRS, where H and W are from `rate` + 1 to twice that.
    Returns:
        [N,K,H,W], channels_last.
    """
    count = _products(tile)
    if tile == PAIRS:
        return _in_pairs(x, transformed, rate, bias, relu)
    multiply = functools.partial(F.conv2d, weight=transformed, groups=count)
    return _convolve(x, multiply, len(transformed) // count, rate, bias, relu, tile)


def best_tile(shape: tuple[int, ...], out_channels: int, rate: int, margin: float = MARGIN) -> Tile | None:
    """With which tiles the compiled Winograd convolution is worth it for an input of this shape, [N,C,H,W]; or None.

    The direct convolution multiplies (H + 2 max(H-r,0)) (W + 2 max(W-r,0)) times per pair of channels, as it skips taps
    outside the map; Winograd m + 2 times along each axis of a tile of m outputs, or 3 times per pair and once per
    pixel without a partner. On top, for each product C numbers are transformed on the way in and K on the way out, each
    at the cost of TRANSFORM multiplications. It pays up to `margin` of the direct cost.

    Both channel counts must be multiples of 16 from 64 up, for which the products run at full speed.
    """
    _, channels, height, width = shape
    if min(channels, out_channels) < NARROWEST or channels % 16 or out_channels % 16:
        return None
    if all(rate < size <= 2 * rate for size in (height, width)):
        tile, products = PAIRS, (2 * height - rate) * (2 * width - rate)
    else:
        down, across = (
            min((len(_corners(size, rate, outputs)) * (outputs + 2), outputs) for outputs in (3, 4))
            for size in (height, width)
        )
        tile, products = (down[1], across[1]), down[0] * across[0]
    direct = (height + 2 * max(height - rate, 0)) * (width + 2 * max(width - rate, 0))
    return tile if products * (1 + TRANSFORM / channels + TRANSFORM / out_channels) <= margin * direct else None


def _products(tile: Tile) -> int:
    """Products per tile and pair of channels."""
    return len(MATRICES[tile[0]][0]) * len(MATRICES[tile[1]][0])


@functools.lru_cache(maxsize=256)
def _corners(size: int, rate: int, outputs: int) -> np.ndarray:
    """Where tiles of so many outputs start along an axis: in each phase grid the first pixel and so on; int64.

    Phases with fewer pixels may need fewer tiles: 65 pixels at rate 4 are 17 tiles of 4, not four times five.
    """
    return np.concatenate([np.arange(phase, size, outputs * rate) for phase in range(min(rate, size))])


def _convolve(
    x: Tensor, multiply: _Multiply, count: int, rate: int, bias: Tensor | None, relu: bool, tile: Tile
) -> Tensor:
    """`multiply` takes an image [1,p*C,n,1] of transformed tiles of p products to one of [1,p*K,n,1]; K is `count`."""
    pixels = x.detach().permute(0, 2, 3, 1).contiguous()
    bias = x.new_zeros(count) if bias is None else bias.detach().contiguous()
    wide = min(x.shape[1], count) >= NARROWEST
    compiled = wide and x.device.type == "cpu" and x.dtype == torch.float32 and numba_installed()
    return (_compiled if compiled else _in_torch)(pixels, multiply, bias, rate, relu, tile).permute(0, 3, 1, 2)


class _Workspace(threading.local):
    """Memory for transformed tiles, one for all layers of a thread: new memory costs page faults at every call."""

    memory = np.empty(0, np.float32)

    def take(self, *shape: int) -> np.ndarray:
        """Float32 of this shape, with arbitrary values; numpy asks for large pages, which strided access wants."""
        count = math.prod(shape)
        if self.memory.size < count:
            self.memory = np.empty(count, np.float32)
        return self.memory[:count].reshape(shape)


_workspace = _Workspace()


def _compiled(x: Tensor, multiply: _Multiply, bias: Tensor, rate: int, relu: bool, tile: Tile) -> Tensor:
    """x: [N,H,W,C]. Gives [N,H,W,K]."""
    from degrid.kernels.winograd_numba import transform_input, transform_output

    use_torch_threads()
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, height, width, len(bias))
    rows, columns = _corners(height, rate, tile[0]), _corners(width, rate, tile[1])
    tiles, products = batch * len(rows) * len(columns), _products(tile)
    parts = -(-tiles * products * max(channels, len(bias)) // LIMIT)
    each = -(-tiles // max(parts, 1))
    space = _workspace.take(each, products, channels)
    image = torch.from_numpy(space).view(1, each, 1, products * channels).permute(0, 3, 1, 2)
    for part in range(parts):
        first = min(part * each, tiles - each)  # the last part overlaps, so that all have one size and one packing
        transform_input(x.numpy(), rows, columns, rate, tile, first, space)
        found = multiply(image).permute(0, 2, 3, 1).reshape(each, products, len(bias))
        transform_output(found.numpy(), rows, columns, rate, tile, first, bias.numpy(), relu, out.numpy())
    return out


def _in_torch(x: Tensor, multiply: _Multiply, bias: Tensor, rate: int, relu: bool, tile: Tile) -> Tensor:
    """The twin: the same tiles in the same order, all at once, in any floating type and on any device."""
    batch, height, width, channels = x.shape
    rows, columns = (
        torch.from_numpy(_corners(size, rate, outputs)).to(x.device)
        for size, outputs in zip((height, width), tile, strict=True)
    )
    (into_rows, _, from_rows), (into_columns, _, from_columns) = (
        [torch.tensor(matrix, dtype=x.dtype, device=x.device) for matrix in MATRICES[outputs]] for outputs in tile
    )
    down, across = (rate * torch.arange(outputs + 2, device=x.device) for outputs in tile)
    padded = F.pad(x, (0, 0, rate, 5 * rate, rate, 5 * rate))
    patches = padded[:, (rows[:, None] + down).flatten()][:, :, (columns[:, None] + across).flatten()]
    patches = patches.view(batch, len(rows), len(down), len(columns), len(across), channels)
    tiles = torch.einsum("iu,nyuxvc,jv->nyxijc", into_rows, patches, into_columns)
    image = tiles.reshape(1, -1, 1, _products(tile) * channels).permute(0, 3, 1, 2)
    found = multiply(image).permute(0, 2, 3, 1)
    found = found.reshape(batch, len(rows), len(columns), len(down), len(across), len(bias))
    out = torch.einsum("iu,nyxuvk,jv->nyixjk", from_rows, found, from_columns) + bias
    out = out.reshape(batch, tile[0] * len(rows), tile[1] * len(columns), len(bias))
    # Each pixel is in one tile; sorted by place, those outside the map come last.
    out = out[:, (rows[:, None] + down[: tile[0]]).flatten().argsort()[:height]]
    out = out[:, :, (columns[:, None] + across[: tile[1]]).flatten().argsort()[:width]]
    return out.relu() if relu else out


def _in_pairs(x: Tensor, transformed: Tensor, rate: int, bias: Tensor | None, relu: bool) -> Tensor:
    """With tiles of two outputs: pixels that are `rate` apart, so whole parts of the map are multiplied at once.

    A pixel without a partner is multiplied by the filter's middle alone, as is the sum of two that have each other.
    """
    weights = iter(transformed.view(9, -1, *transformed.shape[1:]))
    found = []
    for rows in _as_pairs(x.detach(), rate, 2):
        products = [F.conv2d(columns, next(weights)) for columns in _as_pairs(rows, rate, 3)]
        found.append(_from_pairs(products, 3))
    out = _from_pairs(found, 2).contiguous(memory_format=torch.channels_last)
    if bias is not None:
        out += bias.detach()[:, None, None]
    return out.relu_() if relu else out


def _as_pairs(x: Tensor, rate: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """B^T along an axis: the sum of partners, and between them pixels that have none; the second ones; the first."""
    pairs = x.shape[axis] - rate
    first, second = x.narrow(axis, 0, pairs), x.narrow(axis, rate, pairs)
    sums = x.narrow(axis, 0, rate).clone(memory_format=torch.channels_last)
    sums.narrow(axis, 0, pairs).add_(second)
    return sums, second, first


def _from_pairs(products: list[Tensor], axis: int) -> Tensor:
    """A^T along an axis."""
    sums, second, first = products
    pairs = first.shape[axis]
    both, alone = sums.narrow(axis, 0, pairs), sums.narrow(axis, pairs, sums.shape[axis] - pairs)
    return torch.cat([both + second, alone, both + first], axis)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution that takes Winograd's way where that pays, and is the nn.Conv2d that it was elsewhere.

    It goes that way for float32 on the CPU without gradient (`torch.no_grad` or `inference_mode`) and autocast, if
    numba is installed and `best_tile` has tiles for the input's size. For bfloat16 too where it saves so much that its
    float32 is still the faster, on processors without matrix units. Made by `from_conv` or `use_winograd`.

    For each kind of tile the transformed weight takes up to four times the memory of the weight, and as much again for
    each of up to PACKINGS map sizes that come more than once. Neither is saved or copied; both are made anew when the
    weight changes.
    """

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
            self._prepared = _Prepared(self.weight)
        bias, rate = None if self.bias is None else self.bias.float(), self.dilation[0]
        with torch.autocast("cpu", enabled=False):
            if tile == PAIRS:
                found = _in_pairs(x.float(), self._prepared.weight_for(tile), rate, bias, relu=False)
            else:
                multiply = functools.partial(self._prepared.multiply, tile=tile)
                found = _convolve(x.float(), multiply, self.out_channels, rate, bias, relu=False, tile=tile)
        return found.to(x.dtype)

    def _tile(self, x: Tensor) -> Tile | None:
        """The tiles to go with, None for the direct convolution."""
        if torch.is_grad_enabled() or _recorded() or x.ndim != 4 or x.device.type != "cpu" or not _can_win():
            return None
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        margin = _margins().get(kind)
        if margin is None or not kind == x.dtype == self.weight.dtype:
            return None
        return best_tile(tuple(x.shape), self.out_channels, self.dilation[0], margin)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be computed again: packed weights can be neither copied nor saved."""
        return {name: value for name, value in self.__dict__.items() if name != "_prepared"}


def use_winograd(model: nn.Module) -> int:
    """Replace every 3x3 convolution of a model that Winograd may speed up by a `WinogradConv2d`, in place.

    Names, parameters and what the network computes stay, the latter up to rounding. Fold batch norm before; the layer
    still decides for each input. Smoothed layers stay what they are, and take that way for their own convolution. Left
    alone are other subclasses of nn.Conv2d, and what has hooks.

    Returns:
        How many were replaced. A `model` that is itself a convolution stays; use `WinogradConv2d.from_conv`.
    """
    made: dict[nn.Module, WinogradConv2d] = {}
    smoothed = [layer for layer in model.modules() if _is_smoothed(layer) and _eligible(_plain(layer, 1))]
    for layer in smoothed:
        layer.__dict__["convolve"] = _SmoothedConvolution(cast(nn.Conv2d, layer))
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _eligible(child):
                made[child] = made.get(child) or WinogradConv2d.from_conv(cast(nn.Conv2d, child))
                setattr(parent, name, made[child])
    return len(made) + len(smoothed)


class _SmoothedConvolution:
    """What a smoothed layer convolves with, `SmoothedConv2d.convolve`: a `WinogradConv2d` for each rate it asks for."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer
        self.at: dict[int, WinogradConv2d] = {}

    def __call__(self, x: Tensor, rate: int, margin: int = 0) -> Tensor:
        if margin:
            x = F.pad(x, [margin] * 4)
        if rate not in self.at:
            self.at[rate] = WinogradConv2d.from_conv(_plain(self.layer, rate)).train(self.layer.training)
        return cast(Tensor, self.at[rate](x))


def _is_smoothed(layer: nn.Module) -> bool:
    """Whether it convolves by its own method, as `degrid.smoothing.SmoothedConv2d` does, with a weight that is stored
    and not computed (torch.nn.utils.parametrize)."""
    smoothed = isinstance(layer, nn.Conv2d) and hasattr(layer, "convolve") and hasattr(layer, "geometry")
    return smoothed and "weight" in layer._parameters


def _plain(layer: nn.Module, rate: int) -> nn.Conv2d:
    """The convolution of a layer at a rate, with the layer's own weight and no bias."""
    conv = cast(nn.Conv2d, layer)
    stride, padding, dilation, groups = (cast(Any, each) for each in cast(Any, conv).geometry(rate))
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast(Any, conv.kernel_size),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups,
        bias=False,
        device="meta",
    )
    made.weight = conv.weight
    return made


def _eligible(conv: nn.Module) -> bool:
    if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3) or conv.stride != (1, 1) or conv.groups != 1:
        return False
    narrow = min(conv.in_channels, conv.out_channels) < NARROWEST or conv.in_channels % 16 or conv.out_channels % 16
    same = conv.dilation[0] == conv.dilation[1] and conv.padding in (conv.dilation, "same")
    hooked = conv._forward_hooks or conv._forward_pre_hooks
    return not narrow and same and conv.padding_mode == "zeros" and not hooked


@functools.cache
def _margins() -> dict[torch.dtype, float]:
    """By type, what share of the direct convolution's cost is still worth it."""
    return {torch.float32: MARGIN} | ({} if has_matrix_units() else {torch.bfloat16: MARGIN_BFLOAT16})


def _recorded() -> bool:
    """Whether the network is being compiled, exported or traced: compiled transforms cannot be recorded."""
    return torch.compiler.is_compiling() or bool(cast(Any, torch.jit).is_tracing())


def _can_win() -> bool:
    """Whether what the measurements were made with is here; the PyTorch transforms are slower than they save."""
    return numba_installed() and bool(cast(Any, torch.backends.mkldnn).is_available())


class _Prepared:
    """The transformed weights of a layer, and packed for the map sizes that come again.

    Packing costs about ten products, so that the first image of a size goes without.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.mark = weight.detach().float(), self._mark(weight)
        self.transformed: dict[Tile, Tensor] = {}
        self.packings: OrderedDict[tuple[Tile, int], Tensor | None] = OrderedDict()
        self.lock = threading.Lock()

    @staticmethod
    def _mark(weight: Tensor) -> tuple[int, int]:
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def is_of(self, weight: Tensor) -> bool:
        """Whether it was made from this weight as it is now."""
        return self.mark == self._mark(weight)

    def multiply(self, tiles: Tensor, tile: Tile) -> Tensor:
        """[1,p*C,n,1] -> [1,p*K,n,1]: the p matrix products as one grouped convolution, the fastest there is."""
        packed = self._packed(tile, tiles.shape[2])
        if packed is None:
            return F.conv2d(tiles, self.weight_for(tile), groups=_products(tile))
        return _packed_product(tiles, packed, _products(tile))

    def weight_for(self, tile: Tile) -> Tensor:
        """As `winograd_weight` gives it."""
        if tile not in self.transformed:
            self.transformed[tile] = winograd_weight(self.weight, tile)
        return self.transformed[tile]

    def _packed(self, tile: Tile, count: int) -> Tensor | None:
        if not _can_pack():
            return None
        size = tile, count
        with self.lock:
            seen = size in self.packings
            packed = self.packings.pop(size, None)
            if seen and packed is None:
                packed = _pack(self.weight_for(tile), count, _products(tile))
            self.packings[size] = packed
            if len(self.packings) > PACKINGS:
                self.packings.popitem(last=False)
        return packed


def _pack(transformed: Tensor, count: int, products: int) -> Tensor:
    """The weight in the order that oneDNN wants for so many tiles."""
    shape = [1, products * transformed.shape[1], count, 1]
    pack = cast(Any, torch._C._nn).mkldnn_reorder_conv2d_weight
    return cast(Tensor, pack(transformed.to_mkldnn(), [0, 0], [1, 1], [1, 1], products, shape))


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
        found = _packed_product(tiles, _pack(weight, 5, 36), 36)
    except (AttributeError, RuntimeError, TypeError) as error:
        logging.getLogger("degrid").info("Winograd goes on without packed weights, somewhat slower: %s", error)
        return False
    return torch.allclose(found, F.conv2d(tiles, weight, groups=36), atol=1e-4)
