"""COCO 2017 as `degrid data prepare coco` leaves it."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pair_lists import read_list
from degrid.types import UserError

COCO_FOLDERS = {"voc": "voc21", "all": "coco81"}
"""Where `degrid.data.prepare.coco` puts its lists and masks, per choice of classes."""

_ENDS = 1 << 16


class Coco(DataFormat):
    """Instance annotations beside the class masks that were drawn from them."""

    wanted = "annotations/instances_train2017.json, prepared (COCO)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: it is not prepared, or with two choices of classes.
        """
        files = (path / "annotations" / f"instances_{split}2017.json" for split in ("train", "val"))
        file = next((file for file in files if file.is_file()), None)
        prepared = prepared_folders(path)
        if file is None or not (prepared or _has_cocos_categories(file)):
            return None
        if len(prepared) != 1:
            given = f"give one of {' and '.join(map(str, prepared))}"
            wanted = given if prepared else f"degrid data prepare coco {path}"
            raise UserError(f"{path} holds COCO's annotations, and training needs masks made from them: {wanted}")
        folder = prepared[0]
        splits = {file.stem: read_list(file, path) for file in sorted(folder.glob("*.txt"))}
        return Layout(f"{file.name}, prepared in {folder.name}", folder, splits, *class_table(folder))


def _has_cocos_categories(file: Path) -> bool:
    """Whether one of COCO's last categories is near an end of the file; others name their first ones as COCO does."""
    with file.open("rb") as stream:
        start = stream.read(_ENDS)
        stream.seek(max(0, file.stat().st_size - _ENDS))
        return b'"hair drier"' in start + stream.read()


def prepared_folders(path: Path) -> list[Path]:
    """The folders of COCO in which `degrid.data.prepare.coco` has put lists."""
    return [path / name for name in COCO_FOLDERS.values() if any((path / name).glob("*.txt"))]
