"""The values that masks hold: of one mask, and of many, added up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from degrid.data.formats.masks import NO_DATA, Color, MaskRule
from degrid.types import IGNORE_INDEX

Value = int | Color
"""An id, or a colour."""

MOST_VALUES = 4096
"""Largest number of distinct values that are kept apart; the pixels of all others are counted together."""
SOFT = 0.05
"""A value whose share of pixels with equal neighbours is lower occurs only along edges."""
# Edges are searched for in masks with at least this many values; with a palette the highest is at least this, since
# programs that smooth write no palettes, and searching takes time.
_EDGE_VALUES, _PALETTE_HIGHEST = 3, 8
# Ids count objects where masks hold this many different numbers of them: the classes of a scene are not numbered by how
# often they occur.
_LEAST_COUNTS = 4
MANY_OBJECTS = 6
"""The fewest ids that may be numbers of objects."""
# About how many pixels of a mask are examined for that; of larger masks, every n-th row.
_EXAMINED = 1 << 13


@dataclass(frozen=True)
class LabelValues:
    """The distinct values of a label, and how often each occurs.

    Attributes:
        values: ids [K], or colours uint8 [K,3].
        pixels: of each value, int64 [K].
        edges: how many pixels of each value were examined, have four neighbours of the same value, and lie between a
            lower and a higher neighbour, of any two and of those in a row, int64 [4,K]; None where it does not matter,
            or for colours that are not grey.
        steps: of neighbours in a row how many differ, and how many of these by more than 1, neither of them lying
            between two others; (0, 0) where there are no edges.
        palette: the colour that the file shows each value in, uint8 [K,3]; None for a label without palette.
    """

    values: np.ndarray
    pixels: np.ndarray
    edges: np.ndarray | None = None
    palette: np.ndarray | None = None
    steps: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, raw: np.ndarray, palette: np.ndarray | None = None) -> LabelValues:
        """Count ids [H,W] or colours uint8 [H,W,3].

        Args:
            palette: of the label's file, uint8 [N,3]; see `Source.palette`.
        """
        if raw.ndim == 3:
            wide = raw.astype(np.uint32)
            packed, pixels = _unique(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])
            colors = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
            grey = bool((colors == colors[:, :1]).all())
            edges, steps = _edges(raw[..., 0], colors[:, 0]) if grey else (None, (0, 0))
            return cls(colors, pixels, edges, steps=steps)
        values, pixels = _unique(raw)
        shown = None
        if palette is not None and len(values) and values[0] >= 0:
            padded = np.zeros((max(int(values[-1]) + 1, len(palette)), 3), np.uint8)
            padded[: len(palette)] = palette
            shown = padded[values]
        smooth = shown is None or not len(values) or values[-1] >= _PALETTE_HIGHEST
        edges, steps = _edges(raw, values, shown is not None) if smooth else (None, (0, 0))
        return cls(values, pixels, edges, shown, steps)

    def by_class(self, rule: MaskRule) -> tuple[np.ndarray, dict[int | Color, int]]:
        """What `MaskRule.apply` and counting would give: pixels of each train id [256], and of each unknown value."""
        ids, unknown = rule.apply(self.values[None])
        counts = np.zeros(256, np.int64)
        np.add.at(counts, ids[0], self.pixels)
        pixels: dict[int | Color, int] = {}
        for value, count in zip(self.values.tolist(), self.pixels.tolist(), strict=True):
            color = tuple(value) if isinstance(value, list) else None
            grey = value if color is None else color[0]
            for key in (grey, color):
                if key in unknown:
                    pixels[key] = count
        return counts, {value: pixels[value] for value in unknown}


def _unique(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values in order, and the pixels of each."""
    if raw.dtype == np.uint8:
        grey = np.ascontiguousarray(raw).ravel()
        # Pillow's histogram of four bands takes a third of the time of np.bincount, which widens the values first, and
        # less than that of one band, where a value that follows itself has to wait for the count before.
        whole = grey[: grey.size // 4 * 4]
        counts = np.bincount(grey[whole.size :], minlength=256)
        if whole.size:
            bands = Image.frombuffer("RGBA", (whole.size // 4, 1), whole, "raw", "RGBA", 0, 1)
            counts += np.array(bands.histogram()).reshape(4, 256).sum(axis=0)
        values = np.flatnonzero(counts)
        return values.astype(np.uint8), counts[values]
    flat = raw.ravel()
    if not flat.size:
        return flat, np.zeros(0, np.int64)
    # Labels have long runs of one value, which is much less to sort than their pixels are.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    values, place = np.unique(flat[starts], return_inverse=True)
    pixels = np.zeros(len(values), np.int64)
    np.add.at(pixels, place.ravel(), lengths)
    return values, pixels


def _edges(raw: np.ndarray, values: np.ndarray, has_palette: bool = False) -> tuple[np.ndarray | None, tuple[int, int]]:
    """See `LabelValues.edges` and `steps`; some rows do, spread over the label. Beside a palette, soft ones only."""
    if raw.dtype != np.uint8 or len(values) < _EDGE_VALUES or min(raw.shape) < 3:
        return None, (0, 0)
    step = math.ceil(raw.size / _EXAMINED)
    above, middle, below = raw[:-2:step, 1:-1], raw[1:-1:step], raw[2::step, 1:-1]
    left, inner, right = middle[:, :-2], middle[:, 1:-1], middle[:, 2:]
    same = (inner == above) & (inner == below) & (inner == left) & (inner == right)
    edges = np.zeros((4, len(values)), np.int64)
    edges[:2] = [np.bincount(pixels, minlength=256)[values] for pixels in (inner.ravel(), inner[same])]
    if has_palette and np.count_nonzero(SOFT * edges[0] > edges[1]) < _EDGE_VALUES:
        return edges, (0, 0)
    in_row = ((left < inner) & (inner < right)) | ((left > inner) & (inner > right))
    ramps = in_row | ((above < inner) & (inner < below)) | ((above > inner) & (inner > below))
    edges[2:] = [np.bincount(pixels, minlength=256)[values] for pixels in (inner[ramps], inner[in_row])]
    one, other = inner[:, :-1], inner[:, 1:]
    differ = one != other
    far = np.maximum(one, other) - np.minimum(one, other) > 1
    return edges, (int(differ.sum()), int((far & ~in_row[:, :-1] & ~in_row[:, 1:]).sum()))


@dataclass
class Survey:
    """The values of many labels, added up. Two surveys can be merged, and sent from process to process.

    Attributes:
        masks: how many were read.
        pixels, found_in: of each value, its pixels and the number of masks that hold it.
        first: the first mask that holds it.
        examined, inside, between, in_row: of each id, the pixels that were searched for soft edges, those of them whose
            four neighbours have the same id, and those between a lower and a higher neighbour, of any two and of those
            in a row.
        steps, far: of neighbours in a row how many differ, and how many of these by more than 1 with nothing between.
        sets: how many masks hold these one or two values and no others; greys in colour pictures count as ids.
        up_to: how many masks hold all ids from 1 to this one and no others, but for 0, and 255 at the end.
        shown, shown_in: of each id and the colour that the palette of its mask gives it, the pixels and the masks.
        beyond: pixels of values beyond the most that are kept apart.
    """

    masks: int = 0
    pixels: Counter[Value] = field(default_factory=Counter)
    found_in: Counter[Value] = field(default_factory=Counter)
    first: dict[Value, str] = field(default_factory=dict)
    examined: Counter[int] = field(default_factory=Counter)
    inside: Counter[int] = field(default_factory=Counter)
    between: Counter[int] = field(default_factory=Counter)
    in_row: Counter[int] = field(default_factory=Counter)
    steps: int = 0
    far: int = 0
    sets: Counter[tuple[Value, ...]] = field(default_factory=Counter)
    up_to: Counter[int] = field(default_factory=Counter)
    shown: Counter[tuple[int, Color]] = field(default_factory=Counter)
    shown_in: Counter[tuple[int, Color]] = field(default_factory=Counter)
    beyond: int = 0

    def add(self, label: LabelValues, place: str) -> None:
        """Add one mask.

        Args:
            place: what messages call it.
        """
        self.masks += 1
        values = _as_values(label.values)
        pixels = label.pixels.tolist()
        for value, count in zip(values, pixels, strict=True):
            if self._keeps(value):
                self.pixels[value] += count
                self.found_in[value] += 1
                self.first.setdefault(value, place)
            else:
                self.beyond += count
        self._add_edges(label, values)
        held = tuple(map(_as_id, values[:3]))
        if len(held) <= 2 and (held in self.sets or len(self.sets) < MOST_VALUES):
            self.sets[held] += 1
        objects = values[values[:1] == [0] : len(values) - (values[-1:] == [IGNORE_INDEX])]
        if objects and objects[0] == 1 and objects[-1] == len(objects):
            self.up_to[len(objects)] += 1
        if label.palette is not None:
            for value, color, count in zip(values, _as_values(label.palette), pixels, strict=True):
                if len(self.shown) < MOST_VALUES and isinstance(value, int) and isinstance(color, tuple):
                    self.shown[value, color] += count
                    self.shown_in[value, color] += 1

    def _add_edges(self, label: LabelValues, values: list[Value]) -> None:
        self.steps += label.steps[0]
        self.far += label.steps[1]
        counters = (self.examined, self.inside, self.between, self.in_row)
        for counter, counts in zip(counters, [] if label.edges is None else label.edges.tolist(), strict=False):
            for value, count in zip(values, counts, strict=True):
                if count:
                    counter[_grey(value)] += count

    def _keeps(self, value: Value) -> bool:
        return value in self.pixels or len(self.pixels) < MOST_VALUES

    def merge(self, other: Survey) -> None:
        """Add what another survey counted."""
        self.masks += other.masks
        self.beyond += other.beyond
        for value, count in other.pixels.items():
            if self._keeps(value):
                self.pixels[value] += count
                self.found_in[value] += other.found_in[value]
                self.first.setdefault(value, other.first[value])
            else:
                self.beyond += count
        self.examined.update(other.examined)
        self.inside.update(other.inside)
        self.between.update(other.between)
        self.in_row.update(other.in_row)
        self.steps += other.steps
        self.far += other.far
        for held, count in other.sets.items():
            if held in self.sets or len(self.sets) < MOST_VALUES:
                self.sets[held] += count
        self.up_to.update(other.up_to)
        for key, count in other.shown.items():
            if len(self.shown) < MOST_VALUES or key in self.shown:
                self.shown[key] += count
                self.shown_in[key] += other.shown_in[key]

    def first_of(self, value: int) -> str:
        """The first mask that holds an id, or the grey of that value."""
        return self.first.get(value) or self.first.get((value, value, value), "")

    @property
    def numbers_objects(self) -> bool:
        """Whether ids look like numbers of objects: all masks count from 1 on, and how far differs."""
        empty = self.sets[(0,)] + self.sets[(IGNORE_INDEX,)] + self.sets[0, IGNORE_INDEX]
        counting = self.up_to.total() == self.masks - empty
        return counting and len(self.up_to) >= _LEAST_COUNTS and max(self.up_to) >= MANY_OBJECTS

    @property
    def colored(self) -> list[Color]:
        """The colours that are not grey, in the order in which they were found."""
        return [value for value in self.pixels if isinstance(value, tuple) and len(set(value)) > 1]

    @property
    def ids(self) -> Counter[int]:
        """The pixels of each id. Greys in colour pictures count as ids; other colours are left out."""
        found: Counter[int] = Counter()
        for value, count in self.pixels.items():
            if value != NO_DATA and (isinstance(value, int) or len(set(value)) == 1):
                found[_grey(value)] += count
        return found

    def by_class(self, rule: MaskRule) -> tuple[Counter[int], int]:
        """The pixels of each train id that occurs, void included, and the number of pixels with unknown values."""
        counts: Counter[int] = Counter()
        unknown = self.beyond
        for value, pixels in self.pixels.items():
            raw = np.array([[value]], np.uint8 if isinstance(value, tuple) else np.int64)
            ids, missing = rule.apply(raw)
            if missing:
                unknown += pixels
            else:
                counts[int(ids[0, 0])] += pixels
        return counts, unknown


def _as_values(values: np.ndarray) -> list[Value]:
    if values.ndim == 1:
        ids: list[Value] = values.tolist()
        return ids
    return [(red, green, blue) for red, green, blue in values.tolist()]


def _grey(value: Value) -> int:
    return value if isinstance(value, int) else value[0]


def _as_id(value: Value) -> Value:
    return value if isinstance(value, tuple) and len(set(value)) > 1 else _grey(value)


Surveys = Mapping[str, Survey]
"""A survey of each split."""


def total(surveys: Surveys) -> Survey:
    """All splits together."""
    whole = Survey()
    for survey in surveys.values():
        whole.merge(survey)
    return whole
