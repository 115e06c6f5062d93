"""SUIM: pictures taken under water."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.benchmarks.common import benchmark, by_color, in_full_colors
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import match_names
from degrid.types import LabelSpace

_NAMES = (
    "background (waterbody)",
    "human divers",
    "aquatic plants and sea-grass",
    "wrecks and ruins",
    "robots (AUVs/ROVs/instruments)",
    "reefs and invertebrates",
    "fish and vertebrates",
    "sea-floor and rocks",
)
SUIM = LabelSpace(_NAMES, tuple((255 * (k >> 2 & 1), 255 * (k >> 1 & 1), 255 * (k & 1)) for k in range(8)))
"""The bits of a class's number are its red, green and blue."""


class Suim(DataFormat):
    """train_val/images and masks (.bmp), TEST/images and masks; colours that are not pure are parted at 128."""

    wanted = "train_val/images, train_val/masks and TEST (SUIM)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        splits, orphans = {}, []
        for split, top in (("train", "train_val"), ("test", "TEST")):
            images, masks = path / top / "images", path / top / "masks"
            if images.is_dir() and masks.is_dir():
                # TEST/masks has further folders with masks of single classes.
                pairs, lost = match_names(sorted(images.glob("*.jpg")), images, sorted(masks.glob("*.bmp")), masks)
                splits[split] = in_full_colors(pairs)
                orphans += lost
        if not any(splits.values()):
            return None
        reason = "train_val and TEST, images and masks"
        return benchmark(reason, path, splits, SUIM, by_color(SUIM, "SUIM"), [], orphans)
