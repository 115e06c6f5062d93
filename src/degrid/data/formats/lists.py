"""List files with one "/image /mask" per line."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, split_of
from degrid.data.formats.pairs import is_pair_list, read_list, read_names


class Lists(DataFormat):
    """train.txt, val.txt and test.txt in a folder; or any list, with the lists beside it as further splits.

    PaddleX and PaddleSeg call them train_list.txt and so on, and name the classes in labels.txt.
    """

    wanted = "list files (.txt) with /image /mask lines"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a list is empty or malformed.
        """
        files = _lists_in(path) if path.is_dir() else _lists_beside(path)
        folder = path if path.is_dir() else path.parent
        splits = {split: read_list(file, self.root) for split, file in files.items()}
        reason = ", ".join(file.name for file in files.values())
        return Layout(reason, folder, splits, *class_table(self.root or folder)) if files else None


def _lists_in(folder: Path) -> dict[str, Path]:
    files = {SPLIT_NAMES[_word(file)]: file for file in sorted(folder.glob("*.txt")) if _word(file) in SPLIT_NAMES}
    of_pairs = {split for split, file in files.items() if is_pair_list(file)}
    # An empty list beside a list of pairs is a split that lost its images; read_list reports it.
    return {split: file for split, file in files.items() if of_pairs and (split in of_pairs or not read_names(file))}


def _lists_beside(file: Path) -> dict[str, Path]:
    if file.suffix != ".txt":
        return {}
    splits = ("train", "val", "test")
    beside = {_word(other): other for other in sorted(file.parent.glob("*.txt")) if _word(other) in splits}
    # A list with another name, such as trainaug.txt, is taken as the one to train on.
    return {**beside, split_of(_word(file)) if split_of(_word(file)) in splits else "train": file}


def _word(file: Path) -> str:
    """The name of a list without suffix, and without what PaddleX and PaddleSeg add: "train_list" is "train"."""
    return file.stem.removesuffix("_list")
