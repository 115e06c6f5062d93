"""Benchmarks of aerial and satellite images: LoveDA, DeepGlobe, and ISPRS' Potsdam and Vaihingen."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np

from degrid.data.formats.benchmarks.common import benchmark, by_color, from_one, in_full_colors, under
from degrid.data.formats.layout import DataFormat, Layout, splits_of
from degrid.data.formats.pairs import Pair, images_in, match_names, pair_folders
from degrid.lookup import grouped
from degrid.types import LabelSpace, UserError

_LOVEDA = (
    ("background", (255, 255, 255)),
    ("building", (255, 0, 0)),
    ("road", (255, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (159, 129, 183)),
    ("forest", (0, 255, 0)),
    ("agriculture", (255, 195, 128)),
)
LOVEDA = LabelSpace(tuple(row[0] for row in _LOVEDA), tuple(row[1] for row in _LOVEDA))

_LAND_COVER = (
    ("urban land", (0, 255, 255)),
    ("agriculture land", (255, 255, 0)),
    ("rangeland", (255, 0, 255)),
    ("forest land", (0, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren land", (255, 255, 255)),
)
LAND_COVER = LabelSpace(tuple(row[0] for row in _LAND_COVER), tuple(row[1] for row in _LAND_COVER))
ROADS = LabelSpace(("background", "road"), ((0, 0, 0), (255, 255, 255)))

_ISPRS = (
    ("impervious surfaces", (255, 255, 255)),
    ("building", (0, 0, 255)),
    ("low vegetation", (0, 255, 255)),
    ("tree", (0, 255, 0)),
    ("car", (255, 255, 0)),
    ("clutter/background", (255, 0, 0)),
)
ISPRS = LabelSpace(tuple(row[0] for row in _ISPRS), tuple(row[1] for row in _ISPRS))
_BLACK = (0, 0, 0)


class LoveDA(DataFormat):
    """Train/Rural/images_png and masks_png, Train/Urban, Val/..: 0 is "no data" and void, 1 to 7 are the classes."""

    wanted = "Train/Rural/images_png and masks_png (LoveDA)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        splits: dict[str, list[Pair]] = {}
        for split, top in (("train", "Train"), ("val", "Val"), ("test", "Test")):
            for area in ("Rural", "Urban"):
                place = path / top / area
                if not place.is_dir():  # unpacked into a folder that is called like the archive
                    place = path / top / top / area
                found, _ = pair_folders({split: (place / "images_png", place / "masks_png")})
                splits.setdefault(split, []).extend(under(area, found.get(split, [])))
        if not any(splits.values()):
            return None
        return benchmark("images_png and masks_png", path, splits, LOVEDA, from_one(len(LOVEDA), "LoveDA"), [])


class DeepGlobe(DataFormat):
    """train/1_sat.jpg and train/1_mask.png, of land cover in colours or of roads in white.

    The masks are parted at 128, as the benchmark's description asks. In land cover, black is "unknown" and void.
    """

    wanted = "train/1_sat.jpg and train/1_mask.png (DeepGlobe)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        files = images_in(path) if _near(path, "*_sat.*") else []
        images = [file for file in files if re.fullmatch(r"\d+_sat\.(jpg|png)", file.name)]
        masks = [file for file in files if re.fullmatch(r"\d+_mask\.png", file.name)]
        if not images or not masks or len(images) + len(masks) != len(files):
            return None
        pairs, orphans = match_names(images, path, masks, path)
        kind = _kind(pairs)
        if not kind:
            return None
        pairs = in_full_colors(pairs)
        splits = _by_folder(pairs)
        roads = kind == "roads"
        labels = ROADS if roads else LAND_COVER
        rule = by_color(labels, "DeepGlobe", () if roads else (_BLACK,))
        found = benchmark(f"{kind}, {images[0].name} and {masks[0].name}", path, splits, labels, rule, [], orphans)
        if found and found.labels and found.labels.names[-1] == "unknown":
            found.labels, found.rule = labels, rule  # class_dict.csv of a copy of land cover, which lists void as well
        return found


def _by_folder(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """The pairs in folders named like splits; all others are for training."""
    tops = splits_of({pair.name.split("/")[0] for pair in pairs if "/" in pair.name})
    return grouped((tops.get(pair.name.split("/")[0], "train"), pair) for pair in pairs)


def _near(path: Path, pattern: str) -> bool:
    """Whether files of this name lie in the folder, or at most two below it: other folders are not searched."""
    return any(True for depth in ("", "*/", "*/*/") for _ in path.glob(depth + pattern))


def _kind(pairs: list[Pair]) -> str:
    """ "roads" or "land cover", after the first masks that can be read; "" where they hold ids, in other data."""
    seen: list[np.ndarray] = []
    for pair in pairs:
        if pair.mask is not None and len(seen) < 5:
            with contextlib.suppress(UserError):  # reported on use
                seen.append(pair.read_label())
    if any(values.ndim == 2 for values in seen) or not any((values >= 128).any() for values in seen):
        return ""
    return "roads" if all((values == values[..., :1]).all() for values in seen) else "land cover"


_TILE = re.compile(
    r"top_(?:potsdam_(?P<potsdam>\d+_\d+)|mosaic_09cm_area(?P<vaihingen>\d+))"
    r"(?:_(?P<kind>RGB|IRRG|RGBIR|label|noBoundary|label_noBoundary))?"
)
_LABEL_FOLDERS = re.compile("label|gts|ground_truth|noboundary|eroded", re.IGNORECASE)
# The tiles whose labels were kept for the test of the contest, and the order in which kinds of images are taken.
_POTSDAM_TEST = "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13"
_VAIHINGEN_TEST = "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38"
_TEST = frozenset([*_POTSDAM_TEST.split(), *_VAIHINGEN_TEST.split()])
_IMAGES, _LABELS = ("RGB", "IRRG", None, "RGBIR"), ("label", None, "label_noBoundary", "noBoundary")


class Isprs(DataFormat):
    """Tiles of Potsdam and Vaihingen anywhere in the folder, with labels in colours; black, in "noBoundary", is void.

    The contest's tiles for the test are the split test; the labels with boundaries are taken where both are there.
    """

    wanted = "top_potsdam_2_10_RGB.tif and top_potsdam_2_10_label.tif, or top_mosaic_09cm_area1.tif (ISPRS)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        if not _near(path, "top_*_*"):
            return None
        images, labels = _tiles(images_in(path))
        if not images or not labels:
            return None
        splits: dict[str, list[Pair]] = {"train": [], "test": []}
        for area, kinds in images.items():
            image = next(kinds[kind] for kind in _IMAGES if kind in kinds)
            masks = labels.get(area, {})
            mask = next((masks[kind] for kind in _LABELS if kind in masks), None)
            splits["test" if area in _TEST else "train"].append(Pair(image.stem, image, mask))
        orphans = [next(iter(labels[area].values())) for area in labels if area not in images]
        rule = by_color(ISPRS, "ISPRS", (_BLACK,))
        return benchmark(f"files such as {image.name}", path, splits, ISPRS, rule, [], orphans)


_Tiles = dict[str, dict[str | None, Path]]


def _tiles(files: list[Path]) -> tuple[_Tiles, _Tiles]:
    """The images and the labels of each tile, by their kinds."""
    images: _Tiles = {}
    labels: _Tiles = {}
    for file in files:
        tile = _TILE.fullmatch(file.stem)
        if tile:
            kind = tile["kind"]
            inside = kind is None and _LABEL_FOLDERS.search(file.parent.name)
            table = labels if inside or kind in ("label", "noBoundary", "label_noBoundary") else images
            table.setdefault(tile["potsdam"] or tile["vaihingen"], {})[kind] = file
    return images, labels
