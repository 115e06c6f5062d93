"""The layouts and classes of PASCAL VOC, Cityscapes, CamVid, ADE20K and COCO."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import (
    DIVIDED,
    SPLIT_NAMES,
    Layout,
    Pair,
    divided,
    images_in,
    pair_up,
    read_list,
    read_text,
    select,
    split_files,
)
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

_VOC_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
VOC = LabelSpace(tuple(_VOC_NAMES), voc_palette(21))
# Best first; the last one is what labelme's export is called.
_VOC_MASKS = ("SegmentationClassAug", "SegmentationClass", "SegmentationClassPNG")

# Train ids in order, with the raw id of each; every other raw id is void.
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
"""From label ids to train ids; every other id is void."""

CAMVID = LabelSpace(
    (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)


_ADE_NAME = "ADEChallengeData2016"
ADE_CLASSES = 150
ADE_RULE = MaskRule({0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX, **{raw + 1: raw for raw in range(ADE_CLASSES)}})
"""From ADE20K's ids to train ids: 0, "other", is void, 1 to 150 are the classes 0 to 149."""

COCO_FOLDERS = {"voc": "voc21", "all": "coco81"}
"""Where `degrid.data.prepare.coco` puts its lists and masks, per choice of classes."""


def voc_base(root: Path) -> Path | None:
    """The folder with JPEGImages: `root`, or VOC2012 and the like below it; None where there is none."""
    places = (root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*")))
    return next((place for place in places if (place / "JPEGImages").is_dir()), None)


def find_voc(root: Path) -> Layout | None:
    """JPEGImages, with the lists of ImageSets/Segmentation as splits."""
    base = voc_base(root)
    if base is None:
        return None
    folders = [base / name for name in _VOC_MASKS if (base / name).is_dir()]
    if not folders:
        return None
    masks = {file.stem: file for folder in reversed(folders) for file in images_in(folder)}
    images = {file.stem: file for file in images_in(base / "JPEGImages")}
    lists = split_files(base / "ImageSets" / "Segmentation", any_name=True)
    photographs = [Pair(name, image, masks.get(name)) for name, image in images.items()]
    pairs = {split: select(names, photographs, base / "JPEGImages") for split, names in lists.items()}
    # JPEGImages holds many photographs without a segmentation: only those with one count.
    everything = [Pair(name, images[name], mask) for name, mask in sorted(masks.items()) if name in images]
    layout = Layout("VOC", base, pairs or divided(everything))
    layout.orphans = [mask for name, mask in masks.items() if name not in images]
    layout.notes += [] if pairs else [DIVIDED]
    layout.labels, layout.rule = class_table(base)
    if layout.labels is None:
        layout.labels, layout.rule = VOC, MaskRule.plain(VOC)
    return layout


def find_cityscapes(root: Path) -> Layout | None:
    """leftImg8bit and gtFine, by train ids where all images have them."""
    if not (root / "leftImg8bit").is_dir():
        return None
    masks_root = next((root / name for name in ("gtFine", "gtCoarse") if (root / name).is_dir()), None)
    if masks_root is None:
        return None
    images = [file for file in images_in(root / "leftImg8bit") if file.stem.endswith("_leftImg8bit")]

    def mask_of(image: Path, ending: str) -> Path:
        folder = masks_root / image.parent.relative_to(root / "leftImg8bit")
        return folder / f"{image.stem.removesuffix('_leftImg8bit')}_{masks_root.name}_{ending}.png"

    by_train_id = bool(images) and all(mask_of(image, "labelTrainIds").exists() for image in images)
    ending = "labelTrainIds" if by_train_id else "labelIds"
    splits: dict[str, list[Pair]] = {}
    for image in images:
        name = image.relative_to(root / "leftImg8bit").with_suffix("").as_posix().removesuffix("_leftImg8bit")
        mask = mask_of(image, ending)
        pair = Pair(name, image, mask if mask.exists() else None)
        splits.setdefault(_cityscapes_split(name), []).append(pair)
    undivided = splits.pop("", [])
    layout = Layout("Cityscapes", root, splits or divided(undivided), CITYSCAPES)
    layout.rule = MaskRule.plain(CITYSCAPES) if by_train_id else CITYSCAPES_RAW
    layout.notes += [] if splits else [DIVIDED]
    return layout


def _cityscapes_split(name: str) -> str:
    """train, val, test, or train_extra of the coarse labels; "" where the folders are cities, or there are none."""
    top = name.split("/")[0]
    return SPLIT_NAMES.get(top, top if top == "train_extra" else "")


def find_camvid(root: Path) -> Layout | None:
    """train and trainannot, as SegNet's authors laid it out: 11 classes, 11 is void."""
    splits = {
        split: pair_up(root / split, root / f"{split}annot")
        for split in ("train", "val", "test")
        if (root / split).is_dir() and (root / f"{split}annot").is_dir()
    }
    if not splits:
        return None
    orphans = [mask for _, found in splits.values() for mask in found]
    pairs = {split: found for split, (found, _) in splits.items()}
    return Layout("CamVid", root, pairs, CAMVID, MaskRule.plain(CAMVID, void=(11,)), orphans)


def find_ade(root: Path) -> Layout | None:
    """ADEChallengeData2016: images and annotations, each with training and validation; 0 is void, 1 to 150 classes.

    Raises:
        UserError: objectInfo150 beside the data is of another form.
    """
    base = next((place for place in (root / _ADE_NAME, root) if (place / "annotations").is_dir()), None)
    if base is None or not (base / "images").is_dir():
        return None
    found = {
        split: pair_up(base / "images" / folder, base / "annotations" / folder)
        for split, folder in (("train", "training"), ("val", "validation"))
        if (base / "images" / folder).is_dir() and (base / "annotations" / folder).is_dir()
    }
    splits = {split: pairs for split, (pairs, _) in found.items()}
    if not _is_ade(base, [pair for pairs in splits.values() for pair in pairs]):
        return None
    labels, rule = class_table(base)
    if labels is None or len(labels) == ADE_CLASSES:
        labels, rule = labels or LabelSpace(_ade_names(base), voc_palette(ADE_CLASSES)), ADE_RULE
    return Layout("ADE20K", base, splits, labels, rule, [mask for _, lost in found.values() for mask in lost])


def _is_ade(base: Path, pairs: list[Pair]) -> bool:
    """Whether the folders are the benchmark's: other data may lie alike, and their id 0 is no void."""
    named = bool(pairs) and all(pair.name.startswith(("ADE_train_", "ADE_val_")) for pair in pairs)
    return bool(pairs) and (named or base.name == _ADE_NAME or _ade_table(base) is not None)


def _ade_table(base: Path) -> Path | None:
    return next(
        (base / f"objectInfo150{end}" for end in (".txt", ".csv") if (base / f"objectInfo150{end}").is_file()), None
    )


def _ade_names(base: Path) -> tuple[str, ...]:
    """The first name of each class in objectInfo150; without that file "object 1" to "object 150".

    Not "class 0" and so on: so are classes called that were counted in the masks, whose ids are then taken as they are.
    """
    file = _ade_table(base)
    if file is None:
        return tuple(f"object {raw}" for raw in range(1, ADE_CLASSES + 1))
    text = read_text(file)
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    try:
        index, name = header.index("Idx"), header.index("Name")
        names = {int(row[index]): re.split("[,;]", row[name])[0].strip() for row in rows[1:]}
    except (ValueError, IndexError) as error:
        raise UserError(f"{file}: expected the columns Idx and Name, and a row per class ({error})") from error
    if sorted(names) != list(range(1, ADE_CLASSES + 1)):
        raise UserError(f"{file}: expected the classes 1 to {ADE_CLASSES}, got {len(names)} classes")
    return tuple(names[raw] for raw in range(1, ADE_CLASSES + 1))


def find_coco(root: Path) -> Layout | None:
    """COCO 2017 as `degrid data prepare coco` left it: instance annotations are no masks yet.

    Raises:
        UserError: it is not prepared, or with two choices of classes.
    """
    if not any((root / "annotations" / f"instances_{split}2017.json").is_file() for split in ("train", "val")):
        return None
    prepared = [root / name for name in COCO_FOLDERS.values() if any((root / name).glob("*.txt"))]
    if len(prepared) != 1:
        wanted = f"give one of {' and '.join(map(str, prepared))}" if prepared else f"degrid data prepare coco {root}"
        raise UserError(f"{root} holds COCO's annotations, and training needs masks made of them: {wanted}")
    splits = {file.stem: read_list(file, root) for file in sorted(prepared[0].glob("*.txt"))}
    return Layout("COCO", prepared[0], splits, *class_table(prepared[0]))
