"""Cycles of training and validation, as Ziegler et al.'s `train_test` runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from degrid.engine.evaluation.metrics import ConfusionMatrix, hits_and_unions, mean_iou
from degrid.resize import resize
from degrid.types import Batch


@dataclass(frozen=True)
class Cycles:
    """Which step of the schedule and which batch each update of a cyclic training takes.

    An update is what changes the weights; both are counted from 0.

    steps: of one cycle.
    repeat: as the original code: a cycle runs its last step too, which is the first of the next, so it has one update
        more; and it begins with the first batch again, so every cycle sees the same crops.

    Source: main.py and model.py of the code of arXiv 1903.07992, option train_test.
    """

    steps: int
    repeat: bool = False

    @property
    def updates(self) -> int:
        """Updates of one cycle."""
        return self.steps + self.repeat

    def total(self, steps: int) -> int:
        """Updates of a training of this many steps, a multiple of the cycle's."""
        return steps // self.steps * self.updates

    def cycle(self, update: int) -> int:
        """The cycle that an update belongs to, from 0."""
        return update // self.updates

    def begins(self, update: int) -> bool:
        """Whether an update is the first of its cycle."""
        return update % self.updates == 0

    def step(self, update: int) -> int:
        """The step of the schedule, which goes on over all cycles."""
        cycle, place = divmod(update, self.updates)
        return cycle * self.steps + place

    def batches(self, start_at: Callable[[int], Iterator[Batch]], update: int, accumulate: int = 1) -> Iterator[Batch]:
        """The micro-batches from an update on.

        Args:
            start_at: the endless batches from a batch number on.
            accumulate: micro-batches of an update.
        """
        if not self.repeat:
            yield from start_at(update * accumulate)
        while True:
            place = update % self.updates
            yield from islice(start_at(place * accumulate), (self.updates - place) * accumulate)
            update += self.updates - place


class TrainingScore:
    """mIoU on the training crops, counted from the start of each cycle.

    Source: the streaming mean of the original code; classes that are nowhere are left out of it.
    """

    def __init__(self, num_classes: int, cycles: Cycles, convention: str) -> None:
        self.cycles, self.convention = cycles, convention
        self._confusion = ConfusionMatrix(num_classes)

    def restart(self, update: int) -> None:
        """Forget what was counted, where an update begins a cycle."""
        if self.cycles.begins(update):
            self._confusion = ConfusionMatrix(self._confusion.num_classes)

    def count(self, logits: Tensor, label: Tensor) -> None:
        """Count a micro-batch: logits [N,C,h,w], label int64 [N,H,W]."""
        size = tuple(label.shape[-2:])
        self._confusion.update(resize(logits.detach().float(), size, self.convention).argmax(1), label)

    @property
    def miou(self) -> float:
        """Over the classes seen so far, 0..1."""
        return float(mean_iou(*hits_and_unions(self._confusion.counts)))
