"""Datasets of image and mask files, and the one way to open them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from degrid.catalog import did_you_mean, lookup
from degrid.data.classes import class_table
from degrid.data.description import read_description
from degrid.data.layouts import recognise
from degrid.data.masks import MaskRule, read_mask
from degrid.data.pairs import Layout, Pair, read_list, split_of
from degrid.data.synthetic import SyntheticScenes
from degrid.image import open_image, to_array
from degrid.types import IGNORE_INDEX, Dataset, LabelSpace, Sample, UserError

# Masks looked at to find out the classes, where nothing names them; one mask more may hold a rarer class.
_SCANNED = 1000


class PairDataset:
    """Images with masks.

    Args:
        pairs: the files.
        labels: the classes.
        rule: how the masks' values become train ids.
        note: what was decided for the user when the dataset was opened.
    """

    def __init__(self, pairs: Sequence[Pair], labels: LabelSpace, rule: MaskRule, note: str = "") -> None:
        self.pairs, self.labels, self.rule, self.note = list(pairs), labels, rule, note

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its mask.

        Raises:
            UserError: a file that is missing or damaged, a mask of another size, or an unknown id or colour.
        """
        pair = self.pairs[index]
        if pair.mask is None:
            raise UserError(f"{pair.image} has no mask; degrid data check lists all such images")
        raw = read_mask(pair.mask)
        image = read_image_like(pair.image, raw.shape[:2])
        if image.shape[:2] != raw.shape[:2]:
            raise UserError(
                f"{pair.mask} is {raw.shape[1]}x{raw.shape[0]} pixels, its image {pair.image.name} is "
                f"{image.shape[1]}x{image.shape[0]}; they must be of one size"
            )
        ids, unknown = self.rule.apply(raw)
        if unknown:
            raise UserError(unknown_message(pair.mask, unknown, self.labels))
        return Sample(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(ids), pair.name)


