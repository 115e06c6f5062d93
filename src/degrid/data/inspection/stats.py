"""How often each class comes."""

from __future__ import annotations

from degrid.data.inspection.check import SplitReport
from degrid.types import Dataset, OnProgress, Progress


def class_pixels(dataset: Dataset, progress: OnProgress | None = None) -> SplitReport:
    """Count pixels and images of every class, void pixels, and sizes, by reading each sample once.

    Args:
        progress: told how many samples are read.
    Raises:
        UserError: a sample cannot be read.
    """
    report = SplitReport.empty(len(dataset), dataset.labels)
    for index in range(len(dataset)):
        label = dataset[index].label
        report.count_size(*label.shape)
        report.count_label(label.numpy())
        if progress:
            progress(Progress("counting", index + 1, len(dataset)))
    return report
