"""Convolutions of float32 training on the CPU, forward and backward, by the fastest algorithm for each."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from degrid.kernels.support import multiplies_fast, numba_installed, traced
from degrid.kernels.winograd import NARROWEST, PAIRS, Tile, best_tile, convolve_tiles, products_of, winograd_weight

TOLERANCE = 1e-4
"""How much a result may differ from the direct convolution's, of the largest one; rounding makes about 1e-5."""
WEIGHT_COST = 150
"""Cost of one number of a transformed weight per call, in multiplications: computing it and packing it."""
MARGIN = 0.9
"""Largest cost of Winograd's algorithm that pays off, as a fraction of the direct convolution's."""
REACHED = 0.75
"""Largest share of taps inside the map up to which the filter's gradient is computed tap by tap."""
WIDE = 256
"""Fewest channels for which the library's gradient of a filter is slower than with the channels first, copies included,
or, where matrix products are fast and the filter is dilated, than as nine of these."""
PIXELS = 2000
"""Fewest pixels of all maps of a batch for it with the channels first."""

Compute = Callable[[], Tensor]
Part = tuple[slice, ...]
Way = Callable[..., Tensor]
"""One way to a convolution of (x, weight, bias, rate), or to its filter's gradient of (grad, x, weight, rate)."""


class _Active(threading.local):
    mode: FastConvolutions | None = None


_active = _Active()


def active() -> FastConvolutions | None:
    """The mode within which this thread is, for functions that differentiate a convolution by themselves."""
    return _active.mode


class FastConvolutions(TorchFunctionMode):
    """Within it PyTorch's convolutions are computed, and differentiated, by the fastest algorithm that is known.

    That is done for float32 on the CPU, outside autocast, where something is trained, for every layer or function that
    calls `torch.conv2d` with stride 1 on a map in channels_last:

    - 3x3 convolutions, and their gradient for the input, by Winograd's algorithm where `best_tile` says so;
    - the filter's gradient of 3x3 convolutions tap by tap, where many taps lie outside the map or matrix products are
      fast, or with channels first;
    - dilated 3x3 depthwise convolutions tap by tap, where many taps lie outside the map, and their filter's gradient,
      or otherwise that one from periodic subsamples of the maps, whose filter is not dilated; their gradient for the
      input as a convolution, which the library computes faster;
    - the gradients of 1x1 convolutions as matrix products, where these are fast; where not, the convolution and its
      gradients on one thread by oneDNN, where PyTorch takes a slower library.

    The first time that a kind of call comes (a pass, a size and a rate), its result is compared with the direct one. If
    they differ by more than TOLERANCE, calls of this kind are computed directly from then on, and a warning says so.
    Which algorithm runs depends on nothing but sizes, the number of threads and the processor's maker (see
    `multiplies_fast`), so that runs can be repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agrees: dict[tuple[object, ...], bool] = {}
        self._before: FastConvolutions | None = None

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls `func`, or does its work."""
        if func is torch.conv2d:
            return self._conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """As `torch.conv2d`."""
        if _is_trained(input, weight):
            rate = fast_rate(input, weight, stride, padding, dilation, groups)
            if rate is not None:
                return cast(Tensor, _Convolution.apply(input, weight, bias, rate, self))
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def __enter__(self) -> FastConvolutions:
        self._before, _active.mode = _active.mode, self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        _active.mode = self._before
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def checked(self, kind: tuple[object, ...], fast: Compute | None, direct: Compute) -> Tensor:
        """What `fast` gives, if it gave what `direct` gives when this kind came first; otherwise the latter."""
        if fast is None or self._agrees.get(kind) is False:
            return direct()
        found = fast()
        if kind not in self._agrees:
            truth = direct()
            largest = truth.abs().max()
            if not torch.isfinite(largest):
                return truth  # not decided yet
            self._agrees[kind] = bool((found - truth).abs().max() <= TOLERANCE * largest)
            if not self._agrees[kind]:
                logging.getLogger("degrid").warning(
                    f"a fast convolution ({kind[0]}, {kind[1]}) does not compute what PyTorch's does, now used"
                )
                return truth
        return found


