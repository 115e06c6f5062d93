"""Make PASCAL VOC and Cityscapes, as downloaded, ready to train on: labels, lists, and a count of what is there."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.cityscapes import CITYSCAPES, CITYSCAPES_RAW
from degrid.data.formats.masks import read_mask, unknown_message
from degrid.data.formats.pairs import images_in, read_names
from degrid.data.formats.voc import VOC, voc_base
from degrid.data.prepare.files import Lists, OnImage, folder_at, save_ids
from degrid.files import atomic_write
from degrid.types import UserError

_VOC_COUNTS = {"train": 10_582, "val": 1_449}
_CITYSCAPES_COUNTS = {"train": 2_975, "val": 500, "test": 1_525}
# Where SBD's archive has its labels, below the folder it was unpacked in.
_SBD = ("benchmark_RELEASE/dataset/cls", "dataset/cls", "cls")


def prepare_voc(path: str | Path, on_image: OnImage | None = None) -> list[str]:
    """Write train.txt (trainaug) and val.txt with "/image /mask" lines, and classes.csv, beside JPEGImages.

    train: the ids of ImageSets/Segmentation/trainaug.txt, or all of SegmentationClassAug that are not in val.
    SegmentationClassAug is made from SBD's .mat files where these lie in `path` or beside JPEGImages (needs scipy).
    val: the ids of ImageSets/Segmentation/val.txt, with VOC's own masks.

    Args:
        path: the folder with JPEGImages, or one above it.
        on_image: called with (done, total) for each label made.
    Returns:
        One line per finding; those on what is missing, or is more or less than expected, begin with "warning: ". The
        last line says what was written and how to train on it.
    Raises:
        UserError: a folder or list that it cannot do without is missing, or a file is damaged.
    """
    base = voc_base(folder_at(path))
    if base is None:
        raise UserError(f"no JPEGImages in {path}, nor in VOC2012 below it")
    lists = base / "ImageSets" / "Segmentation"
    val = _ids(lists / "val.txt")
    prepared = Lists(base, VOC, _VOC_COUNTS)
    prepared.report += _augmented_masks(Path(path), base, on_image)
    augmented = base / "SegmentationClassAug"
    if (lists / "trainaug.txt").is_file():
        train = _ids(lists / "trainaug.txt")
    else:
        train = sorted({file.stem for file in augmented.glob("*.png")} - set(val))
        prepared.report.append(f"no trainaug.txt in {lists}: train.txt has all of SegmentationClassAug but val")
    own = base / "SegmentationClass"
    # SBD drew some of val again, without void borders: scores are taken on VOC's masks.
    val_masks = [own if (own / f"{name}.png").is_file() else augmented for name in val]
    masks = {"train": [augmented] * len(train), "val": val_masks}
    for split, names in (("train", train), ("val", val)):
        pairs = [
            (base / "JPEGImages" / f"{name}.jpg", folder / f"{name}.png")
            for name, folder in zip(names, masks[split], strict=True)
        ]
        prepared.write(split, pairs)
    return prepared.finish()


def prepare_cityscapes(path: str | Path, on_image: OnImage | None = None) -> list[str]:
    """Make labelTrainIds from labelIds where missing, and write train.txt, val.txt, test.txt and classes.csv.

    train and val have lines of "/image /mask", test has lines of "/image". Images without a label are left out.

    Args:
        path: the folder with leftImg8bit and gtFine.
        on_image: called with (done, total) for each label made.
    Returns:
        One line per finding; those on what is missing, or is more or less than expected, begin with "warning: ". The
        last line says what was written and how to train on it.
    Raises:
        UserError: a folder is missing, a file is damaged, or a label is no picture of ids.
    """
    root = folder_at(path)
    for name in ("leftImg8bit", "gtFine"):
        if not (root / name).is_dir():
            raise UserError(f"no folder {name} in {root}; expected leftImg8bit and gtFine")
    made = _train_ids(root / "gtFine", on_image)
    prepared = Lists(root, CITYSCAPES, _CITYSCAPES_COUNTS)
    prepared.report.append(f"{made} labels made: _gtFine_labelTrainIds.png from _gtFine_labelIds.png")
    for split in _CITYSCAPES_COUNTS:
        images = images_in(root / "leftImg8bit" / split)
        pairs: list[tuple[Path, Path | None]] = [(image, _label_of(root, image)) for image in images]
        unlabelled = [image for image, mask in pairs if mask and not mask.is_file()]
        if split == "test":
            pairs = [(image, None) for image in images]
        elif unlabelled:
            pairs = [(image, mask) for image, mask in pairs if mask and mask.is_file()]
            prepared.report.append(
                f"warning: {split}: {len(unlabelled)} images have no label, {unlabelled[0]} among them"
            )
        prepared.write(split, pairs)
    return prepared.finish()


def _ids(file: Path) -> list[str]:
    """The ids of a list; of "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png" lines too, as some copies have them."""
    return [Path(line.split()[0]).stem for line in read_names(file)]


# ---- Cityscapes ---------------------------------------------------------------------------------------------


def _label_of(root: Path, image: Path) -> Path:
    folder = root / "gtFine" / image.parent.relative_to(root / "leftImg8bit")
    return folder / f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_labelTrainIds.png"


def _train_ids(folder: Path, on_image: OnImage | None) -> int:
    """Make the labels that are missing; how many these were."""
    todo = {
        source: source.with_name(source.name.replace("_gtFine_labelIds", "_gtFine_labelTrainIds"))
        for source in sorted(folder.rglob("*_gtFine_labelIds.png"))
    }
    todo = {source: target for source, target in todo.items() if not target.exists()}
    for done, (source, target) in enumerate(todo.items(), 1):
        ids, unknown = CITYSCAPES_RAW.apply(read_mask(source))
        if unknown:
            raise UserError(unknown_message(source, unknown, CITYSCAPES))
        save_ids(ids, target, CITYSCAPES)
        if on_image:
            on_image(done, len(todo))
    return len(todo)


# ---- VOC ----------------------------------------------------------------------------------------------------


def _augmented_masks(root: Path, base: Path, on_image: OnImage | None) -> list[str]:
    """Fill SegmentationClassAug from SBD, where that is there, with VOC's own masks in place of SBD's.

    Raises:
        UserError: neither SegmentationClassAug nor what it can be made from.
    """
    target = base / "SegmentationClassAug"
    places = dict.fromkeys(place / name for place in (root, base, base.parent, base.parent.parent) for name in _SBD)
    sbd = next((place for place in places if place.is_dir() and any(place.glob("*.mat"))), None)
    sources = {file.stem: file for file in sorted(sbd.glob("*.mat"))} if sbd else {}
    todo = {name: file for name, file in sources.items() if not (target / f"{name}.png").exists()}
    if not todo:
        if target.is_dir():
            return []
        raise UserError(
            f"no SegmentationClassAug in {base}; put it there, or unpack SBD's benchmark.tgz (benchmark_RELEASE) "
            f"in {root}"
        )
    load = _mat_reader()
    if load is None:
        sentence = f"{len(todo):,} of SBD's .mat files in {sbd} are not converted: that needs scipy (pip install scipy)"
        if target.is_dir():
            return [f"warning: {sentence}"]
        raise UserError(sentence)
    own = {file.stem: file for file in (base / "SegmentationClass").glob("*.png")}
    todo |= {name: file for name, file in own.items() if not (target / f"{name}.png").exists()}
    for done, (name, file) in enumerate(sorted(todo.items()), 1):
        if file.suffix == ".mat":
            save_ids(_read_mat(load, file), target / f"{name}.png", VOC)
        else:
            with atomic_write(target / f"{name}.png") as temporary:
                shutil.copyfile(file, temporary)
        if on_image:
            on_image(done, len(todo))
    return [f"{len(todo):,} masks made in {target}"]


def _mat_reader() -> Callable[[Path], Any] | None:
    """scipy.io.loadmat; None where scipy is not installed."""
    try:
        load: Callable[[Path], Any] = importlib.import_module("scipy.io").loadmat
    except ImportError:
        return None
    return load


def _read_mat(load: Callable[[Path], Any], file: Path) -> np.ndarray:
    """The class ids in one of SBD's files, uint8 [H,W]."""
    try:
        return np.asarray(load(file)["GTcls"][0, 0]["Segmentation"], np.uint8)
    except (KeyError, IndexError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{file} is damaged, or none of SBD's class labels: {error}") from error
