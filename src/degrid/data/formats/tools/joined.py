"""Labels that a tool keeps as one mask per object or class, joined into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from degrid.data.formats.classes import class_table
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair
from degrid.data.formats.read_mask import read_mask
from degrid.data.formats.tools.label_files import BACKGROUND, VOID_NAMES, LabelRow, labels_of
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
        found = [(train, read_mask(file) > 127, file) for train, file in self.layers]
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


def named_classes(names: Iterable[str], path: Path, said: str) -> tuple[LabelSpace, MaskRule, dict[str, int]]:
    """The classes of masks that only have names: the user's table in `path`, or background and the names in order.

    Returns:
        The classes, the rule for labels of train ids, and the train id of each name. A name of void is void, and so are
        pixels without a label, "background", where the user's table has no such class.
    Raises:
        UserError: a name that the user's table does not have.
    """
    names = sorted(set(names))
    labels, rule = class_table(path)
    if labels is None or rule is None:
        rows = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
        labels, rule = labels_of([LabelRow(name, None, value) for value, name in enumerate(rows)], Path(said))
    ids = {name: labels.names.index(name) if name in labels.names else IGNORE_INDEX for name in (BACKGROUND, *names)}
    unknown = [name for name in names if ids[name] == IGNORE_INDEX and name.lower() not in VOID_NAMES]
    if unknown:
        raise UserError(
            f'{path / rule.said} has no class "{unknown[0]}", which {said} has; add it, or call it void there'
        )
    return labels, MaskRule.plain(labels, said=rule.said), ids
