"""Pictures that an evaluation leaves beside its scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from degrid.analysis.page import COLORS, png
from degrid.engine.evaluation.worst_images import ScoredImage
from degrid.files import atomic_write
from degrid.image import overlay_classes
from degrid.types import ConfidenceBin, LabelSpace


def write_worst(images: Sequence[ScoredImage], labels: LabelSpace, out: Path) -> Path:
    """Write a picture per image, image | truth | prediction, into a folder beside the scores; its path.

    Args:
        images: the worst first; their rank begins the file's name.
        out: the file of the scores; for scores.json the folder is scores_worst.
    Raises:
        UserError: the place cannot be written to.
    """
    folder = out.with_name(f"{out.stem}_worst")
    for rank, image in enumerate(images, start=1):
        pixels = image.sample.image.permute(1, 2, 0).numpy()
        shown = (overlay_classes(pixels, ids.numpy(), labels) for ids in (image.sample.label, image.ids))
        # Names hold sub-folders; the pictures lie side by side.
        name = f"{rank:03d}_{image.sample.name}.png".replace("/", "_")
        with atomic_write(folder / name) as temporary:
            Image.fromarray(np.concatenate([pixels, *shown], axis=1)).save(temporary, format="PNG")
    return folder


def write_reliability(bins: Sequence[ConfidenceBin], ece: float, out: Path) -> Path:
    """Draw accuracy against confidence, and the pixels per bin, into a file beside the scores; its path.

    Args:
        bins: of equal width, from 0 to 1.
        ece: the expected calibration error, 0 to 1.
        out: the file of the scores; for scores.json the picture is scores_reliability.png.
    Raises:
        UserError: the place cannot be written to.
    Source: Guo et al. 2017, arXiv 1706.04599, figure 1.
    """
    from matplotlib.figure import Figure  # here, because it is slow to import

    edges = [100 * index / len(bins) for index in range(len(bins))]
    width, total = 100 / len(bins), max(1, sum(each.pixels for each in bins))
    figure = Figure(figsize=(5.0, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    look = {"width": width, "align": "edge", "color": COLORS[0], "edgecolor": "white", "linewidth": 0.5}
    upper.bar(edges, [100 * (each.accuracy or 0.0) for each in bins], **look, label="accuracy of a bin")
    upper.plot([0, 100], [0, 100], color=COLORS[1], linestyle="--", label="perfectly calibrated")
    upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %", title=f"expected calibration error {100 * ece:.2f} %")
    upper.legend(loc="upper left")
    lower.bar(edges, [100 * each.pixels / total for each in bins], **look)
    lower.set(xlabel="confidence, %", ylabel="pixels, %")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    path = out.with_name(f"{out.stem}_reliability.png")
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure))
    return path