class _Convolution(torch.autograd.Function):
    """A convolution of stride 1 that keeps the size of the map: 1x1, or 3x3 of all channels or depthwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rate: int, mode: FastConvolutions) -> Tensor:
        """[N,C,H,W], [K,C or 1,k,k], [K] -> [N,K,H,W], channels_last."""
        ctx.save_for_backward(x, weight)
        ctx.rate, ctx.mode = rate, mode
        return convolved(x, weight, bias, rate, mode)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        return *gradients(grad, x, weight, ctx.rate, ctx.needs_input_grad[:3], ctx.mode), None, None


def fast_rate(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> int | None:
    """The rate of a convolution that `convolved` and `gradients` compute faster than the library; None for any other.

    0: a single tap, which has no rate.
    """
    if _pair(stride) != (1, 1) or groups != _groups(x, weight) or not _is_plain(x, weight):
        return None
    if weight.shape[2:] == (1, 1):
        faster = groups == 1 and (multiplies_fast() or torch.get_num_threads() == 1)
        return 0 if faster and padding in (0, (0, 0), [0, 0]) else None
    rate = _rate(padding, dilation) if weight.shape[2:] == (3, 3) else None
    return rate if rate and _is_faster(x, weight, rate) else None


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int, mode: FastConvolutions) -> Tensor:
    """The convolution, [N,C,H,W] -> [N,K,H,W]."""
    groups = _groups(x, weight)
    way = _way(tuple(x.shape), len(weight), rate, groups)
    fast = None if way is None else functools.partial(way, x, weight, bias, rate)
    kind = "forward", tuple(x.shape), len(weight), rate, groups
    return mode.checked(kind, fast, lambda: torch.conv2d(x, weight, bias, 1, rate, _dilation(rate), groups))


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, rate: int, wanted: Sequence[bool], mode: FastConvolutions
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias, those that are wanted.

    Args:
        grad: of the convolution's output, [N,K,H,W].
    """
    if torch.is_grad_enabled():  # for second derivatives
        return _of_library(grad, x, weight, rate, wanted)
    grad = grad.contiguous(memory_format=torch.channels_last)
    shape, groups = tuple(grad.shape), _groups(x, weight)
    sizes = shape, x.shape[1], rate, groups
    of_x = of_weight = None
    if wanted[0]:
        fast = None
        if (way := _input_way(*sizes)) is not None:
            turned = weight.flip(2, 3) if rate else weight
            fast = functools.partial(way, grad, turned if groups > 1 else turned.transpose(0, 1), None, rate)
        kind = "gradient of the input", *sizes
        of_x = mode.checked(kind, fast, lambda: _some(_of_library(grad, x, weight, rate, (True, False, False))))
    if wanted[1]:
        way = _filter_way(tuple(x.shape), len(weight), rate, groups)
        fast = None if way is None else functools.partial(way, grad, x, weight, rate)
        kind = "gradient of the filter", *sizes
        of_weight = mode.checked(kind, fast, lambda: _some(_of_library(grad, x, weight, rate, (False, True, False))))
    return of_x, of_weight, grad.sum((0, 2, 3)) if wanted[2] else None


def filter_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor | None:
    """The gradient of a dilated depthwise 3x3 filter; None for any other."""
    rate = _rate(padding, dilation) if weight.shape[2:] == (3, 3) and _pair(stride) == (1, 1) else None
    if rate is None or groups == 1 or groups != _groups(x, weight):
        return None
    return _depthwise_filter(grad, x, weight, rate)


def _groups(x: Tensor, weight: Tensor) -> int:
    """1, or as many as channels where each has a filter of its own; 0 for anything between them."""
    depthwise = weight.shape[1] == 1 < x.shape[1] == len(weight)
    return x.shape[1] if depthwise else int(weight.shape[1] == x.shape[1])


def _of_library(
    grad: Tensor, x: Tensor, weight: Tensor, rate: int, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    around, dilation, groups = [rate] * 2, [_dilation(rate)] * 2, _groups(x, weight)
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], [1, 1], around, dilation, False, [0, 0], groups, list(wanted)
    )
    return cast(tuple[Tensor | None, ...], tuple(found))


