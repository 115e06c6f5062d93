"""Recognise how a dataset lies on disk: which image goes with which mask, in which split, with which classes."""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from degrid.data.masks import MaskRule
from degrid.image import IMAGE_SUFFIXES
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "photos")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annots",
    "gt",
    "segmentation",
    "SegmentationClass",
)
MASK_ENDINGS = (
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_gt",
    "_seg",
    "_segmentation",
    "-mask",
    "-label",
    "_L",
)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Pair:
    """An image file, its mask (None where it is missing), and its name in the dataset."""

    name: str
    image: Path
    mask: Path | None


@dataclass
class Layout:
    """A recognised dataset.

    labels: None where the masks must be scanned to find the classes; rule: None likewise.
    orphans: masks without an image. note: what was decided for the user, in words.
    """

    kind: str
    root: Path
    splits: dict[str, list[Pair]]
    labels: LabelSpace | None = None
    rule: MaskRule | None = None
    orphans: list[Path] = field(default_factory=list)
    note: str = ""


def recognise(root: Path) -> Layout:
    """The layout of a folder.

    Raises:
        UserError: none of the known ones; the message lists what was looked for.
    """
    for find in (_voc, _cityscapes, _segnet_camvid, _lists_in, _named_folders, _side_by_side):
        layout = find(root)
        if layout is not None and any(layout.splits.values()):
            order = [
                *(name for name in ("train", "val", "test") if name in layout.splits),
                *sorted(layout.splits),
            ]
            layout.splits = {name: layout.splits[name] for name in order}
            return layout
    raise UserError(
        f"no images with masks found in {root}. Looked for: images/ and masks/ (or labels/, annotations/) with files "
        "of the same names, also below train/ and val/; NAME.jpg beside NAME_mask.png; list files with /image /mask "
        "lines; the VOC, Cityscapes and CamVid layouts; dataset.yaml"
    )


# ---- known datasets -----------------------------------------------------------------------------------------

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


def _voc(root: Path) -> Layout | None:
    places = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    base = next((place for place in places if (place / "JPEGImages").is_dir()), None)
    if base is None:
        return None
    folders = [base / name for name in ("SegmentationClassAug", "SegmentationClass") if (base / name).is_dir()]
    if not folders:
        return None
    masks = {file.stem: file for folder in reversed(folders) for file in _images_in(folder)}
    images = {file.stem: file for file in _images_in(base / "JPEGImages")}
    lists = _split_files(base / "ImageSets" / "Segmentation")
    names = {split: ids for split, ids in lists.items() if ids}
    pairs = {
        split: [Pair(name, images.get(name, base / "JPEGImages" / f"{name}.jpg"), masks.get(name)) for name in ids]
        for split, ids in names.items()
    }
    # JPEGImages holds many photographs without a segmentation: only those with one count.
    everything = [Pair(name, images[name], mask) for name, mask in sorted(masks.items()) if name in images]
    layout = Layout("VOC", base, pairs or _divided(everything))
    layout.orphans = [mask for name, mask in masks.items() if name not in images]
    layout.note = "" if pairs else _DIVIDED
    layout.labels = label_file(base) or VOC
    layout.rule = MaskRule.plain(layout.labels)
    return layout


def _cityscapes(root: Path) -> Layout | None:
    if not (root / "leftImg8bit").is_dir():
        return None
    masks_root = next((root / name for name in ("gtFine", "gtCoarse") if (root / name).is_dir()), None)
    if masks_root is None:
        return None
    images = [file for file in _images_in(root / "leftImg8bit") if file.stem.endswith("_leftImg8bit")]

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
        splits.setdefault(SPLIT_NAMES.get(name.split("/")[0], ""), []).append(pair)
    undivided = splits.pop("", [])
    layout = Layout("Cityscapes", root, splits or _divided(undivided), CITYSCAPES)
    layout.rule = MaskRule.plain(CITYSCAPES) if by_train_id else _CITYSCAPES_RAW
    layout.note = "" if splits else _DIVIDED
    return layout


