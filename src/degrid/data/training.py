"""Training batches: augmentation of image and label together, and endless, shuffled batches that can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from degrid.data.dataset import SourceDataset
from degrid.data.shards.places import in_threads, is_address
from degrid.kernels.resample import nearest, resample
from degrid.types import IGNORE_INDEX, Batch, Dataset, Sample, UserError

Transform = Callable[[Sample, np.random.Generator], Sample]


def training_batches(
    dataset: Dataset,
    transform: Transform,
    batch_size: int | Share,
    seed: int,
    start: int = 0,
    workers: int | Loaders = 0,
    repeats: np.ndarray | None = None,
    buffer: int = 0,
) -> Iterator[Batch]:
    """Yield batches without end, beginning with batch number `start`.

    Every image occurs once per epoch, and each epoch has its own order; a batch may span two epochs. With `repeats` an
    epoch has as many images as they add up to (rounded), and each image occurs as often as its number says, rounded
    down or up by a draw of its epoch. Batch k depends
    only on (seed, k), so a run resumed at batch k sees the same data as an uninterrupted one, with any number of
    workers.

    Args:
        transform: brings every sample to the same size; called with a random generator seeded by (seed, position).
        batch_size: images per batch, or the share of every step that this process loads.
        workers: number of loading processes, or how to find it; 0 loads in the calling process.
        repeats: float [len(dataset)], see `repeat_factors`; None: 1 for each.
        buffer: shuffle the shards, and their images in a buffer of this size; 0: shuffle all images.
    Raises:
        UserError: the dataset is empty.
    """
    if len(dataset) == 0:
        raise UserError("nothing to train on: the dataset holds no image")
    share = Share.of(batch_size, batch_size) if isinstance(batch_size, int) else batch_size
    batches = _Batches(dataset, transform, share, seed, repeats, buffer)
    if isinstance(workers, Loaders):
        return _by_loaders(batches, start, workers)
    return _in_order(batches, start, workers)


@dataclass(frozen=True)
class Loaders:
    """How many processes load, found out while the first batches are loaded and used.

    Attributes:
        most: how many there may be.
        worth: the share of the time that loading must take for any to be started, 0 to 1: below it they would only be
            in the way of what else the processor does.
        trial: batches that the process loads itself before it decides; it passes over the first quarter of them.
    """

    most: int
    worth: float = 0.0
    trial: int = 20

    def number(self, loading: float, using: float) -> int:
        """So many that they are half as fast again as needed.

        Args:
            loading, using: seconds that some batches took to load, and to be used.
        """
        if loading <= self.worth * (loading + using):
            return 0
        return min(self.most, max(1, math.ceil(1.5 * loading / max(using, 1e-9))))


def _by_loaders(batches: _Batches, start: int, loaders: Loaders) -> Iterator[Batch]:
    """All batches from `start` on."""
    loading = using = 0.0
    for number in range(start, start + loaders.trial):
        began = time.perf_counter()
        batch = batches(number)
        loaded = time.perf_counter()
        yield batch
        if number - start >= loaders.trial // 4:
            loading, using = loading + loaded - began, using + time.perf_counter() - loaded
    yield from _in_order(batches, start + loaders.trial, loaders.number(loading, using))


def batches_by_number(
    dataset: Dataset,
    transform: Transform,
    share: Share,
    seed: int,
    repeats: np.ndarray | None = None,
    buffer: int = 0,
) -> Callable[[int], Batch]:
    """Gives the batch of a number, the same as in `training_batches`, in whatever order they are needed."""
    return _Batches(dataset, transform, share, seed, repeats, buffer)


@dataclass(frozen=True)
class Share:
    """What one process loads of each step's images.

    Attributes:
        total: images of a step over all processes. Steps follow one another in the stream of images, so that a step has
            the same images however many processes share them.
        rank, processes: which of how many this process is.
        pieces: batches per step of this process.
        apart: the processes cut up their own parts of the step, into different numbers of pieces; else the step is cut
            into pieces of which each process has a part.
    """

    total: int
    rank: int = 0
    processes: int = 1
    pieces: int = 1
    apart: bool = False

    @classmethod
    def of(cls, total: int, batch_size: int, rank: int = 0, processes: int = 1) -> Share:
        """An even share, split into as few batches of at most `batch_size` images as the largest share needs.

        Raises:
            UserError: there are more processes than images.
        """
        if processes > total:
            raise UserError(
                f"a step has {total} images, fewer than the {processes} processes; start fewer processes, or raise "
                "train.batch_size"
            )
        pieces = math.ceil(math.ceil(total / processes) / batch_size)
        if apart := total // pieces < processes:  # a part would have no image for some
            pieces = min(pieces, len(_part(range(total), rank, processes)))
        return cls(total, rank, processes, pieces, apart)

    def positions(self, number: int) -> range:
        """Where in the stream of images the images of batch `number` of this process are."""
        step, piece = divmod(number, self.pieces)
        images = range(step * self.total, (step + 1) * self.total)
        if self.apart:
            return _part(_part(images, self.rank, self.processes), piece, self.pieces)
        return _part(_part(images, piece, self.pieces), self.rank, self.processes)


def _part(whole: range, number: int, count: int) -> range:
    """One of `count` even parts."""
    return whole[len(whole) * number // count : len(whole) * (number + 1) // count]


class _Batches:
    """Makes any batch from its number."""

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        share: Share,
        seed: int,
        repeats: np.ndarray | None = None,
        buffer: int = 0,
    ) -> None:
        self.dataset, self.transform = dataset, transform
        self.share, self.seed, self.repeats, self.buffer = share, seed, repeats, buffer
        stores: dict[str, int] = {}
        sources = dataset.sources if isinstance(dataset, SourceDataset) else []
        self._stores = np.array([stores.setdefault(source.store(), len(stores)) for source in sources], np.int64)
        self._far = any(map(is_address, stores))
        self._length = len(dataset) if repeats is None else max(1, round(float(repeats.sum())))
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, number: int) -> Batch:
        positions = self.share.positions(number)
        indices = [self._index(position) for position in positions]
        # From a server, several are requested at once.
        samples = in_threads(self.dataset.__getitem__, indices) if self._far else map(self.dataset.__getitem__, indices)
        return collate(
            [
                self.transform(sample, np.random.default_rng([self.seed, 1, position]))
                for position, sample in zip(positions, samples, strict=True)
            ]
        )

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self._length)
        # Seeds are padded with zeros, so that [seed, 1] and [seed, 1, 0] would be one stream.
        if epoch != self._epoch:  # permuting a large dataset costs as much as loading a small image
            self._order = self._epoch_order(np.random.default_rng([self.seed, 0, epoch]))
            self._epoch = epoch
        return int(self._order[place])

    def _epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        order = self._drawn(rng)
        if not self.buffer:
            return order
        stores = self._stores if len(self._stores) else np.zeros(len(self.dataset), np.int64)
        return through_buffer(np.sort(order), stores, self.buffer, rng)

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The images of an epoch, in random order."""
        order = rng.permutation(len(self.dataset))
        if self.repeats is None:
            return order
        # Systematic sampling: equal steps through the sums of the repeats hit each image as often as its number says.
        ends = np.cumsum(self.repeats[order])
        hits = (rng.random() + np.arange(self._length)) * (ends[-1] / self._length)
        return rng.permutation(order[np.searchsorted(ends, hits, side="right").clip(max=len(order) - 1)])


