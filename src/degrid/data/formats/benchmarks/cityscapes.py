"""Cityscapes: its classes and its layout."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.benchmarks.common import with_table
from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, divided, images_in
from degrid.lookup import counted
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

# The classes in order of their train ids, each with its label id; all other label ids are void.
_CITYSCAPES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CITYSCAPES = LabelSpace(tuple(row[1] for row in _CITYSCAPES), tuple(row[2] for row in _CITYSCAPES))
CITYSCAPES_LABEL_IDS = tuple(row[0] for row in _CITYSCAPES)
"""The label id (0 to 33) of each train id, as cityscapesScripts' labels.py has them."""
CITYSCAPES_RAW = MaskRule(
    {**dict.fromkeys(range(256), IGNORE_INDEX), **{raw: train for train, raw in enumerate(CITYSCAPES_LABEL_IDS)}}
)
"""The train ids of the label ids; every other id is void."""


class Cityscapes(DataFormat):
    """leftImg8bit with gtFine or gtCoarse, read from labelTrainIds where all images have them."""

    wanted = "leftImg8bit and gtFine (Cityscapes)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the labels are polygons.
        """
        folder = path / "leftImg8bit"
        masks = _masks_in(path)
        if masks is None or not folder.is_dir():
            return None
        images = [file for file in images_in(folder) if file.stem.endswith("_leftImg8bit")]
        names = [city_name(file, folder) for file in images]
        have = [city_mask(name, masks, "labelTrainIds").exists() for name in names]
        splits: dict[str, list[Pair]] = {}
        _refuse_polygons(masks)
        own = _own_ending(masks)
        ending = own or ("labelTrainIds" if all(have) else "labelIds")
        for name, image in zip(names, images, strict=True):
            mask = city_mask(name, masks, ending)
            splits.setdefault(_split_of(name), []).append(Pair(name, image, mask if mask.exists() else None))
        undivided: list[Pair] = splits.pop("", [])
        splits, notes = (splits, list[str]()) if splits else divided(undivided)
        if any(have) and not all(have):
            notes.append(
                f"{counted(len(have) - sum(have), 'image', 'have')} no labelTrainIds: all labels are read from labelIds"
            )
        reason = f"leftImg8bit and {masks.name}"
        return Layout(reason, path, splits, *(class_table(path) if own else _classes(path, all(have))), notes=notes)


def _classes(path: Path, train_ids: bool) -> tuple[LabelSpace, MaskRule]:
    """Cityscapes' classes, or the user's, and the rule for masks of train ids or of label ids."""
    return with_table(path, CITYSCAPES, MaskRule.plain(CITYSCAPES) if train_ids else CITYSCAPES_RAW)


def _own_ending(masks: Path) -> str:
    """The ending of ids of other classes than Cityscapes', as IDD's labellevel3Ids; "" where there are Cityscapes' own,
    or several."""
    found = {file.stem.rpartition("_")[2] for file in masks.rglob(f"*_{masks.name}_label*Ids.png")}
    return found.pop() if len(found) == 1 and found.isdisjoint(("labelIds", "labelTrainIds")) else ""


def _refuse_polygons(masks: Path) -> None:
    """Refuse polygons without masks, which cityscapesScripts draws.

    Raises:
        UserError: there are polygons, and no masks.
    """
    polygons = next(masks.rglob("*_polygons.json"), None)
    if polygons and not any(masks.rglob("*_label*.png")):
        raise UserError(
            f"{polygons} and the like are polygons, and {masks} holds no masks: draw them with the benchmark's own "
            "program, such as createTrainIdLabelImgs.py of cityscapesScripts, or createLabels.py of IDD"
        )


def _masks_in(path: Path) -> Path | None:
    return next((path / name for name in ("gtFine", "gtCoarse") if (path / name).is_dir()), None)


def city_name(image: Path, folder: Path) -> str:
    """The name of an image below leftImg8bit, such as "train/ulm/ulm_000000_000019"."""
    return image.relative_to(folder).with_suffix("").as_posix().removesuffix("_leftImg8bit")


def city_mask(name: str, masks: Path, ending: str) -> Path:
    """The mask of an image in gtFine or gtCoarse, whose name ends in labelIds or labelTrainIds."""
    return masks / f"{name}_{masks.name}_{ending}.png"


def _split_of(name: str) -> str:
    """train, val, test, or the coarse labels' train_extra; "" where the folders are cities or there are none."""
    top = name.split("/")[0]
    return SPLIT_NAMES.get(top, top if top == "train_extra" else "")
