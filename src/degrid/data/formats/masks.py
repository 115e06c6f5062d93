"""Mapping the values of labels to train ids, and orienting images like their labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from degrid.image import exif_orientation, to_array
from degrid.lookup import some
from degrid.types import IGNORE_INDEX, LabelSpace

Color = tuple[int, int, int]

NO_DATA = -(2**63)
"""The value in a label of pixels that the file calls without data; every rule makes them void."""
LARGEST_WHOLE = 2.0**53
"""Beyond it, floats do not distinguish one whole number from the next: in masks of floats, such values are NO_DATA."""


@dataclass(frozen=True)
class MaskReading:
    """How the files of labels are read.

    by_color: palette images give the colours of their pixels, not the indices.
    lossy: files whose compression changes the values are read, too.
    crowds: what COCO's annotations call crowds are drawn as objects.
    threshold: fractions below it are 0, all others 255.
    """

    by_color: bool = False
    lossy: bool = False
    crowds: bool = False
    threshold: float | None = None


AS_STORED = MaskReading()
SIDEWAYS = 5
"""From this EXIF orientation on, height and width change places."""
# How far a colour may be from that of a class to be taken for it.
_NEAR = 30


@dataclass(frozen=True)
class MaskRule:
    """How the values in a label image become train ids.

    ids: raw id -> train id or IGNORE_INDEX; colors: RGB -> train id or IGNORE_INDEX, for colour masks.
    Values in neither table are unknown.
    said: the file that says so, for messages, such as "classes.csv"; empty where the rule was guessed.
    exact: the file lists the ids of the classes, which nothing else overrules.
    says_void: the file says that 255 is void, so that it never stands for white.
    default_colors: the colours are not said, but VOC's in the order of the classes.
    threshold: values below it become 0 and all others 255, before anything else; of colours, their brightness counts.
    nearest: values in neither table become the nearest one that is, up to this distance (Euclidean in RGB).
    notes: what was decided when the file was read, one sentence each.
    renumbered: a sentence on ids that the classes do not keep, which matters where masks hold ids.
    in_order: the file gives names alone, so that their order is all that says which id is which.
    assumed: the classes are those of a benchmark, in whose layout the data are.
    """

    ids: dict[int, int]
    colors: dict[Color, int] = field(default_factory=dict)
    said: str = ""
    exact: bool = False
    says_void: bool = False
    default_colors: bool = False
    threshold: float | None = None
    nearest: float | None = None
    notes: tuple[str, ...] = ()
    renumbered: str = ""
    in_order: bool = False
    assumed: bool = False

    @classmethod
    def plain(
        cls, labels: LabelSpace, void: tuple[int, ...] = (), said: str = "", default_colors: bool = False
    ) -> MaskRule:
        """Keep ids unchanged; 255 and the ids in `void` are void; colour masks use the colours of the classes."""
        ids = {**{i: i for i in range(len(labels))}, **dict.fromkeys((IGNORE_INDEX, *void), IGNORE_INDEX)}
        colors = {color: i for i, color in reversed(list(enumerate(labels.colors)))}
        return cls(ids, colors, said, default_colors=default_colors)

    def apply(self, raw: np.ndarray) -> tuple[np.ndarray, dict[int | Color, int]]:
        """Map raw ids [H,W] or colours [H,W,3] to train ids uint8 [H,W]; also count the pixels of each unknown value.

        Pixels with unknown values become void.
        """
        if self.threshold is not None:
            ids = np.where(_brightness(raw) < self.threshold, np.uint8(0), np.uint8(255))
            void = raw == NO_DATA if raw.dtype == np.int64 else np.zeros(1, bool)
            raw = np.where(void, NO_DATA, ids.astype(np.int64)) if void.any() else ids
        if raw.ndim == 2:
            return self._apply_ids(raw) if self.nearest is None else self._near_ids(raw)
        packed = raw.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
        values, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
        colors: list[Color] = [(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in values]
        meant = self._near_colors(colors)
        table = np.array([self.colors.get(color, IGNORE_INDEX) for color in meant], np.uint8)
        missing: dict[int | Color, int] = {
            color: int(n) for color, near, n in zip(colors, meant, counts, strict=True) if near not in self.colors
        }
        if missing and all(red == green == blue for red, green, blue in colors):
            as_ids = self.apply(raw[..., 0])  # ids saved as an RGB image
            if len(as_ids[1]) < len(missing):
                return as_ids
        return table[inverse.reshape(packed.shape)], missing

    def nearly(self, color: Color) -> int | None:
        """The train id of the only colour in the table that is near, no further than `_NEAR` in RGB; else None."""
        known = np.array(list(self.colors), np.int32).reshape(-1, 3)
        near = (((known - np.array(color, np.int32)) ** 2).sum(axis=1) <= _NEAR**2).nonzero()[0]
        return list(self.colors.values())[int(near[0])] if len(near) == 1 else None

    def _near_colors(self, colors: list[Color]) -> list[Color]:
        """The nearest colour in the table for each colour, or the colour itself if none is near."""
        if self.nearest is None or not self.colors:
            return colors
        known = np.array(list(self.colors), np.int32)
        meant = []
        for color in colors:
            squares = ((known - np.array(color, np.int32)) ** 2).sum(axis=1)
            near = squares.min() <= self.nearest**2
            red, green, blue = known[squares.argmin()].tolist() if near else color
            meant.append((red, green, blue))
        return meant

    def _near_ids(self, raw: np.ndarray) -> tuple[np.ndarray, dict[int | Color, int]]:
        """As `_apply_ids`, with each value replaced by the nearest id in the table, if that is near."""
        assert self.nearest is not None
        values, inverse = np.unique(raw, return_inverse=True)
        known = np.array(sorted(self.ids), np.int64)
        distance = np.abs(values.astype(np.int64)[:, None] - known)
        meant = np.where(distance.min(axis=1) <= self.nearest, known[distance.argmin(axis=1)], values)
        return self._apply_ids(meant[inverse.reshape(raw.shape)])

    def _apply_ids(self, raw: np.ndarray) -> tuple[np.ndarray, dict[int | Color, int]]:
        if raw.dtype == np.uint8:
            limit, shift = self._unchanged
            if (raw + shift).max(initial=0) < limit:  # the usual case, and by far the fastest path
                return raw.copy(), {}
            # On bytes, mapping values and dropping the known ones are single passes in C.
            data = raw.tobytes()
            table, known = self._byte_table
            rest = np.frombuffer(data.translate(None, known), np.uint8)
            unknown: dict[int | Color, int] = {int(v): int(n) for v, n in enumerate(np.bincount(rest)) if n}
            if not unknown and all(table[value] == value for value in known):
                return raw.copy(), unknown
            return np.frombuffer(bytearray(data.translate(table)), np.uint8).reshape(raw.shape), unknown
        # 16 bits or more, possibly negative: the range is too wide for a lookup table.
        values, inverse, counts = np.unique(raw, return_inverse=True, return_counts=True)
        wide = np.array([self.ids.get(int(value), IGNORE_INDEX) for value in values], np.uint8)
        unknown = {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in {*self.ids, NO_DATA}}
        return wide[inverse.reshape(raw.shape)], unknown

    @cached_property
    def _unchanged(self) -> tuple[int, np.uint8]:
        """(limit, shift): ids with (id + shift) mod 256 < limit map to themselves.

        shift is 1 if void does too, so that 255 wraps around to 0.
        """
        first = next(value for value in range(257) if self.ids.get(value) != value)
        return (first + 1, np.uint8(1)) if self.ids.get(IGNORE_INDEX) == IGNORE_INDEX else (first, np.uint8(0))

    @cached_property
    def _byte_table(self) -> tuple[bytes, bytes]:
        """The train id of every byte value, and the known byte values."""
        known = bytes(value for value in range(256) if value in self.ids)
        return bytes(self.ids.get(value, IGNORE_INDEX) for value in range(256)), known


def _brightness(raw: np.ndarray) -> np.ndarray:
    """Ids [H,W] as they are; of colours [H,W,3] the luma (ITU-R BT.601)."""
    return raw if raw.ndim == 2 else raw @ np.array([0.299, 0.587, 0.114])


def rgb_like(image: Image.Image, size: tuple[int, ...]) -> np.ndarray:
    """An image as RGB uint8 [H,W,3], rotated by its EXIF orientation unless only the unrotated image fits the label.

    Args:
        size: of the label, height and width.
    """
    turned = to_array(image)
    if turned.shape[:2] != size and (image.height, image.width) == tuple(size):
        # Some labelling tools ignore the EXIF orientation, so that the mask matches the pixels as stored.
        image.getexif().clear()
        image.info.pop("exif", None)
        return np.array(image.convert("RGB"))
    return turned


def said_of_turning(image: Path, size: tuple[int, ...]) -> str:
    """See `Source.turned`."""
    orientation, width, height = exif_orientation(image)
    if orientation == 1:
        return ""
    if orientation < SIDEWAYS or width == height:
        return (
            "images that EXIF rotates, with masks whose size does not tell their orientation; they are taken to match "
            "the images as shown (degrid data preview shows them)"
        )
    return "images that EXIF rotates, read as stored since that fits their masks" * (size == (height, width))


# Ids in one channel of a colour are small.
_HIGHEST_IN_CHANNEL = 63
# More values than this are not classes, but left between them by smoothing or compression.
_MANY_UNKNOWN = 3


def unknown_message(
    mask: object, unknown: dict[int | Color, int], rule: MaskRule, held: Collection[object] = ()
) -> str:
    """One sentence about the values in a mask that belong to no class.

    Args:
        mask: where they were found, for the message.
        unknown: pixels per value.
        rule: says which do.
        held: all values in the mask, where it holds ids.
    """
    pixels = sum(unknown.values())
    shown = some(unknown)
    many = len(unknown) > _MANY_UNKNOWN
    if any(isinstance(value, tuple) for value in unknown):
        return _colors_message(f"{mask} has the colours {shown}", unknown, rule)
    known = sorted(value for value, train in rule.ids.items() if train != IGNORE_INDEX)
    expected, more = _expected_ids(known, list(unknown), rule, held)
    void = f" or {IGNORE_INDEX} (void)" if rule.ids.get(IGNORE_INDEX) == IGNORE_INDEX else ""
    objects = known == [0, 1] and {*unknown} == {*range(2, 2 + len(unknown))}
    threshold = _threshold_between(unknown) if many and len(known) <= 2 else ""
    threshold += ", or threshold: 1 if they number the objects" if objects else ""
    return (
        f"{mask} has the ids {shown}; expected {expected}{void}; {pixels} pixels have such ids; "
        f"{more}, or a mapping of ids{threshold}, in dataset.yaml (degrid data check shows all "
        "ids)"
    )


def _expected_ids(
    known: list[int], unknown: list[int | Color], rule: MaskRule, held: Collection[object]
) -> tuple[str, str]:
    """How a message describes the known ids, and what it recommends for others."""
    first_is_1 = known == [*range(1, len(known) + 1)]
    said = f", as {rule.said} says," if rule.said else ""
    if known and known == [*range(len(known))]:
        if unknown != [len(known)]:
            return f"0 to {len(known) - 1}", "give more classes"
        mend = "" if 0 in held else f'write "ids: {[*range(1, len(known) + 1)]}" if the masks count from 1, or '
        more = "give more classes (the first one is that of id 0, which is often background)"
        return f"0 to {len(known) - 1}", mend + more
    if first_is_1 and unknown == [0]:
        mend = f'write "ids: {[*range(len(known))]}" if the masks count from 0'
        if known[-1] in held:
            mend = "give id 0 a class"
        elif len(known) == 2 and {*held} == {0, IGNORE_INDEX}:
            mend = f'write "ids: [0, {IGNORE_INDEX}]" if the masks are black and white'
        return f"1 to {len(known)}{said}", f'{mend}, or write "void: [0]" if 0 is not a class'
    return f"{some(known, 6) or 'colours'}{said}", f"give more classes, list what is not a class as void: {unknown[:1]}"


def _threshold_between(unknown: dict[int | Color, int]) -> str:
    highest = max(value for value in unknown if isinstance(value, int))
    middle = 128 if highest >= 128 else (highest + 1) // 2
    return f", or threshold: {middle} if it is black and white and blurred"


def in_one_channel(colors: Collection[Color]) -> str:
    """What to do with pictures of which one channel holds the ids, as those of CARLA's cameras do; empty for others."""
    used = [channel for channel in range(3) if any(color[channel] for color in colors)]
    if len(used) != 1 or len(colors) < 2 or max(color[used[0]] for color in colors) > _HIGHEST_IN_CHANNEL:
        return ""
    name = "RGB"[used[0]]
    return (
        f"all of them differ in {('red', 'green', 'blue')[used[0]]} alone: if that is the id, as CARLA writes it, save "
        f'this channel: Image.open("a.png").getchannel("{name}").save("masks/a.png")'
    )


