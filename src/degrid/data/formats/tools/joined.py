"""Labels that are kept as one mask per object or class, joined into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from degrid.data.formats.class_rows import VOID_NAMES
from degrid.data.formats.classes import class_table
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair
from degrid.data.formats.read_mask import read_mask
from degrid.data.formats.tools.label_files import BACKGROUND, LabelRow, is_background, labels_of
from degrid.types import IGNORE_INDEX, LabelSpace, UserError


@dataclass(frozen=True)
class JoinedMasks(Pair):
    """An image and several black and white masks of its size, each with the train id of what is white in it.

    Pixels that are white in none have the id `rest`. Where masks overlap, the smaller one counts: it is more likely in
    front of the larger one or a part of it, and the tools' files do not say.
    """

    layers: tuple[tuple[int, Path], ...] = ()
    rest: int = 0

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        found = [(train, _white(read_mask(file)), file) for train, file in self.layers]
        shape = found[0][1].shape
        for _, white, file in found:
            if white.ndim != 2 or white.shape != shape:
                raise UserError(
                    f"{file}: expected a grey mask of the size of {found[0][2].name}, {shape[1]}x{shape[0]}; got "
                    f"the shape {list(white.shape)}"
                )
        label = np.full(shape, self.rest, np.uint8)
        for train, white, _ in sorted(found, key=lambda layer: -np.count_nonzero(layer[1])):
            label[white] = train
        return label


def _white(values: np.ndarray) -> np.ndarray:
    """Where a mask is white; of one bit, or of 0 and 1, that is 1."""
    return values > (127 if values.max(initial=0) > 1 else 0)


def named_classes(
    rows: Iterable[LabelRow], path: Path | None, said: str
) -> tuple[LabelSpace, MaskRule, dict[str, int]]:
    """The classes of objects that name theirs: the user's table in `path`, or background and the rows in order.

    Args:
        rows: the classes that the tool has; their values do not count.
        path: where a table of the user's may be; None: nowhere.
        said: the file that names them.
    Returns:
        The classes, the rule for labels of train ids, and the train id of each name; that of "" is for pixels without
        an object: background, or void where the user's table has no such class. A name of void is void.
    Raises:
        UserError: a name that the user's table does not have.
    """
    rows = list(rows)
    labels, rule = class_table(path, but=said) if path else (None, None)
    if labels is None or rule is None:
        labels, rule = labels_of(_with_background(rows), Path(said))
    ids = {name: train for train, name in enumerate(labels.names)}
    rest = next((train for name, train in ids.items() if is_background(name)), IGNORE_INDEX)
    for row in rows:
        default = rest if is_background(row.name) else IGNORE_INDEX if row.name.lower() in VOID_NAMES else None
        if row.name not in ids and default is None:
            raise UserError(f'{(path or Path()) / rule.said} has no class "{row.name}", which {said} has; add it there')
        ids.setdefault(row.name, IGNORE_INDEX if default is None else default)
    return labels, replace(MaskRule.plain(labels, said=rule.said), exact=True), {**ids, "": rest}


def _with_background(rows: list[LabelRow]) -> list[LabelRow]:
    """The rows with background in front, unless one of them has that name; numbered by their places."""
    if not any(is_background(row.name) for row in rows):
        colored = any(row.color for row in rows)
        rows = [LabelRow(BACKGROUND, (0, 0, 0) if colored else None, 0), *rows]
    return [row._replace(value=value) for value, row in enumerate(rows)]