def _dilation(rate: int) -> int:
    """The rate; that of a single tap has no meaning, but with 2 PyTorch computes it by oneDNN on one thread, too."""
    return rate or (1 if multiplies_fast() else 2)


def _some(found: tuple[Tensor | None, ...]) -> Tensor:
    """The only one of them that is given."""
    return next(each for each in found if each is not None)


def _way(shape: tuple[int, ...], out_channels: int, rate: int, groups: int) -> Way | None:
    """A faster way to a convolution than the library's with the channels last; None if there is none."""
    if groups > 1:
        return _depthwise if _inside(shape, rate) <= REACHED else None
    tile = _tile(shape, out_channels, rate) if rate else None
    return None if tile is None else functools.partial(_by_winograd, tile=tile)


def _input_way(shape: tuple[int, ...], out_channels: int, rate: int, groups: int) -> Way | None:
    """A faster way to the input's gradient, as a convolution of the output's, [N,K,H,W], with the filter turned."""
    if not rate:
        return _by_product if multiplies_fast() else None
    return _way(shape, out_channels, rate, groups) or (_forward_of_library if groups > 1 else None)


def _filter_way(shape: tuple[int, ...], out_channels: int, rate: int, groups: int) -> Way | None:
    """A faster way to compute the gradient of the filter."""
    if groups > 1:
        return _depthwise_filter
    if not rate:
        return _of_tap if multiplies_fast() else None
    wide, pixels = min(shape[1], out_channels) >= WIDE, shape[0] * shape[2] * shape[3]
    if _inside(shape, rate) <= REACHED or (wide and rate > 1 and multiplies_fast()):
        return _by_taps
    return _channels_first if wide and pixels >= PIXELS and not multiplies_fast() else None


def _inside(shape: tuple[int, ...], rate: int) -> float:
    """The part of the taps of all pixels that lies inside the map."""
    height, width = shape[2:]
    return (height + 2 * max(height - rate, 0)) * (width + 2 * max(width - rate, 0)) / (9 * height * width)


def _by_winograd(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int, tile: Tile) -> Tensor:
    transformed = winograd_weight(weight, tile, exact=False)
    # As for a single tap above, the dilation has no meaning other than "by oneDNN".
    multiply = functools.partial(F.conv2d, weight=transformed, dilation=2, groups=products_of(tile))
    found = convolve_tiles(x, multiply, len(weight), rate, bias, tile)
    # That is a view, and what a Function returns as one cannot be changed in place, as a ReLU may do.
    return found.new_empty(0).set_(found.untyped_storage(), found.storage_offset(), found.shape, found.stride())


@functools.lru_cache(maxsize=256)
def _tile(shape: tuple[int, ...], out_channels: int, rate: int) -> Tile | None:
    """The tiles with which Winograd's algorithm wins, the weight's transformation included; None where it does not."""
    tile = best_tile(shape, out_channels, rate, MARGIN, WEIGHT_COST) if numba_installed() else None
    return None if tile == PAIRS else tile


def _forward_of_library(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int) -> Tensor:
    return torch.conv2d(x, weight, bias, 1, rate, rate, len(weight))


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int) -> Tensor:
    factors = weight[..., None]  # [C,1,3,3,1]
    found = x * factors[:, 0, 1, 1][:, None]
    for i, j, part, place in taps_inside(x.shape, rate):
        if (i, j) != (1, 1):
            found[place].addcmul_(x[part], factors[:, 0, i, j][:, None])
    return found if bias is None else found.add_(bias[:, None, None])


def _depthwise_filter(grad: Tensor, x: Tensor, weight: Tensor, rate: int) -> Tensor:
    if _inside(tuple(x.shape), rate) > REACHED:
        parts = _subsamples(grad, rate), _subsamples(x, rate)
        return _some(_of_library(*parts, weight, 1, (False, True, False)))
    found = torch.zeros_like(weight)
    for i, j, part, place in taps_inside(x.shape, rate):
        found[:, 0, i, j] = (grad[place] * x[part]).sum((0, 2, 3))
    return found


