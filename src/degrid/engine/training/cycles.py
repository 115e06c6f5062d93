"""Cycles of training and validation, as in `train_test` of the code of Ziegler et al."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from degrid.engine.evaluation.metrics import ConfusionMatrix, hits_and_unions, mean_iou
from degrid.resize import resize
from degrid.types import Batch


@dataclass(frozen=True)
class Cycles:
    """Which step of the schedule and which batch belong to each update of the weights in cyclic training.

    Steps and updates are counted from 0. They differ only if `repeat` is set.

    steps: of the schedule, per cycle.
    repeat: as in the original code: a cycle also runs the first step of the next one, so it has one update more; and
        it begins with the first batch again, so that every cycle sees the same crops.
    Source: main.py and model.py of the code of arXiv 1903.07992, option train_test.
    """

    steps: int
    repeat: bool = False

    @property
    def updates(self) -> int:
        """Updates of one cycle."""
        return self.steps + self.repeat

    def total(self, steps: int) -> int:
        """Updates of a training of this many steps, which must be a multiple of those of a cycle."""
        return steps // self.steps * self.updates

    def cycle(self, update: int) -> int:
        """The cycle that an update belongs to, from 0."""
        return update // self.updates

    def begins(self, update: int) -> bool:
        """Whether an update is the first of its cycle."""
        return update % self.updates == 0

    def step(self, update: int) -> int:
        """The step of the schedule, which continues through all cycles."""
        cycle, place = divmod(update, self.updates)
        return cycle * self.steps + place

    def batches(self, start_at: Callable[[int], Iterator[Batch]], update: int, accumulate: int = 1) -> Iterator[Batch]:
        """The micro-batches from an update on.

        Args:
            start_at: from the number of a batch to the endless batches that begin with it.
            accumulate: micro-batches per update.
        """
        if not self.repeat:
            yield from start_at(update * accumulate)
        while True:
            place = update % self.updates
            yield from islice(start_at(place * accumulate), (self.updates - place) * accumulate)
            update += self.updates - place


class TrainingScore:
    """mIoU on the training crops since the cycle began.

    Source: the streaming mean of the original code, which leaves out classes without a pixel.
    """

    def __init__(self, num_classes: int, cycles: Cycles, convention: str) -> None:
        self.cycles, self.convention = cycles, convention
        self._confusion = ConfusionMatrix(num_classes)

    def restart(self, update: int) -> None:
        """Forget what was counted, if this update begins a cycle."""
        if self.cycles.begins(update):
            self._confusion = ConfusionMatrix(self._confusion.num_classes)

    def count(self, logits: Tensor, label: Tensor) -> None:
        """Count a micro-batch: logits [N,C,h,w], label int64 [N,H,W]."""
        size = tuple(label.shape[-2:])
        ids = resize(logits.detach().float(), size, self.convention).argmax(1)
        self._confusion.update(ids.to(torch.uint8), label.to(torch.uint8))

    @property
    def counts(self) -> Tensor:
        """The confusion matrix since the cycle began; of several processes their sum, so that all must ask."""
        return torch.from_numpy(self._confusion.merged().counts)

    @counts.setter
    def counts(self, counts: Tensor) -> None:
        self._confusion.counts = counts.numpy()

    @property
    def miou(self) -> float:
        """Over the classes seen since the cycle began, 0 to 1."""
        return float(mean_iou(*hits_and_unions(self.counts.numpy())))
