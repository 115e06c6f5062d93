"""Which columns of a table hold images and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from degrid.lookup import did_you_mean
from degrid.types import UserError

_IMAGES = ("image", "img", "pixel_values", "pixels", "photo", "picture", "rgb", "input", "jpg", "jpeg")
_MASKS = (
    *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask"),
    *("segmentation_map", "semantic_mask", "semantic_segmentation", "semantic", "seg", "label_map", "labelmap"),
    *("ground_truth", "groundtruth", "gt", "target", "seg_png", "mask_png"),
)


def find_columns(features: Mapping[str, Any], given: Mapping[str, str], where: object) -> tuple[tuple[str, str], str]:
    """The columns of images and masks, and a sentence on the choice, if there was one.

    Args:
        features: the type of each column.
        given: the columns that the user names, as "image" and "mask".
        where: the dataset, for messages.
    Raises:
        UserError: there is no such column, or it cannot be told which.
    """
    table = _Table(features, given, where)
    masks = table.masks()
    image = table.image(masks[0])
    note = f'masks are those of the column "{masks[0]}", not of {", ".join(masks[1:])} (?mask=COLUMN chooses)'
    return (image, masks[0]), note if len(masks) > 1 else ""


class _Table:
    """The columns that were found; see `find_columns`."""

    def __init__(self, features: Mapping[str, Any], given: Mapping[str, str], where: object) -> None:
        self.given, self.where = given, where
        self.images = [name for name, feature in features.items() if is_image(feature)]
        self.labels = [*self.images, *(name for name, feature in features.items() if _is_array(feature))]
        self.listed = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
        self._check("image", self.images)
        self._check("mask", self.labels)
        if not self.images:
            raise UserError(f"{where} has no column of the type Image, which images need; its columns: {self.listed}")

    def masks(self) -> list[str]:
        """The columns that may hold masks, the likeliest first."""
        if "mask" in self.given:
            return [self.given["mask"]]
        image = self.given.get("image")
        others = [name for name in self.labels if name != image]
        masks = _named(others, _MASKS)
        likely = [image] if image else _named(self.images, _IMAGES)
        if not masks and len(self.images) == 2 and likely:
            masks = [name for name in self.images if name != likely[0]]
        if not masks:
            raise UserError(
                f"{self.where} has no column that looks like masks; its columns: {self.listed}; if one holds them, say "
                f'so: "{self.where}?mask={next((name for name in reversed(others) if name not in likely), "COLUMN")}"'
            )
        return masks

    def image(self, mask: str) -> str:
        """The column of images beside that of the masks."""
        if "image" in self.given:
            return self.given["image"]
        left = [name for name in self.images if name != mask]
        likely = _named(left, _IMAGES)
        if not likely and len(left) != 1:
            why = "several columns that could be images" if left else "no column of images beside the masks"
            ways = f'"{self.where}?image=COLUMN&mask=COLUMN"'
            raise UserError(f"{self.where} has {why}; its columns: {self.listed}; say which: {ways}")
        return (likely or left)[0]

    def _check(self, part: str, there: Sequence[str]) -> None:
        name = self.given.get(part)
        if name is not None and name not in there:
            near = did_you_mean(name, there)
            raise UserError(f'{self.where}: "{name}" is not a column of {part}s.{near} Columns: {self.listed}')


def _named(columns: Sequence[str], words: Sequence[str]) -> list[str]:
    """The columns named by one of the words, in the order of the words; otherwise those that end with one."""
    plain = {name: name.lower().replace("-", "_").replace(" ", "_").replace(".", "_") for name in columns}
    exact = [name for word in words for name in columns if plain[name] == word]
    ending = [name for word in words for name in columns if plain[name].endswith(f"_{word}")]
    return list(dict.fromkeys(exact or ending))


def _kind(feature: Any) -> str:
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def is_image(feature: Any) -> bool:
    """Whether a column holds images."""
    return type(feature).__name__ == "Image"


def _is_array(feature: Any) -> bool:
    """Whether a column holds whole numbers [H,W]."""
    if type(feature).__name__ == "Array2D":
        return "int" in feature.dtype
    inner = inside(inside(feature))
    return type(inner).__name__ == "ClassLabel" or (type(inner).__name__ == "Value" and "int" in inner.dtype)


def inside(feature: Any) -> Any:
    """What a column of lists holds; None for any other."""
    return feature.feature if type(feature).__name__ in ("List", "LargeList", "Sequence") else None
