"""List files with one "/image /mask" per line."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, split_of
from degrid.data.formats.pairs import is_pair_list, read_list, read_names


class Lists(DataFormat):
    """train.txt, val.txt and test.txt in a folder; or one list of any name, with those beside it as other splits."""

    wanted: ClassVar[str] = "list files (.txt) with /image /mask lines"

    @cached_property
    def _files(self) -> dict[str, Path]:
        if self.path.is_dir():
            files = {SPLIT_NAMES[f.stem]: f for f in sorted(self.path.glob("*.txt")) if f.stem in SPLIT_NAMES}
            # An empty list beside one of pairs is a split that lost its images, as read_list says.
            of_pairs = {split: file for split, file in files.items() if is_pair_list(file)}
            return of_pairs and {
                split: file for split, file in files.items() if split in of_pairs or not read_names(file)
            }
        if self.path.suffix != ".txt":
            return {}
        splits = ("train", "val", "test")
        beside = {file.stem: file for file in sorted(self.path.parent.glob("*.txt")) if file.stem in splits}
        # A list with a name of its own, such as trainaug.txt, is given in order to train on it.
        own = split_of(self.path.stem) if split_of(self.path.stem) in splits else "train"
        return {**beside, own: self.path}

    def reason(self) -> str:
        """See `DataFormat`."""
        return ", ".join(file.name for file in self._files.values())

    def layout(self) -> Layout:
        """See `DataFormat`.

        Raises:
            UserError: a list that is empty or holds lines of another form.
        """
        folder = self.path if self.path.is_dir() else self.path.parent
        splits = {split: read_list(file, self.root) for split, file in self._files.items()}
        return Layout(folder, splits, *class_table(self.root or folder))
