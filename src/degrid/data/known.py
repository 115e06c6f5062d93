"""The layouts and classes of PASCAL VOC, Cityscapes and CamVid."""

from __future__ import annotations

from pathlib import Path

from degrid.data.classes import class_table
from degrid.data.masks import MaskRule
from degrid.data.pairs import DIVIDED, SPLIT_NAMES, Layout, Pair, divided, images_in, pair_up, select, split_files
from degrid.types import IGNORE_INDEX, LabelSpace, voc_palette

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
_CITYSCAPES_RAW = MaskRule(
    {**dict.fromkeys(range(256), IGNORE_INDEX), **{row[0]: train for train, row in enumerate(_CITYSCAPES)}}
)

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


def find_voc(root: Path) -> Layout | None:
    """JPEGImages, with the lists of ImageSets/Segmentation as splits."""
    places = (root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*")))
    base = next((place for place in places if (place / "JPEGImages").is_dir()), None)
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
    layout.note = "" if pairs else DIVIDED
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
    layout.rule = MaskRule.plain(CITYSCAPES) if by_train_id else _CITYSCAPES_RAW
    layout.note = "" if splits else DIVIDED
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