def _colors_message(what: str, unknown: dict[int | Color, int], rule: MaskRule) -> str:
    pixels = sum(unknown.values())
    if all(isinstance(value, tuple) and value[::-1] in rule.colors for value in unknown):
        return (
            f"{what} ({pixels} pixels), which are those of classes with red and blue exchanged, as OpenCV writes "
            "an RGB image: write cv2.cvtColor(mask, cv2.COLOR_RGB2BGR), or exchange them in the table"
        )
    if channel := in_one_channel([value for value in unknown if isinstance(value, tuple)]):
        return f"{what} ({pixels} pixels), which belong to no class; {channel}"
    near = all(isinstance(value, tuple) and rule.nearly(value) is not None for value in unknown)
    if near and not rule.default_colors:
        return (
            f"{what} ({pixels} pixels), which are near those of classes but not equal, as after compression or a "
            "conversion: write nearest_color: 30 in dataset.yaml, or give the classes these colours"
        )
    nearest = ", or write nearest_color: 30 in dataset.yaml if they are blurred" if len(unknown) > _MANY_UNKNOWN else ""
    return (
        f"{what}, which belong to no class ({pixels} pixels); give every class its colour in classes.csv "
        f"(id,name,r,g,b) or dataset.yaml, or list the colours under void there{nearest}"
    )
