"""A contact sheet of images with label overlays and a legend."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from degrid.files import atomic_write
from degrid.image import overlay_classes
from degrid.types import IGNORE_INDEX, Dataset, LabelSpace

_CELL, _GAP, _TEXT = 320, 8, 15


def write_preview(dataset: Dataset, path: str | Path, num: int = 12) -> None:
    """Write a PNG that shows `num` images, spread evenly over the dataset, each beside its label overlay, and a legend.

    Void pixels are hatched.

    Raises:
        UserError: a sample cannot be read, or `path` cannot be written.
    """
    num = min(num, len(dataset))
    chosen = sorted({round(i * (len(dataset) - 1) / max(1, num - 1)) for i in range(num)})
    cells = []
    for index in chosen:
        sample = dataset[index]
        image = sample.image.permute(1, 2, 0).numpy()
        overlay = overlay_classes(image, sample.label.numpy(), dataset.labels, alpha=0.7)
        cells.append((sample.name, _pair_cell(image, _hatched(overlay, sample.label.numpy()))))
    columns = min(3, len(cells))
    width = columns * (2 * _CELL + _GAP) + _GAP
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for _, cell in row) + _TEXT + _GAP for row in rows]
    legend = _legend(dataset.labels, width)
    sheet = Image.new("RGB", (width, sum(heights) + legend.height + _GAP), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT - 3), _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (name, cell) in enumerate(row):
            left = _GAP + column * (2 * _CELL + _GAP)
            draw.text((left, top), _shortened(name), "black", font)
            sheet.paste(cell, (left, top + _TEXT))
        top += height
    sheet.paste(legend, (0, top))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")


def _pair_cell(image: np.ndarray, overlay: np.ndarray) -> Image.Image:
    scale = (_CELL - 2) / image.shape[1]
    size = (_CELL - 2, max(1, round(image.shape[0] * scale)))
    cell = Image.new("RGB", (2 * _CELL - 2, size[1]), "white")
    for left, pixels in ((0, image), (_CELL, overlay)):
        cell.paste(Image.fromarray(pixels).resize(size), (left, 0))
    return cell


def _hatched(pixels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    y, x = np.indices(ids.shape)
    period = max(6, min(ids.shape) // 40)
    stripe = (ids == IGNORE_INDEX) & ((x + y) % period < period // 2)
    return np.where(stripe[..., None], np.uint8(255), pixels)


def _legend(labels: LabelSpace, width: int) -> Image.Image:
    font = ImageFont.load_default(_TEXT)
    names = [f"{index} {name}" for index, name in enumerate(labels.names)]
    cell = max(round(font.getlength(name)) for name in names) + 40
    columns = max(1, (width - _GAP) // cell)
    image = Image.new("RGB", (width, math.ceil(len(names) / columns) * (_TEXT + 10)), "white")
    draw = ImageDraw.Draw(image)
    for index, name in enumerate(names):
        left, top = _GAP + index % columns * cell, index // columns * (_TEXT + 10)
        draw.rectangle((left, top + 2, left + 22, top + _TEXT + 3), labels.colors[index], "black")
        draw.text((left + 28, top), name, "black", font)
    return image


def _shortened(name: str, length: int = 90) -> str:
    return name if len(name) <= length else "..." + name[3 - length :]
