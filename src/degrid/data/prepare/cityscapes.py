"""Make Cityscapes, as downloaded, ready to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from degrid.data.formats.benchmarks.cityscapes import CITYSCAPES, CITYSCAPES_RAW
from degrid.data.formats.masks import Color, unknown_message
from degrid.data.formats.pairs import images_in
from degrid.data.prepare.listing import ListWriter, folder_at, write_train_ids
from degrid.lookup import counted
from degrid.types import OnProgress, UserError

_COUNTS = {"train": 2_975, "val": 500, "test": 1_525}


def prepare_cityscapes(path: str | Path, progress: OnProgress | None = None) -> list[str]:
    """Make labelTrainIds from labelIds where missing, and write train.txt, val.txt, test.txt and classes.csv.

    train and val have lines of "/image /mask"; test has lines of "/image". Images without a label are left out.

    Args:
        path: the folder with leftImg8bit and gtFine.
        progress: told how many labels are made.
    Returns:
        The report; see `degrid.data.prepare_benchmark`.
    Raises:
        UserError: a folder is missing, a file is damaged, or a label is not a picture of ids.
    """
    root = folder_at(path)
    for name in ("leftImg8bit", "gtFine"):
        if not (root / name).is_dir():
            raise UserError(f"no folder {name} in {root}; expected leftImg8bit and gtFine")
    targets = {
        source: source.with_name(source.name.replace("_gtFine_labelIds", "_gtFine_labelTrainIds"))
        for source in images_in(root / "gtFine")
        if source.name.endswith("_gtFine_labelIds.png")
    }
    made = write_train_ids(targets, CITYSCAPES_RAW, CITYSCAPES, _refuse, progress)
    lists = ListWriter(root, CITYSCAPES, _COUNTS)
    lists.report.append(f"{counted(made, 'label')} made: _gtFine_labelTrainIds.png from _gtFine_labelIds.png")
    for split in _COUNTS:
        masks = {image: _label_of(root, image) for image in images_in(root / "leftImg8bit" / split)}
        if split == "test":
            lists.write(split, [(image, None) for image in masks])
            continue
        lists.warn(f"{split}: {{}} no label", [image for image, mask in masks.items() if not mask.is_file()])
        lists.write(split, [(image, mask) for image, mask in masks.items() if mask.is_file()])
    return lists.finish()


def _label_of(root: Path, image: Path) -> Path:
    folder = root / "gtFine" / image.parent.relative_to(root / "leftImg8bit")
    return folder / f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_labelTrainIds.png"


def _refuse(source: Path, ids: np.ndarray, unknown: dict[int | Color, int]) -> None:
    raise UserError(unknown_message(source, unknown, CITYSCAPES_RAW))
