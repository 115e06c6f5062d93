"""Datasets of image and mask files, and the one way to open them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from degrid.catalog import did_you_mean, lookup
from degrid.data.description import read_description
from degrid.data.layouts import recognise
from degrid.data.masks import MaskRule, read_mask
from degrid.data.pairs import Layout, Pair, label_file, read_list
from degrid.data.synthetic import SyntheticScenes
from degrid.image import open_image, to_array
from degrid.types import IGNORE_INDEX, Dataset, LabelSpace, Sample, UserError

# Masks looked at to find out the classes, where nothing names them.
_SCANNED = 400


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
    """One sentence on values in a mask that no class has."""
    shown = ", ".join(str(value) for value in list(unknown)[:4]) + (", ..." if len(unknown) > 4 else "")
    if any(isinstance(value, tuple) for value in unknown):
        return (
            f"{mask} has the colours {shown}, which belong to no class; give every class its colour in classes.csv "
            "(id,name,r,g,b) or dataset.yaml, or list the colours under void there"
        )
    return (
        f"{mask} has the ids {shown}; expected 0 to {len(labels) - 1} or {IGNORE_INDEX} (void); give more classes, or "
        "a mapping of ids, in dataset.yaml (degrid data check shows all ids)"
    )


def open_layout(path: str | Path) -> Layout:
    """A dataset's files and classes, from a folder, dataset.yaml or list file.

    Raises:
        UserError: missing, or not recognised.
    """
    place = Path(path)
    if not place.exists():
        near = did_you_mean(place.name, [p.name for p in place.parent.iterdir()]) if place.parent.is_dir() else ""
        raise UserError(f"no data at {place}.{near} Give a folder, a dataset.yaml, a list file, or 'synthetic'")
    if place.is_dir():
        description = next((place / n for n in ("dataset.yaml", "dataset.yml") if (place / n).exists()), None)
        layout = read_description(description) if description else recognise(place)
    elif place.suffix in (".yaml", ".yml"):
        layout = read_description(place)
    elif place.suffix == ".txt":
        siblings = {f.stem: f for f in place.parent.glob("*.txt") if f.stem in ("train", "val", "test")}
        lists = {**siblings, place.stem: place}
        layout = Layout("lists", place.parent, {name: read_list(file) for name, file in lists.items()})
        layout.labels = label_file(place.parent)
    else:
        raise UserError(f"expected a folder, a dataset.yaml or a list file (.txt), got the file {place}")
    return resolve_classes(layout)


def open_dataset(path: str | Path, split: str = "train", labels: LabelSpace | None = None) -> Dataset:
    """Open one split of a dataset.

    Args:
        path: a folder (images and masks by name, VOC, Cityscapes, CamVid, list files), a dataset.yaml, a list file,
            "synthetic" for the built-in scenes, or "module:Dataset" of your own (called with the split).
        split: train, val, test, or another name the dataset has.
        labels: the classes expected, such as those of a trained model; needed where the data do not name them.
    Raises:
        UserError: not there, not recognised, no such split, images without masks, or other classes than expected.
    """
    name = str(path)
    if name == "synthetic":
        found: Dataset = SyntheticScenes(split)
    elif ":" in name and not Path(name).exists():
        found = cast(Dataset, lookup({}, name, "dataset")(split))
    else:
        layout = open_layout(path)
        if split not in layout.splits:
            raise UserError(f'{path} has no split "{split}"; it has: {", ".join(layout.splits)}')
        pairs = layout.splits[split]
        _check_masks(pairs, path, split)
        assert layout.labels is not None
        assert layout.rule is not None
        found = PairDataset(pairs, layout.labels, layout.rule, layout.note)
    if labels is not None and labels.names != found.labels.names:
        found = _as_expected(found, labels, name)
    return found


def _check_masks(pairs: list[Pair], path: str | Path, split: str) -> None:
    if not pairs:
        raise UserError(f'the split "{split}" of {path} is empty')
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
    guessed = found.labels.names == LabelSpace.of_size(len(found.labels)).names
    if isinstance(found, PairDataset) and guessed and len(found.labels) <= len(labels):
        return PairDataset(found.pairs, labels, MaskRule.plain(labels), found.note)
    ours, theirs = ", ".join(labels.names[:6]), ", ".join(found.labels.names[:6])
    raise UserError(
        f"{name} has {len(found.labels)} classes ({theirs}{', ...' if len(found.labels) > 6 else ''}); expected "
        f"{len(labels)} ({ours}{', ...' if len(labels) > 6 else ''})"
    )


def resolve_classes(layout: Layout) -> Layout:
    """Fill in classes and rule where the layout does not have them, by scanning the masks."""
    if layout.labels is not None:
        layout.rule = layout.rule or MaskRule.plain(layout.labels)
        if len(layout.labels) == 2 and _values_in(layout) == {0, IGNORE_INDEX}:
            layout.rule, layout.note = _BINARY, f"{layout.note} {_BINARY_NOTE}".strip()
        return layout
    values = _values_in(layout)
    if values == {0, IGNORE_INDEX}:
        layout.labels, layout.rule = (
            LabelSpace(("background", "foreground"), ((0, 0, 0), (255, 64, 64))),
            _BINARY,
        )
        layout.note = f"{layout.note} {_BINARY_NOTE}".strip()
        return layout
    highest = max((value for value in values if value != IGNORE_INDEX), default=0)
    layout.labels = LabelSpace.of_size(highest + 1)
    layout.rule = MaskRule.plain(layout.labels)
    return layout


_BINARY = MaskRule({0: 0, IGNORE_INDEX: 1}, {(0, 0, 0): 0, (255, 255, 255): 1})
_BINARY_NOTE = "masks hold only 0 and 255: taken as background and foreground"


def _values_in(layout: Layout) -> set[int]:
    """The ids in a spread of the masks. Damaged masks are passed over here; they are reported when used.

    Raises:
        UserError: colour masks, which need a table of classes; or ids above 255.
    """
    masks = [pair.mask for pairs in layout.splits.values() for pair in pairs if pair.mask]
    values: set[int] = set()
    for mask in masks[:: max(1, len(masks) // _SCANNED)]:
        try:
            raw = read_mask(mask)
        except UserError:
            continue
        if raw.ndim == 3:
            colors = {tuple(color) for color in raw.reshape(-1, 3)[:: max(1, raw.size // 30_000)].tolist()}
            if colors <= {(0, 0, 0), (255, 255, 255)}:
                values |= {color[0] for color in colors}
                continue
            if layout.labels is not None:
                return set()
            raise UserError(
                f"{mask} is a colour picture and nothing says which colour is which class; write "
                f"{layout.root}/classes.csv with the columns id,name,r,g,b"
            )
        values |= set(np.unique(raw).tolist())
    if values and max(values) > 255 and layout.labels is None:
        raise UserError(
            f"masks in {layout.root} hold ids up to {max(values)}; degrid has at most 255 classes: map the ids in "
            "dataset.yaml"
        )
    return values