def read_image_like(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """An image as RGB uint8 [H,W,3]; turned by its EXIF orientation, unless only the unturned image fits `size`."""
    image = open_image(path)
    turned = to_array(image)
    if turned.shape[:2] != size and (image.height, image.width) == tuple(size):
        # Some labelling tools ignore the orientation: the mask then lies as the pixels are stored.
        image.getexif().clear()
        image.info.pop("exif", None)
        return np.array(image.convert("RGB"))
    return turned


def unknown_message(mask: Path, unknown: dict[int | tuple[int, int, int], int], labels: LabelSpace) -> str:
    """One sentence on values in a mask that no class has.

    Args:
        unknown: pixels per value.
    """
    pixels = sum(unknown.values())
    shown = ", ".join(str(value) for value in list(unknown)[:4]) + (", ..." if len(unknown) > 4 else "")
    if any(isinstance(value, tuple) for value in unknown):
        return (
            f"{mask} has the colours {shown}, which belong to no class ({pixels} pixels); give every class its colour "
            "in classes.csv (id,name,r,g,b) or dataset.yaml, or list the colours under void there"
        )
    return (
        f"{mask} has the ids {shown}; expected 0 to {len(labels) - 1} or {IGNORE_INDEX} (void); {pixels} pixels have "
        "such ids; give more classes, or a mapping of ids, in dataset.yaml (degrid data check shows all ids)"
    )


def open_layout(path: str | Path, root: str | Path | None = None) -> Layout:
    """A dataset's files and classes, from a folder, dataset.yaml or list file.

    Args:
        root: for a list file: where the leading slash of its paths points.
    Raises:
        UserError: missing, or not recognised.
    """
    place = Path(path).expanduser()
    if not place.exists():
        near = did_you_mean(place.name, [p.name for p in place.parent.iterdir()]) if place.parent.is_dir() else ""
        raise UserError(f"no data at {place}.{near} Give a folder, a dataset.yaml, a list file, or 'synthetic'")
    if place.is_dir():
        description = next((place / n for n in ("dataset.yaml", "dataset.yml") if (place / n).exists()), None)
        layout = read_description(description) if description else recognise(place)
    elif place.suffix in (".yaml", ".yml"):
        layout = read_description(place)
    elif place.suffix == ".txt":
        layout = _lists_beside(place, None if root is None else Path(root))
    else:
        raise UserError(f"expected a folder, a dataset.yaml or a list file (.txt), got the file {place}")
    return resolve_classes(layout)


def _lists_beside(file: Path, root: Path | None) -> Layout:
    """A list file, with train.txt, val.txt and test.txt beside it as the other splits."""
    siblings = {split_of(f.stem): f for f in sorted(file.parent.glob("*.txt")) if f.stem in ("train", "val", "test")}
    # A list with a name of its own, such as trainaug.txt, is given in order to train on it.
    own = split_of(file.stem) if split_of(file.stem) in ("train", "val", "test") else "train"
    splits = {split: read_list(place, root) for split, place in {**siblings, own: file}.items()}
    return Layout("lists", file.parent, splits, *class_table(root or file.parent))


def open_dataset(
    path: str | Path, split: str = "train", labels: LabelSpace | None = None, *, root: str | Path | None = None
) -> Dataset:
    """Open one split of a dataset.

    Args:
        path: a folder (images and masks by name, VOC, Cityscapes, CamVid, list files), a dataset.yaml, a list file,
            "synthetic" for the built-in scenes ("synthetic:50" for 50 per split), or "module:Dataset" of your own
            (called with the split).
        split: train, val, test, or another name the dataset has.
        labels: the classes expected, such as those of a trained model; needed where the data do not name them.
        root: for a list file: where the leading slash of its paths points; by default its folder or one above it.
    Raises:
        UserError: not there, not recognised, no such split, images without masks, or other classes than expected.
    """
    name = str(path)
    if is_by_name(path) and name.partition(":")[0] == "synthetic":
        found: Dataset = SyntheticScenes(split, _number_of_scenes(name))
    elif is_by_name(path):
        found = cast(Dataset, lookup({}, name, "dataset")(split))
    else:
        layout = open_layout(path, root)
        if split not in layout.splits:
            raise UserError(
                f'{path} has no split "{split}"; it has: {", ".join(layout.splits)}. Choose one of these, or add a '
                f"folder {split}/ or a list {split}.txt"
            )
        pairs = layout.splits[split]
        _check_masks(pairs, path, split)
        assert layout.labels is not None
        assert layout.rule is not None
        found = PairDataset(pairs, layout.labels, layout.rule, layout.note)
    if labels is not None and labels.names != found.labels.names:
        found = _as_expected(found, labels, name)
    return found


def is_by_name(path: str | Path) -> bool:
    """Whether a dataset is "synthetic" or "module:Dataset", and no place on the disk."""
    name = str(path)
    return name == "synthetic" or (":" in name and not Path(name).exists())


def _number_of_scenes(name: str) -> int | None:
    count = name.partition(":")[2]
    if name != "synthetic" and not (count.isdecimal() and int(count) > 0):
        raise UserError(f'expected "synthetic" or a number of scenes, as in "synthetic:50"; got "{name}"')
    return int(count) if count else None


def _check_masks(pairs: list[Pair], path: str | Path, split: str) -> None:
    if not pairs:
        raise UserError(f'the split "{split}" of {path} is empty')
    absent = [pair for pair in pairs if not pair.image.exists()]
    if absent:
        raise UserError(
            f'{len(absent)} of {len(pairs)} images in the split "{split}" of {path} are not there, {absent[0].image} '
            "among them; add them, or take them off the list (degrid data check lists them)"
        )
    lost = [pair for pair in pairs if pair.mask is None or not pair.mask.exists()]
    if lost:
        first = lost[0]
        raise UserError(
            f'{len(lost)} of {len(pairs)} images in the split "{split}" of {path} have no mask, {first.image} among '
            f"them {f'(expected {first.mask})' if first.mask else ''}; add the masks or take the images away "
            "(degrid data check lists them)"
        )


def _as_expected(found: Dataset, labels: LabelSpace, name: str) -> Dataset:
    """Data whose classes were guessed from the masks take the model's; other disagreements are the user's."""
    if isinstance(found, PairDataset):
        numbered = found.labels.names == LabelSpace.of_size(len(found.labels)).names
        if numbered and len(found.labels) <= len(labels):
            return PairDataset(found.pairs, labels, MaskRule.plain(labels), found.note)
        if found.labels == _BINARY_LABELS and len(labels) == 2:
            return PairDataset(found.pairs, labels, found.rule, found.note)
    ours, theirs = ", ".join(labels.names[:6]), ", ".join(found.labels.names[:6])
    raise UserError(
        f"{name} has {len(found.labels)} classes ({theirs}{', ...' if len(found.labels) > 6 else ''}); expected "
        f"{len(labels)} ({ours}{', ...' if len(labels) > 6 else ''})"
    )


def resolve_classes(layout: Layout) -> Layout:
    """Fill in classes and rule where the layout does not have them, by scanning the masks.

    Masks with nothing but 0 and 255 are black and white pictures of two classes; otherwise 255 is void.
    """
    if layout.labels is not None:
        layout.rule = layout.rule or MaskRule.plain(layout.labels)
        if len(layout.labels) == 2 and _black_and_white(layout):
            layout.rule = _BINARY
            _note(layout, _BINARY_NOTE)
        return layout
    scanned = _spread(layout)
    values = set().union(*(_values_of(mask, layout.root) for mask in scanned))
    if values == {0, IGNORE_INDEX}:
        layout.labels, layout.rule = _BINARY_LABELS, _BINARY
        _note(layout, _BINARY_NOTE)
        return layout
    highest = max((value for value in values if value != IGNORE_INDEX), default=0)
    layout.labels = LabelSpace.of_size(highest + 1)
    layout.rule = MaskRule.plain(layout.labels)
    total = sum(map(len, layout.splits.values()))
    found = f"ids up to {highest} found in {len(scanned)} of {total} masks" if values else "and no mask can be read"
    _note(layout, f"no table of classes: {found}")
    return layout


_BINARY_LABELS = LabelSpace(("background", "foreground"), ((0, 0, 0), (255, 64, 64)))
_BINARY = MaskRule({0: 0, IGNORE_INDEX: 1}, {(0, 0, 0): 0, (255, 255, 255): 1})
_BINARY_NOTE = "masks hold only 0 and 255: taken as background and foreground"


def _note(layout: Layout, text: str) -> None:
    layout.note = f"{layout.note}; {text}" if layout.note else text


def _spread(layout: Layout) -> list[Path]:
    """At most _SCANNED masks, spread over the dataset."""
    masks = [pair.mask for pairs in layout.splits.values() for pair in pairs if pair.mask]
    return masks[:: math.ceil(len(masks) / _SCANNED) or 1]


def _black_and_white(layout: Layout) -> bool:
    """Whether the masks hold 0 and 255, both, and nothing else. Most datasets are done with at the first mask."""
    seen: set[int] = set()
    for mask in _spread(layout):
        try:
            raw = read_mask(mask)
        except UserError:
            continue  # reported when it is used
        if not ((raw == 0) | (raw == IGNORE_INDEX)).all() or (raw.ndim == 3 and (raw != raw[..., :1]).any()):
            return False
        seen |= set(np.unique(raw).tolist())
    return seen == {0, IGNORE_INDEX}


def _values_of(mask: Path, root: Path) -> set[int]:
    """The ids in a mask; none where it is damaged, which is reported when the mask is used.

    Raises:
        UserError: a colour mask, which needs a table of classes; or ids that are no class ids.
    """
    try:
        raw = read_mask(mask)
    except UserError:
        return set()
    if raw.ndim == 3:
        if (raw != raw[..., :1]).any():
            raise UserError(
                f"{mask} is a colour picture and nothing says which colour is which class; write {root}/classes.csv "
                "with the columns id,name,r,g,b"
            )
        raw = raw[..., 0]  # ids saved as a grey RGB picture
    if raw.dtype == np.uint8:
        return set(np.flatnonzero(np.bincount(raw.ravel())).tolist())
    if raw.min() < 0 or raw.max() > 255:
        raise UserError(
            f"{mask} holds ids from {raw.min()} to {raw.max()}; degrid has at most 255 classes: map the ids in "
            "dataset.yaml"
        )
    return set(np.unique(raw).tolist())
