"""How often each class comes."""

from __future__ import annotations

from collections.abc import Callable

from degrid.data.inspection.check import SplitReport
from degrid.types import Dataset


def class_pixels(dataset: Dataset, on_image: Callable[[int, int], None] | None = None) -> SplitReport:
    """Count pixels and images of every class, void pixels, and sizes, by reading each sample once.

    Args:
        on_image: called with (done, total) as it goes on.
    Raises:
        UserError: a sample cannot be read.
    """
    report = SplitReport.empty(len(dataset), dataset.labels)
    for index in range(len(dataset)):
        label = dataset[index].label
        report.count_size(*label.shape)
        report.count_label(label.numpy())
        if on_image:
            on_image(index + 1, len(dataset))
    return report
