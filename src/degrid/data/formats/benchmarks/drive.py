"""DRIVE: the vessels of the retina."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from degrid.data.formats.benchmarks.common import benchmark
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, images_in
from degrid.data.formats.read_mask import read_mask
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

VESSELS = LabelSpace(("background", "vessel"), ((0, 0, 0), (255, 255, 255)))


@dataclass(frozen=True)
class Seen(Pair):
    """A black and white mask, void outside the field of view.

    Attributes:
        view: the black and white picture of the field of view; None: everything was seen.
    """

    view: Path | None = field(default=None, kw_only=True)

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        label = _is_white(super().read_label()).astype(np.uint8)
        if self.view is not None:
            view = _is_white(read_mask(self.view))
            if view.shape != label.shape:
                raise UserError(f"{self.view} is not of the size of {self.mask}; both must fit {self.image.name}")
            label[~view] = IGNORE_INDEX
        return label


def _is_white(values: np.ndarray) -> np.ndarray:
    """Truth values [H,W] of a black and white picture: 0 and 255, or 0 and 1."""
    values = values if values.ndim == 2 else values.max(axis=-1)
    white: np.ndarray = values > (127 if values.max(initial=0) > 1 else 0)
    return white


class Drive(DataFormat):
    """training and test, each with images, 1st_manual (the vessels) and mask (the field of view, void outside)."""

    wanted = "training/images, training/1st_manual and training/mask (DRIVE)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        base = next((place for place in (path, path / "DRIVE") if (place / "training" / "1st_manual").is_dir()), None)
        if base is None:
            return None
        splits: dict[str, list[Pair]] = {}
        for split, top in (("train", "training"), ("test", "test")):
            place = base / top
            masks, views = _by_number(place / "1st_manual"), _by_number(place / "mask")
            splits[split] = [
                Seen(image.stem, image, masks.get(number), view=views.get(number))
                for number, image in _by_number(place / "images").items()
            ]
        second = any((base / top / "2nd_manual").is_dir() for top in ("training", "test"))
        notes = ["2nd_manual, by another observer, is not read"] if second else []
        if any(isinstance(pair, Seen) and pair.view for pairs in splits.values() for pair in pairs):
            notes.append("what lies outside the field of view (mask) is void")
        rule = MaskRule.plain(VESSELS, said="DRIVE")
        return benchmark("images, 1st_manual and mask", base, splits, VESSELS, rule, notes)


def _by_number(folder: Path) -> dict[str, Path]:
    """Files by what stands before the first "_": 21_training.tif, 21_manual1.gif and 21_training_mask.gif are 21."""
    return {file.stem.partition("_")[0]: file for file in images_in(folder)} if folder.is_dir() else {}
