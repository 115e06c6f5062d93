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
    stream = _Stream(dataset, transform, batch_size, seed, start)
    if workers == 0:
        return iter(stream)
    # Each worker makes every workers-th batch; the loader takes them in turn, which puts them back in order.
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available()))


class _Stream(IterableDataset[Batch]):
    def __init__(self, dataset: Dataset, transform: Transform, batch_size: int, seed: int, start: int) -> None:
        self.dataset, self.transform = dataset, transform
        self.batch_size, self.seed, self.start = batch_size, seed, start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, step = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        if worker:
            torch.set_num_threads(1)
        while True:
            yield self.batch(number)
            number += step

    def batch(self, number: int) -> Batch:
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        return collate([self.sample(position) for position in positions])

    def sample(self, position: int) -> Sample:
        epoch, place = divmod(position, len(self.dataset))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
        rng = np.random.default_rng([self.seed, 1, position])
        return self.transform(self.dataset[int(order[place])], rng)


def collate(samples: list[Sample]) -> Batch:
    """Samples of one size as a batch.

    Raises:
        UserError: the sizes differ.
    """
    sizes = {tuple(sample.label.shape) for sample in samples}
    if len(sizes) > 1:
        raise UserError(f"the samples of a batch must be of one size, got {sorted(sizes)}; does the transform crop?")
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.label for sample in samples]).long(),
        tuple(sample.name for sample in samples),
    )
