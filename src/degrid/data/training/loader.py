"""Batches for training: endless, shuffled, and addressable by position."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from degrid.types import Batch, Dataset, Sample, UserError

Transform = Callable[[Sample, np.random.Generator], Sample]


def training_batches(
    dataset: Dataset, transform: Transform, batch_size: int, seed: int, start: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Endless batches, beginning with batch number `start`.

    Every image comes once per epoch, in an order of its own; batches run over the border between epochs. Batch k
    depends on (seed, k) only: a run that is resumed at k sees exactly what it would have seen, with any number of
    workers.

    Args:
        transform: gives every sample the same size; called with a generator that belongs to the sample's position.
        workers: processes that load; 0 loads in this one.
    Raises:
        UserError: an empty dataset.
    """
    if len(dataset) == 0:
        raise UserError("nothing to train on: the dataset holds no image")
    return _in_order(_Batches(dataset, transform, batch_size, seed), start, workers)


class _Batches:
    """Batch by number."""

    def __init__(self, dataset: Dataset, transform: Transform, batch_size: int, seed: int) -> None:
        self.dataset, self.transform = dataset, transform
        self.batch_size, self.seed = batch_size, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, number: int) -> Batch:
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        return collate([self._sample(position) for position in positions])

    def _sample(self, position: int) -> Sample:
        epoch, place = divmod(position, len(self.dataset))
        if epoch != self._epoch:  # a permutation of a large dataset costs as much as a small image
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
            self._epoch = epoch
        rng = np.random.default_rng([self.seed, 1, position])
        return self.transform(self.dataset[int(self._order[place])], rng)


def _in_order(batches: _Batches, start: int, workers: int) -> Iterator[Batch]:
    """Batch `start` and all that follow; the same with any number of workers."""
    numbered = _Numbered(batches, start)
    # Each worker makes every workers-th batch; the loader takes them in turn, which puts them back in order.
    for item in DataLoader(numbered, batch_size=None, num_workers=workers) if workers else numbered:
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
            try:
                yield self.batches(number)
            except UserError as error:
                yield error  # raised here, torch would wrap it in the worker's traceback
            number += step


def collate(samples: list[Sample]) -> Batch:
    """Samples of one size as a batch; the images lie in memory as channels_last, as they were decoded.

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