def _subsamples(x: Tensor, rate: int) -> Tensor:
    """Pixels that are multiples of the rate apart, as maps of their own; [N,C,H,W] -> [N r r,C,h,w], channels_last.

    They are padded with zeros where the rate does not divide a side.
    """
    more = (0, -x.shape[3] % rate, 0, -x.shape[2] % rate)
    x = (F.pad(x, more) if any(more) else x).permute(0, 2, 3, 1)
    count, height, width, channels = x.shape
    blocks = x.reshape(count, height // rate, rate, width // rate, rate, channels).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(-1, height // rate, width // rate, channels).permute(0, 3, 1, 2)


def _by_taps(grad: Tensor, x: Tensor, weight: Tensor, rate: int) -> Tensor:
    """Each of the nine numbers per pair of channels from the pixels alone whose tap lies inside the map."""
    found = torch.zeros_like(weight)
    for i, j, part, place in taps_inside(x.shape, rate):
        found[:, :, i, j] = _of_tap(grad[place], x[part], weight[:, :, :1, :1], 0)[:, :, 0, 0]
    return found


def _of_tap(grad: Tensor, x: Tensor, tap: Tensor, rate: int) -> Tensor:
    """The gradient of a 1x1 filter [K,C,1,1], of whatever values and rate."""
    if multiplies_fast():
        return (_rows(grad).T @ _rows(x))[:, :, None, None]
    return _some(_of_library(grad, x, tap, 0, (False, True, False)))


def _by_product(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int) -> Tensor:
    found = F.linear(_rows(x), weight[:, :, 0, 0], bias)
    return found.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """[N,C,H,W] -> [NHW,C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def taps_inside(
    shape: Sequence[int], rate: int, kernel: Sequence[int] = (3, 3)
) -> Iterator[tuple[int, int, Part, Part]]:
    """Row and column of each tap that reaches into the map, what it reads of [N,C,H,W], and for which outputs."""
    rows, columns = (
        [_overlap((place - side // 2) * rate, size) for place in range(side)]
        for size, side in zip(shape[2:], kernel, strict=True)
    )
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if row is not None and column is not None:
                every = slice(None), slice(None)
                yield i, j, (*every, row[0], column[0]), (*every, row[1], column[1])


def _overlap(by: int, size: int) -> tuple[slice, slice] | None:
    """Where a tap that reaches `by` pixels further on reads along an axis, and for which outputs; None: nowhere."""
    if abs(by) >= size:
        return None
    return slice(max(0, by), size + min(0, by)), slice(max(0, -by), size + min(0, -by))


def _channels_first(grad: Tensor, x: Tensor, weight: Tensor, rate: int) -> Tensor:
    return _some(_of_library(grad.contiguous(), x.contiguous(), weight.contiguous(), rate, (False, True, False)))


def _is_trained(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient is wanted, and nobody records the operations."""
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and not traced(x, weight)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether they are maps in channels_last and weights, in float32 on the CPU, and stay so."""
    plain = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in (x, weight))
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return last and plain and not torch.is_autocast_enabled("cpu") and _has_library()


def _is_faster(x: Tensor, weight: Tensor, rate: int) -> bool:
    """Whether there is a faster way for one of a 3x3 convolution's three passes."""
    shape, count, groups = tuple(x.shape), len(weight), _groups(x, weight)
    if min(count, shape[1]) < NARROWEST:
        return False
    if groups > 1:
        return rate > 1
    back = (shape[0], count, *shape[2:])
    ways = _way(shape, count, rate, 1), _way(back, shape[1], rate, 1), _filter_way(shape, count, rate, 1)
    return any(way is not None for way in ways)


def _has_library() -> bool:
    return bool(cast(Any, torch.backends.mkldnn).is_available())


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _rate(padding: Any, dilation: Any) -> int | None:
    """The rate of a 3x3 convolution that keeps the size of the map; None for any other."""
    rates = _pair(dilation)
    same = padding == "same" or _pair(padding) == rates
    return rates[0] if len(set(rates)) == 1 and same else None
