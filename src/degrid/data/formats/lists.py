"""List files with one "/image /mask" per line."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout, split_of, splits_of
from degrid.data.formats.pair_lists import (
    LIST_SUFFIXES,
    is_pair_list,
    list_files,
    list_word,
    pair_table,
    read_list,
    read_names,
)


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
        files = _lists_in_any(path) if path.is_dir() else _lists_beside(path)
        folder = path if path.is_dir() else path.parent
        notes: list[str] = []
        table, name = ({}, "") if files or not path.is_dir() else pair_table(path, self.root, notes)
        if table:
            return Layout(name, folder, table, *class_table(self.root or folder), notes=notes)
        splits = {split: read_list(file, self.root, notes) for split, file in files.items()}
        reason = ", ".join(file.name for file in files.values())
        return Layout(reason, folder, splits, *class_table(self.root or folder), notes=notes) if files else None


_MOST = 8  # files that are searched for a list of another name


_FOLDERS = ("splits", "lists", "split", "list", "file_lists", "filelists", "data_list", "data_lists")
"""Where lists may lie, below the folder of the data."""


def _lists_in_any(path: Path) -> dict[str, Path]:
    """`_lists_in` the folder of the data, or else in the first of `_FOLDERS` that holds lists of pairs."""
    places = (path, *(path / name for name in _FOLDERS))
    return next((found for place in places if (found := _lists_in(place))), {})


def _lists_in(folder: Path) -> dict[str, Path]:
    """The lists of splits; or the only list of pairs, whatever it is called, as a split of its name."""
    found = list_files(folder)
    files = _of_splits(found)
    of_pairs = {split for split, file in files.items() if is_pair_list(file)}
    if not files:
        others = [file for file in found if is_pair_list(file)] if len(found) <= _MOST else []
        return {list_word(others[0]): others[0]} if len(others) == 1 else {}
    # An empty list beside a list of pairs is a split that lost its images, and one of other lines is a mistake;
    # read_list reports both.
    return {
        split: file
        for split, file in files.items()
        if of_pairs and (split in of_pairs or file.suffix.lower() == ".txt" or not read_names(file))
    }


def _of_splits(found: list[Path]) -> dict[str, Path]:
    """The lists of splits; without an empty one of the test, as PaddleSeg writes where there is none."""
    called = splits_of(map(list_word, found))
    files = {called[word]: file for file in reversed(found) if (word := list_word(file)) in called}
    return {split: file for split, file in files.items() if split != "test" or read_names(file)}


def _lists_beside(file: Path) -> dict[str, Path]:
    if file.suffix.lower() not in LIST_SUFFIXES:
        return {}
    splits = ("train", "val", "test")
    beside = {
        split: other
        for other in list_files(file.parent)
        if (split := split_of(list_word(other))) in splits
        and (other.suffix.lower() == ".txt" or is_pair_list(other))
        and (split != "test" or read_names(other))
    }
    # A list with another name, such as trainaug.txt, is taken as the one to train on.
    return {**beside, split_of(list_word(file)) if split_of(list_word(file)) in splits else "train": file}
