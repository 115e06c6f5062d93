"""Make ADE20K's scene parsing benchmark ready to train on: labels as train ids, lists, and a count of what is there."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.ade20k import ADE_CLASSES, ADE_RULE, Ade20k
from degrid.data.formats.classes import table_in
from degrid.data.formats.masks import read_mask
from degrid.data.formats.pairs import Pair
from degrid.data.prepare.files import Lists, OnImage, folder_at, save_ids
from degrid.types import LabelSpace, UserError

_COUNTS = {"train": 20_210, "val": 2_000}
_FOLDER = "annotations_train_ids"


def prepare_ade20k(path: str | Path, on_image: OnImage | None = None) -> list[str]:
    """Write labels as train ids to annotations_train_ids, and train.txt, val.txt and classes.csv beside them.

    Train ids: 0, "other", is void, 1 to 150 are 0 to 149. Labels that are there stay. Images without a label are left
    out. Source: the benchmark's own list, objectInfo150.txt, and its evaluation, which leaves out the pixels of id 0.

    Args:
        path: ADEChallengeData2016, or the folder with it.
        on_image: called with (done, total) for each label made.
    Returns:
        One line per finding; those on what is missing, or is more or less than expected, begin with "warning: ". The
        last line says what was written and how to train on it.
    Raises:
        UserError: no ADE20K, a damaged label or one with other ids, or a table of other classes.
    """
    root = folder_at(path)
    found = Ade20k(root)
    if not found.reason():
        raise UserError(
            f"no ADE20K in {root}; expected ADEChallengeData2016 with images/training, images/validation, "
            "annotations/training and annotations/validation"
        )
    base, layout, all_pairs = found.base, found.layout(), found.pairs
    labels = layout.labels
    assert labels is not None
    if len(labels) != ADE_CLASSES:
        table = table_in(base, labels)
        raise UserError(f"{table} names {len(labels)} classes, ADE20K has {ADE_CLASSES}; take it away to prepare")
    prepared = Lists(base, labels, _COUNTS)
    if labels.names[0] == "object 1":
        prepared.report.append(
            f"warning: no objectInfo150.txt in {base}: the classes are called object 1 to object 150; put it there, "
            "delete classes.csv and prepare again for their names"
        )
    made = _train_ids(all_pairs, base, labels, on_image)
    prepared.report.append(f"{made:,} labels made in {base / _FOLDER}")
    for split in _COUNTS:
        pairs = all_pairs.get(split, [])
        unlabelled = [pair.image for pair in pairs if pair.mask is None]
        if unlabelled:
            prepared.report.append(
                f"warning: {split}: {len(unlabelled):,} images have no label, {unlabelled[0]} among them"
            )
        prepared.write(split, [(pair.image, _target(base, pair.mask)) for pair in pairs if pair.mask])
    if layout.orphans:
        prepared.report.append(f"warning: {len(layout.orphans):,} labels have no image, {layout.orphans[0]} among them")
    return prepared.finish()


def _target(base: Path, mask: Path) -> Path:
    return base / _FOLDER / mask.relative_to(base / "annotations")


def _train_ids(splits: dict[str, list[Pair]], base: Path, labels: LabelSpace, on_image: OnImage | None) -> int:
    """Make the labels that are missing; how many these were."""
    masks = [pair.mask for pairs in splits.values() for pair in pairs if pair.mask]
    todo = {mask: _target(base, mask) for mask in masks if not _target(base, mask).exists()}
    for done, (source, target) in enumerate(todo.items(), 1):
        ids, unknown = ADE_RULE.apply(read_mask(source))
        if unknown:
            shown = ", ".join(map(str, list(unknown)[:4]))
            raise UserError(f"{source} has the values {shown}; labels of ADE20K have ids from 0 to {ADE_CLASSES}")
        save_ids(ids, target, labels)
        if on_image:
            on_image(done, len(todo))
    return len(todo)
