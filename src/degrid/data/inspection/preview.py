"""A picture of the data as degrid reads them: images with labels, how often each class occurs, from which values."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from degrid.data.dataset import SourceDataset
from degrid.data.formats.masks import NO_DATA
from degrid.data.formats.values import LabelValues, Value
from degrid.files import atomic_write, printable
from degrid.image import as_rgb, overlay_classes
from degrid.types import IGNORE_INDEX, Dataset

_CELL, _GAP, _TEXT, _ROW = 320, 8, 15, 22
_PAIR = 2 * _CELL + _GAP
# In a row of the legend: where the name, the bar, the share and the values begin, pixels.
_NAME, _BAR, _SHARE, _VALUES = 28, 210, 380, 450
_MOST_VALUES, _LEAST_BAR = 6, 4
_FIRST_OF_CJK = "\u2e80"
# Of Linux, Windows and macOS; any of them has the letters of the others' languages, too, as far as it goes.
_CJK = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("Droid Sans Fallback", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic"),
    *("PingFang SC", "Hiragino Sans", "Arial Unicode MS", "Apple SD Gothic Neo"),
)
"""Fonts with the letters of Chinese, Japanese and Korean."""


def write_preview(dataset: Dataset, path: str | Path, num: int = 12, title: str = "") -> None:
    """Write `preview_sheet` as a PNG.

    Raises:
        UserError: a sample cannot be read, or `path` cannot be written.
    """
    write_sheet(preview_sheet(dataset, num, title), path)


def write_sheet(sheet: np.ndarray, path: str | Path) -> None:
    """Write a picture, uint8 [H,W,3], as a PNG.

    Raises:
        UserError: `path` cannot be written.
    """
    with atomic_write(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG", compress_level=1)


def preview_sheet(dataset: Dataset, num: int = 12, title: str = "") -> np.ndarray:
    """A picture, uint8 [H,W,3], of `num` images, spread evenly over the dataset, and of what their labels mean.

    Each image stands beside its label overlay; void is hatched. Below, every class has its colour, a bar for its share
    of the pixels in these images, and the values that became this class, in the masks or by the rule for them.

    Args:
        title: what to call the dataset.
    Raises:
        UserError: a sample cannot be read.
    """
    num = min(num, len(dataset))
    chosen = sorted({round(i * (len(dataset) - 1) / max(1, num - 1)) for i in range(num)})
    seen = Seen(dataset)
    cells = []
    for index in chosen:
        sample = dataset[index]
        image, ids = as_rgb(sample.image.permute(1, 2, 0).numpy()), sample.label.numpy()
        overlay = overlay_classes(image, ids, dataset.labels, alpha=0.7)
        cells.append((sample.name, _pair_cell(image, _hatched(overlay, ids == IGNORE_INDEX))))
        seen.add(index, ids)
    columns = min(3, len(cells))
    width = columns * _PAIR + _GAP
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for _, cell in row) + _TEXT + _GAP for row in rows]
    letters = "".join([title, *dataset.labels.names, *(name for name, _ in cells)])
    legend = _legend(seen, columns, letters)
    sheet = Image.new("RGB", (width, _ROW + sum(heights) + legend.height + 2 * _GAP), "white")
    draw, font, top = ImageDraw.Draw(sheet), _font(_TEXT - 3, letters), _GAP + _ROW
    what = f"{len(cells)} of {len(dataset)} images" + (f" of {title}" if title else "")
    head = _font(_TEXT, letters)
    draw.text((_GAP, _GAP - 3), _fitting(what, head, width - 2 * _GAP), "black", head)
    for row, height in zip(rows, heights, strict=True):
        for column, (name, cell) in enumerate(row):
            left = _GAP + column * _PAIR
            draw.text((left, top), _fitting(name, font, _PAIR - _GAP), "black", font)
            sheet.paste(cell, (left, top + _TEXT))
        top += height
    sheet.paste(legend, (0, top))
    return np.asarray(sheet)


class Seen:
    """What was seen of each class: its pixels, and the values in the masks that became it."""

    def __init__(self, dataset: Dataset) -> None:
        self.labels = dataset.labels
        self.files = dataset if isinstance(dataset, SourceDataset) else None
        self.pixels = np.zeros(256, np.int64)
        self.values: dict[int, set[Value]] = {}

    def add(self, index: int, ids: np.ndarray) -> None:
        """Count the label of a sample, train ids uint8 [H,W]."""
        self.pixels += np.bincount(ids.ravel(), minlength=256)
        if self.files:
            counted = LabelValues.of(self.files.sources[index].read_label())
            values = counted.values
            became = self.files.rule.apply(values[None])[0][0]
            if np.count_nonzero(ids == IGNORE_INDEX) > counted.pixels[became == IGNORE_INDEX].sum():
                self.values.setdefault(IGNORE_INDEX, set()).add(NO_DATA)  # of the image
            for value, train in zip(values.tolist(), became.tolist(), strict=True):
                self.values.setdefault(train, set()).add(tuple(value) if isinstance(value, list) else value)

    def values_of(self, train: int) -> str:
        """The values of a class: those in the masks, then the others that the rule gives it."""
        if not self.files:
            return ""
        seen = sorted(self.values.get(train, ()), key=lambda value: (isinstance(value, tuple), value))
        colored = any(isinstance(value, tuple) for values in self.values.values() for value in values)
        rule: Iterable[tuple[Value, int]] = (self.files.rule.colors if colored else self.files.rule.ids).items()
        values = [*seen, *(value for value, became in rule if became == train and value not in seen)]
        words = {NO_DATA: "no data"}
        shown = [" ".join(map(str, each)) if isinstance(each, tuple) else words.get(each, str(each)) for each in values]
        return ", ".join(shown[:_MOST_VALUES]) + (", .." if len(shown) > _MOST_VALUES else "")


def _pair_cell(image: np.ndarray, overlay: np.ndarray) -> Image.Image:
    scale = (_CELL - 2) / image.shape[1]
    size = (_CELL - 2, max(1, round(image.shape[0] * scale)))
    cell = Image.new("RGB", (2 * _CELL - 2, size[1]), "white")
    for left, pixels in ((0, image), (_CELL, overlay)):
        cell.paste(Image.fromarray(pixels).resize(size), (left, 0))
    return cell


def _hatched(pixels: np.ndarray, void: np.ndarray) -> np.ndarray:
    y, x = np.indices(void.shape)
    period = max(6, min(void.shape) // 40)
    stripe = void & ((x + y) % period < period // 2)
    return np.where(stripe[..., None], np.uint8(255), pixels)


def _legend(seen: Seen, columns: int, letters: str) -> Image.Image:
    """A row for each class and for void, in as many columns as there are pairs of images."""
    rows = [*range(len(seen.labels)), IGNORE_INDEX]
    per_column = math.ceil((len(rows) + 1) / columns)
    image = Image.new("RGB", (columns * _PAIR + _GAP, (per_column + 1) * _ROW), "white")
    draw, font = ImageDraw.Draw(image), _font(_TEXT, letters)
    for column in range(columns):
        heads = ((_BAR, "share of these pixels"), (_VALUES, "values in the masks" if seen.files else ""))
        for left, text in heads:
            draw.text((_GAP + column * _PAIR + left, 0), text, "grey", _font(_TEXT - 3))
    for place, train in enumerate(rows):
        column, row = divmod(place, per_column)
        _legend_row(image, (_GAP + column * _PAIR, (row + 1) * _ROW), train, seen, font)
    return image


def _legend_row(image: Image.Image, at: tuple[int, int], train: int, seen: Seen, font: ImageFont.FreeTypeFont) -> None:
    left, top = at
    draw = ImageDraw.Draw(image)
    void = train == IGNORE_INDEX
    color, name = ((160, 160, 160), "void") if void else (seen.labels.colors[train], seen.labels.names[train])
    share, most = (float(pixels / max(1, seen.pixels.sum())) for pixels in (seen.pixels[train], seen.pixels.max()))
    length = max(_LEAST_BAR, round((_SHARE - _BAR - _GAP) * share / most)) if share else 0
    for start, wide in ((left, _ROW), (left + _BAR, length)):
        if wide:
            patch = np.broadcast_to(np.array(color, np.uint8), (_ROW - 6, wide, 3))
            patch = _hatched(patch, np.full(patch.shape[:2], void))
            image.paste(Image.fromarray(patch), (start, top + 2))
            draw.rectangle((start, top + 2, start + wide - 1, top + _ROW - 5), outline="black")
    draw.text((left + _NAME, top), _fitting(f"{train} {name}", font, _BAR - _NAME - _GAP, end=False), "black", font)
    draw.text((left + _SHARE, top), f"{100 * share:.1f} %" if share else "none", "black" if share else "grey", font)
    draw.text(
        (left + _VALUES, top), _fitting(seen.values_of(train), font, _PAIR - _VALUES - _GAP, end=False), "black", font
    )


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int, end: bool = True) -> str:
    """The text, or only its end or its beginning if it is wider than that many pixels."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[1:] if end else text[:-1]
    return f"...{text}" if end else f"{text}..."


def _font(size: int, letters: str = "") -> ImageFont.FreeTypeFont:
    """Matplotlib's letters, since Pillow's own font lacks those of most languages; for CJK a font of the system."""
    return ImageFont.truetype(_font_file(max(letters, default="") >= _FIRST_OF_CJK), size - 1)


@functools.cache
def _font_file(cjk: bool) -> str:
    """The file of a font; Matplotlib's own if the system has none for Chinese, Japanese and Korean."""
    import matplotlib  # imported here because it is slow

    files = {"": str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))}
    if cjk:
        from matplotlib import font_manager  # lists the fonts of the system, which takes seconds the first time

        files |= {font.name: font.fname for font in font_manager.fontManager.ttflist}
    return next(files[name] for name in (*_CJK, "") if name in files)