def _segnet_camvid(root: Path) -> Layout | None:
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


# ---- folders and lists --------------------------------------------------------------------------------------

_DIVIDED = "no split given: every fifth image or so, by its name, is kept for validation"


def _named_folders(root: Path) -> Layout | None:
    """images/ and masks/, divided by sub-folders, by train.txt and val.txt, or not at all; also train/images/ .."""
    splits: dict[str, list[Pair]] = {}
    orphans: list[Path] = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        split = SPLIT_NAMES.get(folder.name.lower())
        inner = _image_and_mask_folders(folder) if split and folder.is_dir() else None
        if split and inner:
            splits[split], lost = pair_up(*inner)
            orphans += lost
    if splits:
        return Layout("folder", root, splits, label_file(root), orphans=orphans)
    folders = _image_and_mask_folders(root)
    if folders is None:
        return None
    pairs, orphans = pair_up(*folders)
    layout = Layout("folder", root, {}, label_file(root), orphans=orphans)
    listed = _split_files(root)
    tops = {pair.name.split("/")[0].lower() for pair in pairs if "/" in pair.name}
    if listed:
        known = {pair.name: pair for pair in pairs}
        for split, names in listed.items():
            layout.splits[split] = [known.get(n) or Pair(n, folders[0] / f"{n}.jpg", None) for n in names]
    elif any(top in SPLIT_NAMES for top in tops):
        for pair in pairs:
            split = SPLIT_NAMES.get(pair.name.split("/")[0].lower())
            if split:
                layout.splits.setdefault(split, []).append(pair)
    else:
        layout.splits, layout.note = _divided(pairs), _DIVIDED
    return layout


def _side_by_side(root: Path) -> Layout | None:
    """NAME.jpg beside NAME_mask.png."""
    files = _images_in(root)
    stems = {file.with_suffix("") for file in files}
    # cat_mask.png is a mask because there is a cat.jpg.
    masks = {
        file
        for file in files
        for ending in MASK_ENDINGS
        if file.stem.endswith(ending) and file.with_name(file.stem.removesuffix(ending)) in stems
    }
    pairs, orphans = _match([file for file in files if file not in masks], root, sorted(masks), root)
    if 2 * sum(pair.mask is not None for pair in pairs) < max(1, len(pairs)):
        return None  # a few names that happen to fit are no dataset
    return Layout("folder", root, _divided(pairs), label_file(root), orphans=orphans, note=_DIVIDED)


def _lists_in(root: Path) -> Layout | None:
    """train.txt, val.txt with "/image /mask" lines."""
    files = {SPLIT_NAMES[file.stem]: file for file in sorted(root.glob("*.txt")) if file.stem in SPLIT_NAMES}
    splits = {split: read_list(file) for split, file in files.items() if _is_pair_list(file)}
    return Layout("lists", root, splits, label_file(root)) if splits else None


def _is_pair_list(file: Path) -> bool:
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].split()
    return len(lines) == 2 and all(Path(part).suffix.lower() in IMAGE_SUFFIXES for part in lines)


