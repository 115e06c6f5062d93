"""Finding the classes in the masks of a dataset that does not name them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import NO_DATA, MaskRule
from degrid.data.formats.source import BrokenSource, Source
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

# The most masks scanned for class ids; a rare class may occur only in the others.
_SCANNED = 1000

BINARY_LABELS = LabelSpace(("background", "foreground"), ((0, 0, 0), (255, 64, 64)))
"""The classes of black and white masks."""
_BINARY = MaskRule({0: 0, IGNORE_INDEX: 1}, {(0, 0, 0): 0, (255, 255, 255): 1})
_BINARY_NOTE = "masks hold only 0 and 255: taken as background and foreground"


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
    masks = _labelled(layout)
    scanned = _spread(masks)
    values = set().union(*(_values_of(source, layout.root) for source in scanned))
    if values == {0, IGNORE_INDEX}:
        layout.labels, layout.rule = BINARY_LABELS, _BINARY
        layout.notes.append(_BINARY_NOTE)
        return layout
    highest = max((value for value in values if value != IGNORE_INDEX), default=0)
    layout.labels = LabelSpace.of_size(highest + 1)
    layout.rule = MaskRule.plain(layout.labels)
    where = f"{len(scanned)} of {len(masks)} masks"
    found = f"they are numbered 0 to {highest}, after the ids in {where}" if values else "no mask can be read"
    layout.notes.append(f"the data name no classes: {found}")
    return layout


def _labelled(layout: Layout) -> list[Source]:
    """The sources whose label is there. Broken ones are reported when they are used."""
    everything = [source for split in layout.splits.values() for source in split]
    return [source for source in everything if not isinstance(source, BrokenSource) and source.places()[1]]


def _spread(sources: list[Source]) -> list[Source]:
    """At most _SCANNED of them, from the whole dataset."""
    return sources[:: math.ceil(len(sources) / _SCANNED) or 1]


def _black_and_white(layout: Layout) -> bool:
    """Whether the masks hold both 0 and 255 and nothing else. For most datasets the first mask decides."""
    seen: set[int] = set()
    for source in _spread(_labelled(layout)):
        try:
            raw = source.read_label()
        except UserError:
            continue  # reported when it is used
        if not ((raw == 0) | (raw == IGNORE_INDEX)).all() or (raw.ndim == 3 and (raw != raw[..., :1]).any()):
            return False
        seen |= set(np.unique(raw).tolist())
    return seen == {0, IGNORE_INDEX}


def _values_of(source: Source, root: Path) -> set[int]:
    """The ids in a mask; none where it is damaged, which is reported when the mask is used.

    Raises:
        UserError: a colour mask, which needs a table of classes; or ids that are no class ids.
    """
    try:
        raw = source.read_label()
    except UserError:
        return set()
    mask = source.places()[1]
    if raw.ndim == 3:
        if (raw != raw[..., :1]).any():
            raise UserError(
                f"{mask} is a colour picture and nothing says which colour is which class; write {root}/classes.csv "
                "with the columns id,name,r,g,b"
            )
        raw = raw[..., 0]  # ids saved as a grey RGB picture
    if raw.dtype == np.uint8:
        return set(np.flatnonzero(np.bincount(raw.ravel())).tolist())
    raw = raw[raw != NO_DATA]
    if raw.min(initial=0) < 0 or raw.max(initial=0) > IGNORE_INDEX:
        raise UserError(
            f"{mask} holds ids from {raw.min()} to {raw.max()}; degrid has at most 255 classes: map the ids in "
            "dataset.yaml"
        )
    return set(np.unique(raw).tolist())
