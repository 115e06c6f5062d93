"""Dense conditional random field: class probabilities that follow the image's edges."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.kernels.crf_settings import CRF
from degrid.kernels.support import numba_installed, use_torch_threads
from degrid.types import UserError

_TOO_SMALL = "CRF: its widths are too small for this image; use larger ones"


POINTS = 2.0
"""Points of the lattice for each pixel of a photograph, at most as a rule; in pure noise there are up to six."""


def refine(probabilities: Tensor, image: Tensor, crf: CRF | None = None, room: int | None = None) -> Tensor:
    """Mean-field marginals of the field whose unary term is -log(probabilities): float32 [C,H,W], sums of 1.

    Potts compatibility, kernels normalised symmetrically by the square roots of their sums. Smoothness is filtered
    exactly, appearance on a permutohedral lattice. On the CPU this runs compiled where numba is installed; elsewhere,
    and on other devices, as PyTorch.

    Args:
        probabilities: [C,H,W], in 0..1.
        image: RGB [3,H,W], 0-255.
        crf: parameters; None: the defaults.
        room: bytes that may be taken beside the probabilities and the result; None: as many as are needed.
    Raises:
        UserError: the image is not RGB, a width is too small for its size, or there is not enough room.
    Source: Krähenbühl & Koltun (arXiv 1210.5644), algorithm 1; Adams et al., Eurographics 2010, for the lattice.
    """
    crf = crf or CRF()
    if len(image) != 3:
        raise UserError(f"CRF: expected an RGB image, got {len(image)} channels")
    run = compiled if runs_compiled(probabilities.device, crf) and numba_installed() else with_torch
    with torch.autocast(probabilities.device.type, enabled=False):  # whatever the caller's is
        return run(probabilities, image, crf, room)


def runs_compiled(device: torch.device, crf: CRF) -> bool:
    """Whether `refine` runs compiled there where numba can be used; does not load numba to find out."""
    small = crf.bi_weight + crf.pos_weight <= _LARGEST_WEIGHTS
    return device.type == "cpu" and small and find_spec("numba") is not None


def refine_bytes(pixels: int, classes: int, is_compiled: bool, points: float = POINTS) -> int:
    """Memory that `refine` takes beside the probabilities and the result, about.

    Args:
        points: of the lattice, for each pixel.
    """
    if is_compiled:  # the lattice, and three maps of classes that fill up vectors; two of values for each point
        padded = _padded(classes)
        return round(pixels * (200 + 12 * padded + points * (60 + 8 * padded)))
    return round(pixels * (1250 + 40 * classes + points * (30 + 10 * classes)))


def with_torch(probabilities: Tensor, image: Tensor, crf: CRF, room: int | None = None) -> Tensor:
    """`refine` in PyTorch, on the device of its input."""
    classes, height, width = probabilities.shape
    unary = -probabilities.float().clamp(min=_LEAST).log().reshape(classes, -1).T
    lattice = Lattice(_appearance(image, crf))
    _check_room(room, refine_bytes(height * width, classes, False, lattice.size / (height * width)))
    ones = unary.new_ones(height * width, 1)
    near = lattice.filter(ones).clamp(min=1e-20).rsqrt()
    smooth = _blur(ones.T.reshape(1, height, width), crf.pos_xy_std).reshape(-1, 1).clamp(min=1e-20).rsqrt()
    marginals = (-unary).softmax(1)
    for _ in range(crf.iterations):
        appearance = near * lattice.filter(near * marginals)
        maps = (smooth * marginals).T.reshape(classes, height, width)
        smoothness = smooth * _blur(maps, crf.pos_xy_std).reshape(classes, -1).T
        marginals = (crf.bi_weight * appearance + crf.pos_weight * smoothness - unary).softmax(1)
    return marginals.T.reshape(classes, height, width)


# Probabilities count as at least this much, so that their logarithms are finite.
_LEAST = 1e-8
# The compiled softmax does not subtract the largest score; with weights up to this, no exponential overflows.
_LARGEST_WEIGHTS = 20


def _check_room(room: int | None, need: int) -> None:
    if room is not None and need > room:
        raise UserError(
            f"CRF: {need >> 20} MiB are needed for this image, since its colours vary from pixel to pixel, and the "
            f"memory limit leaves {max(0, room) >> 20} MiB; allow more, or leave the CRF out"
        )


def _padded(classes: int) -> int:
    """Classes that fill up vectors."""
    return -(-classes // 8) * 8


def compiled(probabilities: Tensor, image: Tensor, crf: CRF, room: int | None = None) -> Tensor:
    """`refine` in numba, on the CPU. Every kernel's weight and norms are multiplied into what it is filtered with."""
    from degrid.kernels import dense_crf_numba as kernels

    use_torch_threads()
    classes, height, width = probabilities.shape
    lattice = _CompiledLattice(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), crf)
    padded = _padded(classes)  # those beyond `classes` have a probability of almost 0
    _check_room(room, refine_bytes(height * width, classes, True, lattice.size / (height * width)))
    start = probabilities.new_zeros(height, width, padded, dtype=torch.float32)
    start[..., :classes] = probabilities.detach().permute(1, 2, 0)
    start[..., :classes].clamp_(min=_LEAST)
    unary = start.clamp(min=1e-30).log_().neg_().numpy()
    q = start.div_(start.sum(2, keepdim=True)).numpy()
    new = np.empty_like(q)
    values, spare = lattice.values(padded), lattice.values(padded)
    line = _line(crf.pos_xy_std)
    taps = np.zeros(-(-len(line) // 4) * 4, np.float32)
    first = len(taps) // 2 - len(line) // 2
    taps[first : first + len(line)] = line
    rows, columns = (
        _blur(torch.ones(1, n, 1, dtype=torch.float32), crf.pos_xy_std)[0, :, 0].rsqrt().numpy()
        for n in (height, width)
    )
    rows *= np.float32(math.sqrt(crf.pos_weight))  # on both sides of the kernel, so that it comes to the weight
    for _ in range(crf.iterations):
        values, spare = lattice.blurred(q.reshape(height * width, padded), values, spare)
        kernels.step(q, unary, values, lattice.corners, lattice.weights, taps, rows, columns, new)
        q, new = new, q
    return torch.from_numpy(q)[..., :classes].permute(2, 0, 1).contiguous()


class _CompiledLattice:
    """`Lattice` for the pixels of an image, with the norms and the square root of the kernel's weight in its weights.

    Attributes:
        corners, weights: [H*W,6], the lattice points around each pixel, and how much it gives to and takes from them.
    """

    def __init__(self, image: np.ndarray, crf: CRF) -> None:
        from degrid.kernels import dense_crf_numba as kernels

        height, width, _ = image.shape
        count, per_pixel = height * width, kernels.CORNERS
        scale = _scales(kernels.DIMS) / np.array([crf.bi_xy_std] * 2 + [crf.bi_rgb_std] * 3)
        low, strides, steps = _numbering(np.array([width, height, 255, 255, 255]) * scale)
        keys = np.empty((count, per_pixel), np.int64)
        self.weights = np.empty((count, per_pixel), np.float32)
        kernels.embed(image, scale.astype(np.float32), low, strides, keys, self.weights)
        table = np.empty(1 << (keys.size * 3 // 2).bit_length(), np.int64)
        ids = np.full(len(table), -1, np.int32)
        points = np.empty(keys.size, np.int64)
        self.corners = np.empty((count, per_pixel), np.int32)
        self.size: int = kernels.number(keys, table, ids, self.corners, points)
        self.near = np.empty((per_pixel, self.size, 2), np.int32)
        kernels.find_neighbours(points[: self.size], steps, table, ids, self.near)
        self.starts = np.zeros(self.size + 1, np.int64)
        self.pixels, self.shares = np.empty(keys.size, np.int32), np.empty(keys.size, np.float32)
        kernels.invert(self.corners, self.weights, self.starts, self.pixels, self.shares)
        sums = np.empty(count, np.float32)
        values, _ = self.blurred(np.ones((count, 1), np.float32), self.values(1), self.values(1))
        kernels.gather(values, self.corners, self.weights, sums)
        # A constant factor of the lattice cancels out here.
        norms = np.sqrt(np.float32(crf.bi_weight) / np.maximum(sums, np.float32(1e-20)))
        self.weights *= norms[:, None]
        self.shares *= norms[self.pixels]

    def values(self, channels: int) -> np.ndarray:
        """Room for values on the lattice, and for a zero after them where a neighbour does not exist."""
        return np.zeros((self.size + 1, channels), np.float32)

    def blurred(self, pixels: np.ndarray, values: np.ndarray, spare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of pixels, [N,C], on the lattice and blurred along its axes; and the other one of the two arrays."""
        from degrid.kernels import dense_crf_numba as kernels

        kernels.splat(pixels, self.starts, self.pixels, self.shares, values)
        for near in self.near:
            kernels.blur(values, spare, near)
            values, spare = spare, values
        return values, spare


def _numbering(largest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How a lattice point becomes one whole number: coordinate i counts from low[i] in steps of strides[i], and a step
    along each axis of the lattice adds steps[axis].

    Args:
        largest: the largest scaled features, [d]; the smallest are 0.
    Raises:
        UserError: the points lie too far apart to be numbered.
    """
    dims = len(largest)
    margin = 3 * (dims + 1)  # rounding, the corners of the simplex, and neighbours
    # Coordinate i is the sum of the features from i on, less i times the one before.
    low = [-margin - math.ceil(i * largest[i - 1] if i else 0) for i in range(dims)]
    spans = [math.ceil(largest[i:].sum()) + margin - low[i] + 1 for i in range(dims)]
    if math.prod(spans) >= 2**62:
        raise UserError(_TOO_SMALL)
    strides = [math.prod(spans[:axis]) for axis in range(dims)]
    steps = [*(sum(strides) - (dims + 1) * stride for stride in strides), sum(strides)]
    return np.array(low), np.array(strides), np.array(steps)


def _appearance(image: Tensor, crf: CRF) -> Tensor:
    """Position and colour of every pixel in units of their widths, [H*W,5]."""
    height, width = image.shape[-2:]
    y, x = (torch.arange(n, device=image.device) for n in (height, width))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    place = torch.stack([columns, rows]).reshape(2, -1).float() / crf.bi_xy_std
    return torch.cat([place, image.reshape(3, -1).float() / crf.bi_rgb_std]).T.contiguous()


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Sum over all pixels weighted by exp(-distance^2 / (2 sigma^2)), zero outside: [C,H,W]. Cut off at 5 sigma."""
    line = torch.from_numpy(_line(sigma)).to(maps.device)
    radius = len(line) // 2
    maps = F.conv2d(maps[:, None], line[None, None, :, None], padding=(radius, 0))
    return F.conv2d(maps, line[None, None, None], padding=(0, radius))[:, 0]


def _line(sigma: float) -> np.ndarray:
    """exp(-k^2 / (2 sigma^2)) for k from -radius to radius, float32; the radius is 5 sigma."""
    radius = math.ceil(5 * sigma)
    return np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2)).astype(np.float32)


class Lattice:
    """Gaussian filtering of unit width in a space of few dimensions, at points that lie anywhere.

    Each point spreads its value over the corners of the simplex that it lies in, the corners are blurred along the
    lattice's axes, and the point gathers from the same corners.

    Args:
        features: [N,d], the points.
    Source: Adams, Baek & Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice (Eurographics 2010).
    """

    def __init__(self, features: Tensor) -> None:
        count, dims = features.shape
        self.dims = dims
        remainder, rank, self.weights = _simplex(_elevate(features))
        corners = torch.arange(dims + 1, device=features.device)
        # Corner k of the canonical simplex has the coordinate k, or k - (d+1) where the rank is above d - k.
        shift = corners[None, :, None] - (dims + 1) * (rank[:, None, :] > dims - corners[None, :, None]).long()
        keys = (remainder[:, None, :] + shift)[..., :dims].reshape(-1, dims)
        packed, steps = _pack(keys, dims)
        points, self.corners = torch.unique(packed, return_inverse=True)
        self.corners = self.corners.reshape(count, dims + 1)
        self.size = len(points)
        self.neighbours = [(_find(points, points - step), _find(points, points + step)) for step in steps]

    def filter(self, values: Tensor) -> Tensor:
        """[N,C] -> [N,C]: sums over all points weighted by exp(-distance^2 / 2), approximately."""
        # One row more than there are lattice points: what is not there counts as zero.
        lattice = values.new_zeros(self.size + 1, values.shape[1])
        for corner in range(self.dims + 1):
            lattice.index_add_(0, self.corners[:, corner], values * self.weights[:, corner, None])
        for below, above in self.neighbours:
            sides = lattice.index_select(0, below).add_(lattice.index_select(0, above))
            lattice[:-1].add_(sides, alpha=0.5)
        gathered = torch.zeros_like(values)
        for corner in range(self.dims + 1):
            gathered.addcmul_(lattice.index_select(0, self.corners[:, corner]), self.weights[:, corner, None])
        return gathered / (1 + 2.0**-self.dims)


def _elevate(features: Tensor) -> Tensor:
    """Onto the plane of coordinates that sum to 0 in d+1 dimensions, where the blur has unit width: [N,d+1]."""
    dims = features.shape[1]
    index = torch.arange(1, dims + 1, dtype=torch.float32, device=features.device)
    scaled = features * torch.from_numpy(_scales(dims)).to(features)
    # Coordinate i is the sum of the scaled ones from i on, less i times the one before.
    sums = scaled.flip(1).cumsum(1).flip(1)
    tail = F.pad(sums, (0, 1))
    return tail - F.pad(index * scaled, (1, 0))


def _scales(dims: int) -> np.ndarray:
    """The factor of each feature, [d]."""
    index = np.arange(1, dims + 1)
    factors: np.ndarray = (dims + 1) * math.sqrt(2 / 3) / np.sqrt(index * (index + 1))
    return factors


def _simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex of each point: its corner of remainder 0 and the ranks of the coordinates, [N,d+1] whole numbers; and
    the barycentric weights of its corners, [N,d+1]."""
    dims = elevated.shape[1] - 1
    nearest = (torch.round(elevated / (dims + 1)) * (dims + 1)).long()
    excess = nearest.sum(1, keepdim=True) // (dims + 1)
    rank = (elevated - nearest).argsort(dim=1, descending=True, stable=True).argsort(dim=1) + excess
    low, high = rank < 0, rank > dims
    change = (dims + 1) * (low.long() - high.long())
    rank, nearest = rank + change, nearest + change
    delta = (elevated - nearest) / (dims + 1)
    weights = elevated.new_zeros(len(elevated), dims + 2)
    weights.scatter_add_(1, dims - rank, delta)
    weights.scatter_add_(1, dims - rank + 1, -delta)
    weights[:, 0] += 1 + weights[:, dims + 1]
    return nearest, rank, weights[:, : dims + 1].contiguous()


def _pack(keys: Tensor, dims: int) -> tuple[Tensor, list[int]]:
    """Each lattice point as one whole number, [n]; and what a step along each of the d+1 axes adds to it.

    Raises:
        UserError: the points lie too far apart to be numbered.
    """
    margin = dims + 1
    low = keys.amin(0) - margin
    spans = (keys.amax(0) + margin - low + 1).tolist()
    strides = [math.prod(spans[:axis]) for axis in range(dims)]
    if math.prod(spans) >= 2**62:
        raise UserError(_TOO_SMALL)
    packed = ((keys - low) * torch.tensor(strides, device=keys.device)).sum(1)
    steps = [sum(strides) - (dims + 1) * stride for stride in strides]
    return packed, [*steps, sum(strides)]


def _find(points: Tensor, wanted: Tensor) -> Tensor:
    """Places of `wanted` in the sorted `points`; one past the end where it is not there."""
    place = torch.searchsorted(points, wanted).clamp(max=len(points) - 1)
    return torch.where(points[place] == wanted, place, len(points))
