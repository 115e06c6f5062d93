"""Winograd's algorithm on the dilated grid: 3x3 convolutions in float32 with a quarter of the multiplications or less.

A convolution of rate r is an ordinary 3x3 convolution on each of r² phase grids. Each grid is cut into tiles of 4x4
outputs, gathered with stride r, so that the map itself is never rearranged. A tile needs 36 products per channel pair
instead of 144. Tiles of 3 outputs along an axis, 5 products instead of 9, waste less where phases are short: 65
pixels at rate 12 are phases of 5 and 6, which is two tiles of either kind. Tiles of 6 outputs, 8 products for 18, are
the best on large maps. Where the rate is at least half the map, no phase has more than 2 pixels; with nothing but
zeros around, 3 products give both, instead of 4.

The largest error in float32 is 1e-5 to 2e-5 of the largest output of the same tile; the direct convolution's is 1e-6 of
the output itself. So next to a pixel 10,000 times as large as the others, outputs that it does not reach are off by
some percent of their own size. A NaN or an infinity in the input reaches all outputs of each tile that reads it. There
is no gradient.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.kernels.support import numba_installed, use_torch_threads

Matrix = tuple[tuple[float, ...], ...]
Tile = tuple[int, int]
"""Outputs of a tile down and across, each 3, 4 or 6; or PAIRS."""
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
    6: (
        (
            (1, 0, -21 / 4, 0, 21 / 4, 0, -1, 0),
            (0, 1, 1, -17 / 4, -17 / 4, 1, 1, 0),
            (0, -1, 1, 17 / 4, -17 / 4, -1, 1, 0),
            (0, 1 / 2, 1 / 4, -5 / 2, -5 / 4, 2, 1, 0),
            (0, -1 / 2, 1 / 4, 5 / 2, -5 / 4, -2, 1, 0),
            (0, 2, 4, -5 / 2, -5, 1 / 2, 1, 0),
            (0, -2, 4, 5 / 2, -5, -1 / 2, 1, 0),
            (0, -1, 0, 21 / 4, 0, -21 / 4, 0, 1),
        ),
        (
            (1, 0, 0),
            (-2 / 9, -2 / 9, -2 / 9),
            (-2 / 9, 2 / 9, -2 / 9),
            (1 / 90, 1 / 45, 2 / 45),
            (1 / 90, -1 / 45, 2 / 45),
            (32 / 45, 16 / 45, 8 / 45),
            (32 / 45, -16 / 45, 8 / 45),
            (0, 0, 1),
        ),
        (
            (1, 1, 1, 1, 1, 1, 1, 0),
            (0, 1, -1, 2, -2, 1 / 2, -1 / 2, 0),
            (0, 1, 1, 4, 4, 1 / 4, 1 / 4, 0),
            (0, 1, -1, 8, -8, 1 / 8, -1 / 8, 0),
            (0, 1, 1, 16, 16, 1 / 16, 1 / 16, 0),
            (0, 1, -1, 32, -32, 1 / 32, -1 / 32, 1),
        ),
    ),
}
"""The matrices B^T, G and A^T for each number of outputs m: along an axis, m outputs are A^T [(G g) * (B^T d)] of a
filter g and m + 2 inputs d; the points are 0, 1, -1, 2, infinity, -2 from four outputs on, and 1/2 and -1/2 for six.
For 2 outputs there are 2 inputs, and 3 products by Karatsuba's method."""

NARROWEST = 64
"""Fewest channels in and out: with fewer, the transforms cost what the products save."""
TRANSFORM = 85
"""What transforming one number costs, in multiplications: 88 to 110 on a busy AVX-512 Xeon, about 68 on an idle one,
about 40 on a Zen 4."""
MARGIN = 0.95
"""Largest cost, as a fraction of the direct convolution's, that is worth the lower exactness."""
LARGE = 1.1
"""How many times as much other tiles must cost than those with six outputs, whose weights take up to 1.8 times the
memory of those of four."""
LIMIT = 1 << 23
"""Most numbers of transformed tiles at once, 32 MiB; twice that is in memory, input and output."""
_PART = 1 << 20
"""Most numbers of a transformed weight in float64 at once."""

Multiply = Callable[[Tensor], Tensor]