def read_list(file: Path, root: Path | None = None) -> list[Pair]:
    """Pairs from lines of "/image /mask", the paths starting at `root`; a line with an image alone has no mask.

    Args:
        root: where the leading slash points; by default the list's folder, or the nearest one above it in which the
            first image exists.
    Raises:
        UserError: missing or empty, a line of another form, or no folder in which the first image exists.
    """
    if not file.is_file():
        raise UserError(f"no list file at {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"the list {file} is empty")
    first = lines[0].split()[0].lstrip("/")
    if root is None:
        root = next((place for place in file.resolve().parents if (place / first).exists()), None)
        if root is None:
            raise UserError(f"{file}: {first} is in none of the folders above the list; give the root in dataset.yaml")
    pairs = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if len(parts) > 2:
            raise UserError(f'{file}, line {number}: expected "/image /mask", got "{line}"')
        image = root / parts[0].lstrip("/")
        mask = root / parts[1].lstrip("/") if len(parts) == 2 and parts[1] != parts[0] else None
        pairs.append(Pair(Path(parts[0].lstrip("/")).with_suffix("").as_posix(), image, mask))
    return pairs


def pair_up(image_folder: Path, mask_folder: Path) -> tuple[list[Pair], list[Path]]:
    """Pair the images of one folder with the masks of another by name; and the masks left over."""
    return _match(_images_in(image_folder), image_folder, _images_in(mask_folder), mask_folder)


def _match(images: list[Path], image_root: Path, masks: list[Path], mask_root: Path) -> tuple[list[Pair], list[Path]]:
    def key(file: Path, root: Path) -> str:
        return file.relative_to(root).with_suffix("").as_posix()

    by_name = {key(mask, mask_root): mask for mask in masks}
    pairs, used = [], set()
    for image in images:
        name = key(image, image_root)
        base = next((name.removesuffix(e) for e in ("_image", "_img", "_sat") if name.endswith(e)), name)
        candidates = [
            name,
            *(stem + ending for stem in dict.fromkeys((name, base)) for ending in ("", *MASK_ENDINGS)),
        ]
        mask = next((by_name[candidate] for candidate in candidates if candidate in by_name), None)
        used.add(mask)
        pairs.append(Pair(name, image, mask))
    return pairs, [mask for mask in masks if mask not in used]


def _image_and_mask_folders(root: Path) -> tuple[Path, Path] | None:
    def first(names: tuple[str, ...]) -> Path | None:
        return next((root / name for name in names if (root / name).is_dir()), None)

    images, masks = first(IMAGE_FOLDERS), first(MASK_FOLDERS)
    return (images, masks) if images and masks else None


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def _split_files(folder: Path) -> dict[str, list[str]]:
    """Names from train.txt, val.txt, ..; one per line. Files with other names, such as trainaug.txt, are splits too."""
    found = {}
    for file in sorted(folder.glob("*.txt")):
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        is_split = file.stem in SPLIT_NAMES or folder.name == "Segmentation"
        if is_split and lines and not _is_pair_list(file):
            found[SPLIT_NAMES.get(file.stem, file.stem)] = lines
    return found


def _divided(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """About one image in five for validation, chosen by its name, so that the choice is the same everywhere."""
    val = [pair for pair in pairs if zlib.crc32(pair.name.encode()) % 5 == 0]
    if not val and len(pairs) > 1:
        val = pairs[-1:]
    chosen = {pair.name for pair in val}
    train = [pair for pair in pairs if pair.name not in chosen] or val
    return {"train": train, "val": val or train}


def label_file(root: Path) -> LabelSpace | None:
    """Classes from classes.csv (id,name,r,g,b) or from a text file with one name per line."""
    table = root / "classes.csv"
    if table.exists():
        try:
            with table.open(encoding="utf-8", newline="") as stream:
                rows = sorted(csv.DictReader(stream), key=lambda row: int(row["id"]))
            names = tuple(row["name"].strip() for row in rows)
            colors = tuple((int(row["r"]), int(row["g"]), int(row["b"])) for row in rows)
            if [int(row["id"]) for row in rows] != list(range(len(rows))):
                raise UserError(f"{table}: ids must run from 0 without a gap")
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{table}: expected the columns id,name,r,g,b with whole numbers ({error!r})") from error
        return LabelSpace(names, colors)
    for name in ("classes.txt", "class_names.txt", "codes.txt"):
        if (root / name).exists():
            lines = [line.strip() for line in (root / name).read_text(encoding="utf-8").splitlines()]
            names = tuple(line for line in lines if line and line != "__ignore__")
            return LabelSpace(names, voc_palette(len(names)))
    return None
