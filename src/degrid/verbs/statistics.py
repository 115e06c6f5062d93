"""How often each class of a dataset occurs, and the class weights that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from degrid.arguments import checked
from degrid.data import open_dataset
from degrid.data.inspection.counting import class_counts
from degrid.engine.training.objective import CLASS_WEIGHTS, median_frequency_weights
from degrid.lookup import counted
from degrid.types import OnProgress


@dataclass(frozen=True)
class ClassStatistics:
    """One split of a dataset, counted.

    Attributes:
        path, split: as they were given.
        num_images, void_pixels: how many there are.
        classes: a row per class: its name, pixels, share of the valid pixels, images that have it, and its weight for
            each kind of class weights (see the setting train.class_weights).
    """

    path: str
    split: str
    num_images: int
    void_pixels: int
    classes: tuple[dict[str, str | int | float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = {"split": self.split, "num_images": self.num_images, "void_pixels": self.void_pixels}
        return {**named, "classes": list(self.classes)}

    def __str__(self) -> str:
        cells = [list(self.classes[0])]
        for row in self.classes:
            cells.append([f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()])
        width = max(len(row[0]) for row in cells)
        columns = [max(10, len(key) + 2) for key in cells[0][1:]]
        lines = [f"{self.path}, {self.split}: {counted(self.num_images, 'image')}, {self.void_pixels} void pixels"]
        for name, *numbers in cells:
            lines.append(f"{name:<{width}}" + "".join(f"{n:>{w}}" for n, w in zip(numbers, columns, strict=True)))
        return "\n".join(lines)


@checked
def class_statistics(path: str | Path, split: str = "train", progress: OnProgress | None = None) -> ClassStatistics:
    """Count the classes of one split.

    Args:
        path: whatever `degrid.open_dataset` takes.
        split: its name.
        progress: told how many samples are read.
    Raises:
        UserError: the dataset cannot be opened, or a sample cannot be read.
    """
    dataset = open_dataset(path, split)
    counts = class_counts(dataset, progress)
    pixels, images = counts.sum(0).tolist(), (counts > 0).sum(0).tolist()
    void = pixels.pop()
    weights = {
        kind: median_frequency_weights(torch.tensor(pixels), power).tolist()
        for kind, power in CLASS_WEIGHTS.items()
        if kind != "none"
    }
    rows = tuple(
        {
            "class": name,
            "pixels": pixels[index],
            "share": pixels[index] / max(1, sum(pixels)),
            "images": images[index],
            **{kind: numbers[index] for kind, numbers in weights.items()},
        }
        for index, name in enumerate(dataset.labels.names)
    )
    return ClassStatistics(str(path), split, len(dataset), void, rows)
