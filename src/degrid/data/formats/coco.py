"""COCO 2017 as `degrid data prepare coco` leaves it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import read_list
from degrid.types import UserError

COCO_FOLDERS = {"voc": "voc21", "all": "coco81"}
"""Where `degrid.data.prepare.coco` puts its lists and masks, per choice of classes."""


class Coco(DataFormat):
    """Instance annotations beside the class masks that were drawn from them."""

    wanted: ClassVar[str] = "annotations/instances_train2017.json, prepared (COCO)"

    @cached_property
    def _prepared(self) -> list[Path]:
        folders = [self.path / name for name in COCO_FOLDERS.values()]
        return [folder for folder in folders if any(folder.glob("*.txt"))]

    def reason(self) -> str:
        """See `DataFormat`."""
        files = (f"annotations/instances_{split}2017.json" for split in ("train", "val"))
        found = next((file for file in files if (self.path / file).is_file()), "")
        return found and ", ".join([found, *(folder.name for folder in self._prepared)])

    def layout(self) -> Layout:
        """See `DataFormat`.

        Raises:
            UserError: it is not prepared, or with two choices of classes.
        """
        if len(self._prepared) != 1:
            wanted = (
                f"give one of {' and '.join(map(str, self._prepared))}"
                if self._prepared
                else f"degrid data prepare coco {self.path}"
            )
            raise UserError(f"{self.path} holds COCO's annotations, and training needs masks made of them: {wanted}")
        folder = self._prepared[0]
        splits = {file.stem: read_list(file, self.path) for file in sorted(folder.glob("*.txt"))}
        return Layout(folder, splits, *class_table(folder))
