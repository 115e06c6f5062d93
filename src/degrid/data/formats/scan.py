"""Everything a dataset holds, and the classes found in its masks where nothing names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from degrid.data.formats.masks import MaskRule, read_mask
from degrid.data.formats.pairs import Layout, Pair
from degrid.data.tfrecord.dataset import read_record_label
from degrid.data.tfrecord.records import Record, records_in
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

# Masks looked at to find out the classes, where nothing names them; one mask more may hold a rarer class.
_SCANNED = 1000

BINARY_LABELS = LabelSpace(("background", "foreground"), ((0, 0, 0), (255, 64, 64)))
"""The classes of black and white masks."""
_BINARY = MaskRule({0: 0, IGNORE_INDEX: 1}, {(0, 0, 0): 0, (255, 255, 255): 1})
_BINARY_NOTE = "masks hold only 0 and 255: taken as background and foreground"


def entries(layout: Layout, on_damage: Callable[[UserError], None]) -> dict[str, list[Pair] | list[Record]]:
    """All pairs or records of a layout by split.

    Args:
        on_damage: told of each TFRecord file that cannot be read to its end; the records before that place count.
    """
    found: dict[str, list[Pair] | list[Record]] = dict(layout.splits)
    for split, files in layout.records.items():
        records: list[Record] = []
        for file in files:
            try:
                records.extend(records_in(file))
            except UserError as error:
                on_damage(error)
        found[split] = records
    return found


def resolve_classes(layout: Layout) -> Layout:
    """Fill in classes and rule where the layout does not have them, by scanning the masks.

    Masks with nothing but 0 and 255 are black and white pictures of two classes; otherwise 255 is void.
    """
    if layout.labels is not None:
        layout.rule = layout.rule or MaskRule.plain(layout.labels)
        if len(layout.labels) == 2 and _black_and_white(layout):
            layout.rule = _BINARY
            layout.notes.append(_BINARY_NOTE)
        return layout
    masks = _masks(layout)
    scanned = _spread(masks)
    values = set().union(*(_values_of(mask, layout.root) for mask in scanned))
    if values == {0, IGNORE_INDEX}:
        layout.labels, layout.rule = BINARY_LABELS, _BINARY
        layout.notes.append(_BINARY_NOTE)
        return layout
    highest = max((value for value in values if value != IGNORE_INDEX), default=0)
    layout.labels = LabelSpace.of_size(highest + 1)
    layout.rule = MaskRule.plain(layout.labels)
    where = f"{len(scanned)} of {len(masks)} masks"
    found = f"ids up to {highest} found in {where}" if values else "and no mask can be read"
    layout.notes.append(f"no table of classes: {found}")
    return layout


def _masks(layout: Layout) -> list[Path | Record]:
    found = entries(layout, lambda error: None)  # reported when the file is used
    everything = [entry for split in found.values() for entry in split]
    places = [entry if isinstance(entry, Record) else entry.mask for entry in everything]
    return [place for place in places if place]


def _spread(masks: list[Path | Record]) -> list[Path | Record]:
    """At most _SCANNED of them, from the whole dataset."""
    return masks[:: math.ceil(len(masks) / _SCANNED) or 1]


def _read(mask: Path | Record) -> np.ndarray:
    return read_record_label(mask) if isinstance(mask, Record) else read_mask(mask)


def _black_and_white(layout: Layout) -> bool:
    """Whether the masks hold 0 and 255, both, and nothing else. Most datasets are done with at the first mask."""
    seen: set[int] = set()
    for mask in _spread(_masks(layout)):
        try:
            raw = _read(mask)
        except UserError:
            continue  # reported when it is used
        if not ((raw == 0) | (raw == IGNORE_INDEX)).all() or (raw.ndim == 3 and (raw != raw[..., :1]).any()):
            return False
        seen |= set(np.unique(raw).tolist())
    return seen == {0, IGNORE_INDEX}


def _values_of(mask: Path | Record, root: Path) -> set[int]:
    """The ids in a mask; none where it is damaged, which is reported when the mask is used.

    Raises:
        UserError: a colour mask, which needs a table of classes; or ids that are no class ids.
    """
    try:
        raw = _read(mask)
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