def winograd_weight(weight: Tensor, tile: Tile = (4, 4), exact: bool = True) -> Tensor:
    """The transformed weight G g G^T of p x q products per tile, [K,C,3,3] -> [p*q*K,C,1,1].

    Given in the weight's type, and computed in float64 if `exact`.
    """
    kind = torch.float64 if exact else weight.dtype
    down, across = (torch.tensor(MATRICES[m][1], dtype=torch.float64) for m in tile)
    both = torch.kron(down, across).to(weight.device, kind)  # [p*q,9]
    count, channels = weight.shape[:2]

    def made(part: Tensor) -> Tensor:
        taps = part.detach().permute(2, 3, 0, 1).reshape(9, -1).to(kind)
        return torch.mm(both, taps).to(weight.dtype).view(len(both), len(part), channels)

    each = max(1, _PART // (len(both) * channels)) if exact else count  # float64 takes twice the memory of the result
    if each >= count:
        return made(weight).view(-1, channels, 1, 1)
    transformed = weight.new_empty(len(both), count, channels)
    for first in range(0, count, each):
        transformed[:, first : first + each] = made(weight[first : first + each])
    return transformed.view(-1, channels, 1, 1)


@functools.lru_cache(maxsize=1024)
def best_tile(
    shape: tuple[int, ...], out_channels: int, rate: int, margin: float = MARGIN, weight_cost: float = 0
) -> Tile | None:
    """The tiles with which the compiled Winograd convolution pays for an input of this shape, [N,C,H,W]; or None.

    The direct convolution multiplies (H + 2 max(H-r,0)) (W + 2 max(W-r,0)) times per pair of channels, as it skips taps
    outside the map; Winograd m + 2 times along each axis of a tile of m outputs, or 3 times per pair and once per
    pixel without a partner. On top, for each product C numbers are transformed on the way in and K on the way out, each
    at the cost of TRANSFORM multiplications. It pays up to `margin` of the direct cost. Where the weight is new at each
    call, each number of the transformed one costs `weight_cost` multiplications, for each part computed at once.

    Both channel counts must be multiples of 16 from 64 up, for which the products run at full speed.
    """
    batch, channels, height, width = shape
    if min(channels, out_channels) < NARROWEST or channels % 16 or out_channels % 16:
        return None

    def cost(tile: Tile) -> float:
        down, across = (
            len(_corners(size, rate, outputs)) * (outputs + 2)
            for size, outputs in zip((height, width), tile, strict=True)
        )
        products = batch * ((2 * height - rate) * (2 * width - rate) if tile == PAIRS else down * across)
        parts = -(-products * max(channels, out_channels) // LIMIT)
        transforms = products * (TRANSFORM / channels + TRANSFORM / out_channels)
        return products + transforms + parts * products_of(tile) * weight_cost

    def weighed(tile: Tile) -> float:
        return cost(tile) * (LARGE if 6 in tile else 1)

    in_pairs = all(rate < size <= 2 * rate for size in (height, width))
    tiles = [PAIRS] if in_pairs else list(itertools.product((3, 4, 6), (3, 4, 6)))
    tile = min(tiles, key=weighed)
    direct = (height + 2 * max(height - rate, 0)) * (width + 2 * max(width - rate, 0))
    return tile if cost(tile) <= margin * batch * direct else None


def products_of(tile: Tile) -> int:
    """Products per tile and pair of channels."""
    return len(MATRICES[tile[0]][0]) * len(MATRICES[tile[1]][0])


@functools.lru_cache(maxsize=256)
def _corners(size: int, rate: int, outputs: int) -> np.ndarray:
    """Where tiles of this many outputs start along an axis: in each phase grid the first pixel and so on; int64.

    Phases with fewer pixels may need fewer tiles: 65 pixels at rate 4 are 17 tiles of 4, not four times five.
    """
    return np.concatenate([np.arange(phase, size, outputs * rate) for phase in range(min(rate, size))])


def convolve_tiles(x: Tensor, multiply: Multiply, count: int, rate: int, bias: Tensor | None, tile: Tile) -> Tensor:
    """What `F.conv2d(x, weight, bias, 1, rate, rate)` gives, up to rounding.

    Compiled for float32 on the CPU, from 64 channels in and out on, where numba is installed; elsewhere as PyTorch.

    Args:
        x: [N,C,H,W], in any memory format; channels_last needs no copy.
        multiply: takes transformed tiles, as an image [1,p*C,n,1] of p products, to [1,p*K,n,1]: a convolution in p
            groups with the weight of `winograd_weight` for this tile.
        count: K, output channels.
        rate: the dilation rate, from 1 on; the padding is zeros, `rate` wide, so that the size stays.
        bias: [K].
        tile: outputs of a tile down and across, each 3, 4 or 6.
    Returns:
        [N,K,H,W], channels_last.
    """
    pixels = x.detach().permute(0, 2, 3, 1).contiguous()
    bias = x.new_zeros(count) if bias is None else bias.detach().contiguous()
    wide = min(x.shape[1], count) >= NARROWEST
    compiled = wide and x.device.type == "cpu" and x.dtype == torch.float32 and numba_installed()
    return (_compiled if compiled else _in_torch)(pixels, multiply, bias, rate, tile).permute(0, 3, 1, 2)


class _Workspace(threading.local):
    """Memory for transformed tiles, one for all layers of a thread: new memory costs page faults at every call."""

    memory = np.empty(0, np.float32)

    def take(self, *shape: int) -> np.ndarray:
        """Float32 of this shape, with arbitrary values; numpy requests large pages, which suit strided access."""
        count = math.prod(shape)
        if self.memory.size < count:
            self.memory = np.empty(count, np.float32)
        return self.memory[:count].reshape(shape)


_workspace = _Workspace()


def _compiled(x: Tensor, multiply: Multiply, bias: Tensor, rate: int, tile: Tile) -> Tensor:
    """x: [N,H,W,C]. Gives [N,H,W,K]."""
    from degrid.kernels.winograd_numba import transform_input, transform_output

    use_torch_threads()
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, height, width, len(bias))
    rows, columns = _corners(height, rate, tile[0]), _corners(width, rate, tile[1])
    tiles, products = batch * len(rows) * len(columns), products_of(tile)
    parts = -(-tiles * products * max(channels, len(bias)) // LIMIT)
    each = -(-tiles // max(parts, 1))
    space = _workspace.take(each, products, channels)
    image = torch.from_numpy(space).view(1, each, 1, products * channels).permute(0, 3, 1, 2)
    for part in range(parts):
        first = min(part * each, tiles - each)  # the last part overlaps, so that all have one size and one packing
        transform_input(x.numpy(), rows, columns, rate, tile, first, space)
        found = multiply(image).permute(0, 2, 3, 1).reshape(each, products, len(bias))
        transform_output(found.numpy(), rows, columns, rate, tile, first, bias.numpy(), out.numpy())
    return out


def _in_torch(x: Tensor, multiply: Multiply, bias: Tensor, rate: int, tile: Tile) -> Tensor:
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
    padded = F.pad(x, (0, 0, rate, (tile[1] + 1) * rate, rate, (tile[0] + 1) * rate))
    patches = padded[:, (rows[:, None] + down).flatten()][:, :, (columns[:, None] + across).flatten()]
    patches = patches.view(batch, len(rows), len(down), len(columns), len(across), channels)
    tiles = torch.einsum("iu,nyuxvc,jv->nyxijc", into_rows, patches, into_columns)
    image = tiles.reshape(1, -1, 1, products_of(tile) * channels).permute(0, 3, 1, 2)
    found = multiply(image).permute(0, 2, 3, 1)
    found = found.reshape(batch, len(rows), len(columns), len(down), len(across), len(bias))
    out = torch.einsum("iu,nyxuvk,jv->nyixjk", from_rows, found, from_columns) + bias
    out = out.reshape(batch, tile[0] * len(rows), tile[1] * len(columns), len(bias))
    # Each pixel is in one tile; sorted by place, those outside the map come last.
    out = out[:, (rows[:, None] + down[: tile[0]]).flatten().argsort()[:height]]
    return out[:, :, (columns[:, None] + across[: tile[1]]).flatten().argsort()[:width]]


def convolve_pairs(x: Tensor, transformed: Tensor, rate: int, bias: Tensor | None) -> Tensor:
    """As `convolve_tiles`, with tiles of two outputs, where H and W are from `rate` + 1 to twice that.

    The two are `rate` pixels apart, so that whole parts of the map are multiplied at once. A pixel without a partner is
    multiplied by the filter's middle alone, as is the sum of two that have each other.
    """
    weights = iter(transformed.view(9, -1, *transformed.shape[1:]))
    found = []
    for rows in _as_pairs(x.detach(), rate, 2):
        products = [F.conv2d(columns, next(weights)) for columns in _as_pairs(rows, rate, 3)]
        found.append(_from_pairs(products, 3))
    out = _from_pairs(found, 2).contiguous(memory_format=torch.channels_last)
    if bias is not None:
        out += bias.detach()[:, None, None]
    return out


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
