"""Datasets of files, and the one way to open them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from degrid.data.formats.classes import class_table
from degrid.data.formats.description import read_description
from degrid.data.formats.layouts import recognise
from degrid.data.formats.masks import MaskRule, read_mask, rgb_like, unknown_message
from degrid.data.formats.pairs import Layout, Pair, read_list, split_of
from degrid.data.formats.scan import BINARY_LABELS, resolve_classes
from degrid.data.synthetic import SyntheticScenes
from degrid.data.tfrecord.dataset import TFRecordDataset
from degrid.data.tfrecord.shards import is_record_file, records_beside
from degrid.image import open_image, read_jpeg
from degrid.lookup import did_you_mean, lookup
from degrid.types import Dataset, LabelSpace, Sample, UserError


class PairDataset:
    """Images with masks.

    Args:
        pairs: the files.
        labels: the classes.
        rule: how the masks' values become train ids.
        notes: what was decided for the user when the dataset was opened, one sentence each.
    """

    def __init__(self, pairs: Sequence[Pair], labels: LabelSpace, rule: MaskRule, notes: Sequence[str] = ()) -> None:
        self.pairs, self.labels, self.rule, self.notes = list(pairs), labels, rule, list(notes)

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
    pixels = read_jpeg(path)
    return rgb_like(open_image(path), size) if pixels is None else pixels


def open_layout(path: str | Path, root: str | Path | None = None) -> Layout:
    """A dataset's files and classes, from a folder, dataset.yaml, list file or TFRecord file.

    Args:
        root: for a list file: where the leading slash of its paths points.
    Raises:
        UserError: missing, or not recognised.
    """
    place = Path(path).expanduser()
    if not place.exists():
        near = did_you_mean(place.name, [p.name for p in place.parent.iterdir()]) if place.parent.is_dir() else ""
        raise UserError(f"no data at {place}.{near} Give a folder, dataset.yaml, list or TFRecord file, or 'synthetic'")
    if place.is_dir():
        description = next((place / n for n in ("dataset.yaml", "dataset.yml") if (place / n).exists()), None)
        layout = read_description(description) if description else recognise(place)
    elif place.suffix in (".yaml", ".yml"):
        layout = read_description(place)
    elif place.suffix == ".txt":
        layout = _lists_beside(place, None if root is None else Path(root))
    elif is_record_file(place):
        layout = records_beside(place)
    else:
        raise UserError(
            f"expected a folder, dataset.yaml, list file (.txt) or TFRecord file (.tfrecord), got the file {place}"
        )
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
        path: a folder (images and masks by name, VOC, Cityscapes, CamVid, ADE20K, COCO as `degrid data prepare` leaves
            it, list files, TFRecord files), a dataset.yaml, a list file, a TFRecord file, "synthetic" for the built-in
            scenes ("synthetic:50" for 50 per split), or "module:Dataset" of your own (called with the split).
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
        found = _open_split(open_layout(path, root), split, path)
    if labels is not None and labels.names != found.labels.names:
        found = _as_expected(found, labels, name)
    return found


def notes_of(dataset: Dataset) -> list[str]:
    """What was decided for the user when a dataset was opened, one sentence each; none for a dataset of their own."""
    return list(dataset.notes) if isinstance(dataset, PairDataset | TFRecordDataset) else []


def _open_split(layout: Layout, split: str, path: str | Path) -> PairDataset | TFRecordDataset:
    assert layout.labels is not None
    assert layout.rule is not None
    if split in layout.splits:
        _check_masks(layout.splits[split], path, split)
        return PairDataset(layout.splits[split], layout.labels, layout.rule, layout.notes)
    if split in layout.records:
        found = TFRecordDataset(layout.records[split], layout.labels, layout.rule, layout.notes)
        if not found.records:
            raise UserError(f'the split "{split}" of {path} is empty')
        return found
    add = f"a file {split}.tfrecord" if layout.records else f"a folder {split}/ or a list {split}.txt"
    known = ", ".join([*layout.splits, *layout.records])
    raise UserError(f'{path} has no split "{split}"; it has: {known}. Choose one of these, or add {add}')


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
    if isinstance(found, PairDataset | TFRecordDataset):
        numbered = found.labels.names == LabelSpace.of_size(len(found.labels)).names
        if numbered and len(found.labels) <= len(labels):
            return _relabelled(found, labels, MaskRule.plain(labels))
        if found.labels == BINARY_LABELS and len(labels) == 2:
            return _relabelled(found, labels, found.rule)
    ours, theirs = ", ".join(labels.names[:6]), ", ".join(found.labels.names[:6])
    raise UserError(
        f"{name} has {len(found.labels)} classes ({theirs}{', ...' if len(found.labels) > 6 else ''}); expected "
        f"{len(labels)} ({ours}{', ...' if len(labels) > 6 else ''})"
    )


def _relabelled(found: PairDataset | TFRecordDataset, labels: LabelSpace, rule: MaskRule) -> Dataset:
    changed = copy.copy(found)
    changed.labels, changed.rule = labels, rule
    return changed
