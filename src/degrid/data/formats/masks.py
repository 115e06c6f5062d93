"""Reading label images, mapping their values to train ids, and orienting images like their labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from degrid.image import open_image, to_array
from degrid.lookup import some
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

Color = tuple[int, int, int]


@dataclass(frozen=True)
class MaskRule:
    """How the values in a label image become train ids.

    ids: raw id -> train id or IGNORE_INDEX; colors: RGB -> train id or IGNORE_INDEX, for colour masks.
    Values in neither table are unknown.
    said: the file that says so, for messages, such as "classes.csv"; empty where the rule was guessed.
    """

    ids: dict[int, int]
    colors: dict[Color, int] = field(default_factory=dict)
    said: str = ""

    @classmethod
    def plain(cls, labels: LabelSpace, void: tuple[int, ...] = (), said: str = "") -> MaskRule:
        """Keep ids unchanged; 255 and the ids in `void` are void; colour masks use the colours of the classes."""
        ids = {**{i: i for i in range(len(labels))}, **dict.fromkeys((IGNORE_INDEX, *void), IGNORE_INDEX)}
        return cls(ids, {color: i for i, color in reversed(list(enumerate(labels.colors)))}, said)

    def apply(self, raw: np.ndarray) -> tuple[np.ndarray, dict[int | Color, int]]:
        """Map raw ids [H,W] or colours [H,W,3] to train ids uint8 [H,W]; also count the pixels of each unknown value.

        Pixels with unknown values become void.
        """
        if raw.ndim == 2:
            return self._apply_ids(raw)
        packed = raw.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
        values, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
        colors: list[Color] = [(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in values]
        table = np.array([self.colors.get(color, IGNORE_INDEX) for color in colors], np.uint8)
        missing: dict[int | Color, int] = {
            color: int(n) for color, n in zip(colors, counts, strict=True) if color not in self.colors
        }
        if missing and all(red == green == blue for red, green, blue in colors):
            as_ids = self.apply(raw[..., 0])  # ids saved as an RGB image
            if len(as_ids[1]) < len(missing):
                return as_ids
        return table[inverse.reshape(packed.shape)], missing

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
        # 16 or 32 bits, possibly negative: the range is too wide for a lookup table.
        values, inverse, counts = np.unique(raw, return_inverse=True, return_counts=True)
        wide = np.array([self.ids.get(int(value), IGNORE_INDEX) for value in values], np.uint8)
        unknown = {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in self.ids}
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


def read_mask(path: Path) -> np.ndarray:
    """Read the values of a label image: ids [H,W], or colours uint8 [H,W,3].

    Palette PNGs yield their indices; PNGs of 2 or 4 bits yield the values as stored.

    Raises:
        UserError: the file is missing or damaged, holds fractions, or is a JPEG, whose compression alters the values.
    """
    image = open_image(path)
    head = b""
    if image.format == "PNG" and image.mode == "L":
        with path.open("rb") as stream:
            head = stream.read(_PNG_HEAD)
    return mask_values(image, path, head)


def mask_values(image: Image.Image, name: object, head: bytes) -> np.ndarray:
    """The values of a decoded label image: ids [H,W], or colours uint8 [H,W,3]; see `read_mask`.

    Args:
        name: of the file, for messages.
        head: at least the first 26 bytes of the file; needed for greyscale PNGs.
    Raises:
        UserError: the image holds fractions, or is a JPEG.
    """
    if image.format in ("JPEG", "MPO"):
        raise UserError(
            f"{name} is a JPEG: its compression blurs class ids. Save masks as PNG; for a black-and-white mask: "
            'Image.open("mask.jpg").convert("L").point(lambda v: v >= 128).save("mask.png")'
        )
    if image.mode == "F":
        return _whole_numbers(np.asarray(image), name)
    if image.mode in ("P", "L", "I", "I;16", "I;16B", "1"):
        raw, factor = np.asarray(image), _brightening(image, head)
        return raw.astype(np.uint8) if raw.dtype == bool else raw if factor == 1 else raw // factor
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0]
    return np.asarray(image.convert("RGB"))


def _whole_numbers(values: np.ndarray, name: object) -> np.ndarray:
    if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise UserError(f"{name} holds fractions, such as a map of probabilities; expected a class id in every pixel")
    return values.astype(np.int64)


# The length of a PNG's signature and header chunk up to bit depth and colour type, the last two of these bytes.
_PNG_HEAD = 26


def _brightening(image: Image.Image, head: bytes) -> int:
    """The factor by which Pillow scales the values of a greyscale PNG of 2 or 4 bits, so that white becomes 255."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    bits, color_type = head[_PNG_HEAD - 2 : _PNG_HEAD]
    return {2: 85, 4: 17}.get(bits, 1) if color_type == 0 else 1


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


def unknown_message(mask: object, unknown: dict[int | Color, int], labels: LabelSpace) -> str:
    """One sentence about the values in a mask that belong to no class.

    Args:
        mask: where they were found, for the message.
        unknown: pixels per value.
    """
    pixels = sum(unknown.values())
    shown = some(unknown)
    if any(isinstance(value, tuple) for value in unknown):
        return (
            f"{mask} has the colours {shown}, which belong to no class ({pixels} pixels); give every class its colour "
            "in classes.csv (id,name,r,g,b) or dataset.yaml, or list the colours under void there"
        )
    return (
        f"{mask} has the ids {shown}; expected 0 to {len(labels) - 1} or {IGNORE_INDEX} (void); {pixels} pixels have "
        "such ids; give more classes, or a mapping of ids, in dataset.yaml (degrid data check shows all ids)"
    )