def through_buffer(indices: np.ndarray, stores: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices in an order in which each shard is read once, from its beginning to its end, int [N].

    The shards are in random order. What is read goes into a buffer of `size` images, of which a random one makes room
    for the next.

    Args:
        indices: int [N], ascending.
        stores: the number of the shard that holds each image of the dataset, int.
    """
    shards = rng.permutation(int(stores.max()) + 1)[stores[indices]]
    stream = indices[np.argsort(shards, kind="stable")].tolist()
    waiting, following = stream[:size], stream[size:]
    order = []
    for place, index in zip(rng.integers(0, len(waiting), len(following)).tolist(), following, strict=True):
        order.append(waiting[place])
        waiting[place] = index
    return np.array([*order, *rng.permutation(waiting)], np.int64)


def repeat_factors(present: np.ndarray, threshold: float) -> np.ndarray:
    """How often each image is to be shown per epoch so that rare classes are seen more often, float [N], 1 or more.

    Of each image max over its classes of sqrt(threshold / f), where f is the fraction of images that hold the class.

    Args:
        present: bool [N,C], the classes that each image holds.
        threshold: classes in a smaller fraction of images than this, 0 to 1, count as rare.
    Source: repeat factor sampling of LVIS, Gupta et al. (arXiv 1908.03195).
    """
    fraction = present.mean(0)
    by_class = np.sqrt(threshold / np.where(fraction > 0, fraction, np.inf)).clip(min=1)
    factors: np.ndarray = np.where(present, by_class, 1.0).max(1, initial=1.0)
    return factors


def _in_order(batches: _Batches, start: int, workers: int) -> Iterator[Batch]:
    """All batches from `start` on; the same with any number of workers."""
    numbered = _Numbered(batches, start)
    # With n workers, each makes every n-th batch; the loader polls them in turn, which restores the order.
    # Without a generator of its own it would draw from the global one, and dropout would depend on `workers`.
    loader = DataLoader(numbered, batch_size=None, num_workers=workers, generator=torch.Generator())
    for item in loader if workers else numbered:
        if isinstance(item, UserError):
            raise item
        yield item


class _Numbered(IterableDataset["Batch | UserError"]):
    def __init__(self, batches: _Batches, start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        number, step = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        if worker:
            torch.set_num_threads(1)
        while True:
            item: Batch | UserError
            try:
                item = self.batches(number)
            except UserError as error:
                item = error  # if raised here, torch would wrap it in the worker's traceback
            yield item
            number += step


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one size into a batch. Images keep their memory layout, channels_last.

    Raises:
        UserError: the sizes differ.
    """
    sizes = {tuple(sample.label.shape) for sample in samples}
    if len(sizes) > 1:
        raise UserError(f"the samples of a batch must be of one size, got {sorted(sizes)}; does the transform crop?")
    return Batch(
        torch.stack([sample.image.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2),
        torch.stack([sample.label for sample in samples]).long(),
        tuple(sample.name for sample in samples),
    )


# The colour of pixels beyond the image: near the mean of photographs. Their label is void.
_FILL = (124, 116, 104)


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, crop, flip and colour jitter. The generator passed in is the only source of randomness.

    Scale, crop and flip form one affine map from the crop to the image, which is resampled once: bilinear for the
    image, nearest for the label, at the same (half-pixel) positions. Where the scaled image is smaller than the crop,
    the rest is filled with a constant colour and labelled void.

    crop: height and width, pixels; scale: smallest and largest factor; flip: probability, 0 to 1;
    jitter: strength of brightness, contrast, saturation (0 to 1) and hue (0 to 0.5);
    centred: crop, or pad evenly, around the centre of the image instead of a random position;
    void_border: pixels of the crop this near to another class become void; 0: none.

    Raises:
        UserError: a value is out of range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    centred: bool = False
    void_border: int = 0

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise UserError(f"crop: expected a height and width of at least 1 pixel, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise UserError(f"scale: expected 0 < smallest <= largest, got {self.scale}")
        if self.void_border < 0:
            raise UserError(f"void_border: expected 0 (none) or a number of pixels, got {self.void_border}")
        if not 0 <= self.flip <= 1:
            raise UserError(f"flip: expected a probability from 0 to 1, got {self.flip}")
        if not all(0 <= s <= 1 for s in self.jitter[:3]) or not 0 <= self.jitter[3] <= 0.5:
            raise UserError(
                f"jitter: expected brightness, contrast, saturation from 0 to 1, hue from 0 to 0.5, got {self.jitter}"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A crop of one sample: image uint8 [C,h,w], label uint8 [h,w]."""
        height, width = sample.label.shape
        crop_height, crop_width = self.crop
        factor = rng.uniform(*self.scale)
        scaled_height, scaled_width = max(1, round(height * factor)), max(1, round(width * factor))
        spare_height, spare_width = scaled_height - crop_height, scaled_width - crop_width
        top, left = int(spare_height / 2), int(spare_width / 2)
        if not self.centred:
            top, left = int(rng.integers(0, max(0, spare_height) + 1)), int(rng.integers(0, max(0, spare_width) + 1))
        step_y, step_x = height / scaled_height, width / scaled_width
        # The centre (i + 0.5, j + 0.5) of an output pixel maps to a position in the input, in the same convention.
        start_y, start_x, dx = top * step_y, left * step_x, step_x
        if rng.random() < self.flip:
            # Read from right to left; padding on the right stays on the right.
            shown = crop_width if self.centred else min(crop_width, scaled_width)
            start_x, dx = (left + shown) * step_x, -step_x
        start, step = (start_y, start_x), (step_y, dx)
        image = sample.image.permute(1, 2, 0).numpy()
        fill = tuple(_FILL[channel % 3] for channel in range(image.shape[2]))
        pixels = resample(image, self.crop, start, step, fill)
        if any(self.jitter):
            pixels = jittered(pixels, self.jitter, rng)
        label = torch.from_numpy(nearest(sample.label.numpy(), self.crop, start, step, IGNORE_INDEX))
        if self.void_border:
            label = void_borders(label, self.void_border)
        return Sample(torch.from_numpy(pixels).permute(2, 0, 1), label, sample.name)


def void_borders(label: Tensor, width: int) -> Tensor:
    """A label whose pixels within `width` pixels of another class (up, down, sideways or diagonally) are void.

    Void pixels are no other class, nor is what lies beyond the edge.

    Args:
        label: uint8 [H,W].
    """
    ids, void = label[None, None].float(), label == IGNORE_INDEX

    def largest(values: Tensor) -> Tensor:
        """The largest value near each pixel, along one axis after the other."""
        for kernel, pad in (((2 * width + 1, 1), (width, 0)), ((1, 2 * width + 1), (0, width))):
            values = F.max_pool2d(values, kernel, 1, pad)
        return values[0, 0]

    highest, lowest = (largest(torch.where(void, -1000, sign * ids)) * sign for sign in (1, -1))
    return torch.where((highest != lowest) & ~void, IGNORE_INDEX, label)


# The weights of red, green and blue in luma (ITU-R BT.601), and the two chrominance axes of YIQ.
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.stack([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def jittered(image: np.ndarray, strength: tuple[float, float, float, float], rng: np.random.Generator) -> np.ndarray:
    """An image uint8 [H,W,C] with other colours, see `jitter_colors`; where C is not 3, of brightness and contrast."""
    if image.shape[2] == 3:
        return np.array(jitter_colors(Image.fromarray(image), strength, rng))
    brightness, contrast, _ = (rng.uniform(max(0.0, 1 - s), 1 + s) for s in strength[:3])
    changed = brightness * (contrast * image + (1 - contrast) * image.mean())
    pixels: np.ndarray = np.clip(changed, 0, 255).astype(np.uint8)
    return pixels


def jitter_colors(
    image: Image.Image, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> Image.Image:
    """Change brightness, contrast, saturation and hue by random amounts, in one matrix multiplication.

    A change of hue rotates the chrominance plane of YIQ, which keeps luma.

    Args:
        image: RGB.
        strength: factors are drawn from 1 - s to 1 + s; the hue shift from -h to h turns.
    """
    if not any(strength):
        return image
    brightness, contrast, saturation = (rng.uniform(max(0.0, 1 - s), 1 + s) for s in strength[:3])
    angle = 2 * np.pi * rng.uniform(-strength[3], strength[3])
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    hue = np.linalg.inv(_YIQ) @ turn @ _YIQ
    grey = np.outer(np.ones(3), _LUMA)
    linear = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey) @ hue
    # Contrast scales the deviation from the image's mean brightness.
    mean = brightness * np.array(image.resize((16, 16), Image.Resampling.BOX).convert("L")).mean()
    matrix = np.column_stack([linear, np.full(3, (1 - contrast) * mean)])
    return image.convert("RGB", tuple(matrix.ravel().tolist()))
