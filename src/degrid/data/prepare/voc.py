"""Make PASCAL VOC, as downloaded, ready to train on."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.benchmarks.voc import VOC, voc_base
from degrid.data.formats.pair_lists import read_names
from degrid.data.prepare.listing import WORK, ListWriter, folder_at, save_ids
from degrid.files import atomic_write, blaming
from degrid.lookup import counted
from degrid.types import OnProgress, Progress, UserError

_COUNTS = {"train": 10_582, "val": 1_449}
# Where the archive of the Semantic Boundaries Dataset (SBD) has its labels, below the folder it was unpacked in.
_SBD = ("benchmark_RELEASE/dataset/cls", "dataset/cls", "cls")


def prepare_voc(path: str | Path, progress: OnProgress | None = None) -> list[str]:
    """Write train.txt (trainaug) and val.txt with "/image /mask" lines, and classes.csv, beside JPEGImages.

    train: the ids of ImageSets/Segmentation/trainaug.txt, or without it all ids of SegmentationClassAug that are not in
    val. A missing SegmentationClassAug is made from the .mat files of SBD in `path` or beside JPEGImages (needs scipy).
    val: the ids of ImageSets/Segmentation/val.txt, with VOC's own masks.

    Args:
        path: the folder with JPEGImages, or one above it.
        progress: told how many labels are made.
    Returns:
        The report; see `degrid.data.prepare_benchmark`.
    Raises:
        UserError: an indispensable folder or list is missing, or a file is damaged.
    """
    base = voc_base(folder_at(path))
    if base is None:
        raise UserError(f"no JPEGImages in {path}, nor in VOC2012 below it")
    ids = base / "ImageSets" / "Segmentation"
    val = _ids(ids / "val.txt")
    lists = ListWriter(base, VOC, _COUNTS)
    lists.report += _fill_augmented(Path(path), base, progress)
    augmented = base / "SegmentationClassAug"
    if (ids / "trainaug.txt").is_file():
        train = _ids(ids / "trainaug.txt")
    else:
        train = sorted({file.stem for file in augmented.glob("*.png")} - set(val))
        lists.report.append(f"no trainaug.txt in {ids}: train.txt has all of SegmentationClassAug but val")
    own = base / "SegmentationClass"
    # SBD annotated parts of val again, without void borders; scores must be computed on VOC's masks.
    val_masks = [own if (own / f"{name}.png").is_file() else augmented for name in val]
    masks = {"train": [augmented] * len(train), "val": val_masks}
    for split, names in (("train", train), ("val", val)):
        pairs = [
            (base / "JPEGImages" / f"{name}.jpg", folder / f"{name}.png")
            for name, folder in zip(names, masks[split], strict=True)
        ]
        lists.write(split, pairs)
    return lists.finish()


def _ids(file: Path) -> list[str]:
    """The ids in a list; some copies have lines like "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png" instead."""
    return [Path(line.split()[0]).stem for line in read_names(file)]


def _fill_augmented(root: Path, base: Path, progress: OnProgress | None) -> list[str]:
    """Fill SegmentationClassAug from the Semantic Boundaries Dataset (SBD) if it is there; VOC's masks take precedence.

    Returns:
        What was made, as lines for the report.
    Raises:
        UserError: neither SegmentationClassAug nor what it can be made from.
    """
    target = base / "SegmentationClassAug"
    places = dict.fromkeys(place / name for place in (root, base, base.parent, base.parent.parent) for name in _SBD)
    sbd = next((place for place in places if place.is_dir() and any(place.glob("*.mat"))), None)
    todo = _absent(target, sbd.glob("*.mat") if sbd else ())
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
    todo |= _absent(target, (base / "SegmentationClass").glob("*.png"))
    for done, (name, file) in enumerate(sorted(todo.items()), 1):
        if file.suffix == ".mat":
            save_ids(_read_mat(load, file), target / f"{name}.png", VOC)
        else:
            with atomic_write(target / f"{name}.png") as temporary:
                shutil.copyfile(file, temporary)
        if progress:
            progress(Progress(WORK, done, len(todo)))
    return [f"{counted(len(todo), 'mask')} made in {target}"]


def _absent(target: Path, files: Iterable[Path]) -> dict[str, Path]:
    """The files, by name, that have no mask in the target yet."""
    return {file.stem: file for file in sorted(files) if not (target / f"{file.stem}.png").exists()}


def _mat_reader() -> Callable[[Path], Any] | None:
    """scipy.io.loadmat; None where scipy is not installed."""
    try:
        load: Callable[[Path], Any] = importlib.import_module("scipy.io").loadmat
    except ImportError:
        return None
    return load


def _read_mat(load: Callable[[Path], Any], file: Path) -> np.ndarray:
    """The class ids in one of SBD's files, uint8 [H,W]."""
    with blaming(f"{file} is damaged, or not one of SBD's class labels:", OSError):
        return np.asarray(load(file)["GTcls"][0, 0]["Segmentation"], np.uint8)
