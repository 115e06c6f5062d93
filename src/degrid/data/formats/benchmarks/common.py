"""What the benchmarks' layouts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, with_val
from degrid.lookup import counted
from degrid.types import IGNORE_INDEX, LabelSpace, UserError


def benchmark(
    reason: str,
    path: Path,
    splits: Mapping[str, list[Pair]],
    labels: LabelSpace,
    rule: MaskRule,
    notes: list[str],
    orphans: Sequence[Path] = (),
) -> Layout | None:
    """The layout of a benchmark, without the images whose labels are kept secret; None where no image has a label.

    Without a split for validation, a part of "train" is kept for it. A table of classes in the folder gives other names
    to the same number of classes, or takes the place of the benchmark's.
    """
    kept = {split: [pair for pair in pairs if pair.mask] for split, pairs in splits.items()}
    left_out = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    if left_out:
        notes = [*notes, f"{counted(left_out, 'image', 'have')} no label: left out"]
    kept, of_val = with_val({split: pairs for split, pairs in kept.items() if pairs})
    labels, rule = with_table(path, labels, rule)
    return Layout(reason, path, kept, labels, rule, [*orphans], [*notes, *of_val]) if kept else None


def with_table(path: Path, labels: LabelSpace, rule: MaskRule) -> tuple[LabelSpace, MaskRule]:
    """The classes and the rule of a benchmark, or what a table in the folder says: names for as many classes, or
    everything."""
    named, own_rule = class_table(path)
    if named is None or own_rule is None:
        return labels, replace(rule, assumed=True)
    return (named, rule) if len(named) == len(labels) else (named, own_rule)


def from_one(classes: int, said: str) -> MaskRule:
    """The rule for ids from 1 on, where 0 and 255 are void."""
    return MaskRule(
        {0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX, **{raw + 1: raw for raw in range(classes)}}, said=said
    )


def by_color(labels: LabelSpace, said: str, void: tuple[tuple[int, int, int], ...] = ()) -> MaskRule:
    """The rule for masks in the colours of the classes; ids are not read."""
    return MaskRule(
        {}, {**dict.fromkeys(void, IGNORE_INDEX), **{color: k for k, color in enumerate(labels.colors)}}, said
    )


@dataclass(frozen=True)
class FullColors(Pair):
    """A pair whose mask has only the values 0 and 255 in each channel, but for blurred edges: parted at 128."""

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        values = super().read_label()
        if values.ndim == 2 and 0 < values.max(initial=0) < 128:
            raise UserError(
                f"{self.mask} holds ids up to {values.max()}; expected this benchmark's colours: for ids of your own, "
                "name the folders of images and masks in dataset.yaml"
            )
        colors = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=-1)
        parted: np.ndarray = np.where(colors >= 128, 255, 0).astype(np.uint8)
        return parted


def in_full_colors(pairs: list[Pair]) -> list[Pair]:
    """The pairs with their masks read as `FullColors`."""
    return [FullColors(pair.name, pair.image, pair.mask) for pair in pairs]


def under(name: str, pairs: list[Pair]) -> list[Pair]:
    """The pairs with a folder in front of their names."""
    return [replace(pair, name=f"{name}/{pair.name}") for pair in pairs]
