"""Make ADE20K's scene parsing benchmark, as downloaded, ready to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from degrid.data.formats.benchmarks.ade20k import ADE_CLASSES, ADE_RULE, Ade20k, ade_pairs
from degrid.data.formats.classes import table_in
from degrid.data.formats.masks import Color
from degrid.data.prepare.listing import ListWriter, folder_at, write_train_ids
from degrid.lookup import counted
from degrid.types import OnProgress, UserError

_COUNTS = {"train": 20_210, "val": 2_000}
_FOLDER = "annotations_train_ids"


def prepare_ade20k(path: str | Path, progress: OnProgress | None = None) -> list[str]:
    """Write labels as train ids to annotations_train_ids, and train.txt, val.txt and classes.csv beside them.

    Id 0, "other", becomes void, 1 to 150 become 0 to 149. Existing labels are kept. Images without a label are left
    out. Source: the benchmark's list objectInfo150.txt, and its evaluation code, which leaves out pixels of id 0.

    Args:
        path: ADEChallengeData2016, or the folder with it.
        progress: told how many labels are made.
    Returns:
        The report; see `degrid.data.prepare_benchmark`.
    Raises:
        UserError: this is not ADE20K, a label is damaged or has other ids, or a class table has other classes.
    """
    root = folder_at(path)
    layout = Ade20k().find(root)
    if layout is None:
        raise UserError(
            f"no ADE20K in {root}; expected ADEChallengeData2016 with images/training, images/validation, "
            "annotations/training and annotations/validation"
        )
    base, labels = layout.root, layout.labels
    splits, _ = ade_pairs(base)
    assert labels is not None
    if len(labels) != ADE_CLASSES:
        table = table_in(base, labels)
        raise UserError(
            f"{table} names {counted(len(labels), 'class')}, ADE20K has {ADE_CLASSES}; remove it before preparing"
        )
    lists = ListWriter(base, labels, _COUNTS)
    if labels.names[0] == "object 1":
        lists.report.append(
            f"warning: no objectInfo150.txt in {base}: the classes are called object 1 to object 150; put it "
            "there, delete classes.csv and prepare again for their names"
        )
    masks = [pair.mask for pairs in splits.values() for pair in pairs if pair.mask]
    targets = {mask: base / _FOLDER / mask.relative_to(base / "annotations") for mask in masks}
    made = write_train_ids(targets, ADE_RULE, labels, _refuse, progress)
    lists.report.append(f"{made:,} labels made in {base / _FOLDER}")
    for split in _COUNTS:
        pairs = splits.get(split, [])
        lists.warn(f"{split}: {{}} no label", [pair.image for pair in pairs if pair.mask is None])
        lists.write(split, [(pair.image, targets[pair.mask]) for pair in pairs if pair.mask])
    lists.warn("{} no image", layout.orphans, "label")
    return lists.finish()


def _refuse(source: Path, ids: np.ndarray, unknown: dict[int | Color, int]) -> None:
    shown = ", ".join(map(str, list(unknown)[:4]))
    raise UserError(f"{source} has the values {shown}; labels of ADE20K have ids from 0 to {ADE_CLASSES}")
