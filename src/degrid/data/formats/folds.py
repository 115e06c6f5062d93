"""Splits for cross-validation: folds that are numbered in a table, in lists or in the names of folders."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from degrid.data.formats.layout import SPLIT_NAMES
from degrid.data.formats.pair_lists import list_files, list_word, named_in_column, read_names
from degrid.data.formats.pairs import Pair
from degrid.lookup import counted, some

Named = tuple[dict[str, list[str]], str]
"""The names of the images of each split, and a sentence on how they were chosen; nothing where there are no folds."""
_NOTHING: Named = ({}, "")
_COLUMNS = ("fold", "folds", "kfold", "k_fold", "fold_id", "cv")
_FOLD = re.compile(r"(?:k?-?folds?|cv)[-_ ]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:[-_. ]?(?:k?-?fold|cv|split)[-_ ]?|[-_]?)(\d+)", re.IGNORECASE)
_BEFORE = re.compile(r"(?:k?-?fold|cv|split)?[-_ ]?(\d+)[-_. ]", re.IGNORECASE)
_OTHERS = "another fold can be chosen by lists in dataset.yaml (train: LIST, val: LIST)"


def named_folds(folder: Path) -> Named:
    """The splits of the first fold, which a table or lists in a folder name.

    A table such as folds.csv has a column of images and one of whole numbers, the folds: the first one is kept for
    validation. Lists are called train_fold0.txt and val_fold0.txt, fold_0_train.txt and so on.
    """
    return _of_table(folder) if (found := _of_lists(folder)) == _NOTHING else found


def _of_table(folder: Path) -> Named:
    for file in list_files(folder):
        found = named_in_column(file, _COLUMNS)
        numbers = {
            fold: number for fold in found if (number := re.fullmatch(r"(?:k?-?fold)?[-_ ]?(\d+)(?:\.0)?", fold))
        }
        if len(found) > 1 and len(numbers) == len(found):
            first, *others = sorted(found, key=lambda fold: int(numbers[fold][1]))
            said = (
                f"{file.name} divides the images into {counted(len(found), 'fold')}: {first} is kept for validation, "
            )
            said += f"the others are trained on; {_OTHERS}"
            return {"train": [name for fold in others for name in found[fold]], "val": found[first]}, said
    return _NOTHING


def _of_lists(folder: Path) -> Named:
    folds: dict[int, dict[str, Path]] = {}
    for file in list_files(folder):
        split, number = _split_and_fold(list_word(file))
        if split and file.suffix.lower() == ".txt":
            folds.setdefault(number, {}).setdefault(split, file)
    whole = [number for number in sorted(folds) if {"train", "val"} <= {*folds[number]}]
    if not whole:
        return _NOTHING
    lists = folds[whole[0]]
    names = {split: read_names(file) for split, file in lists.items()}
    if not all(names.values()):
        return _NOTHING
    said = f"the splits are those of {some([lists[split].name for split in names])}"
    return names, said if len(whole) == 1 else f"{said}, one of {counted(len(whole), 'fold')}; {_OTHERS}"


def _split_and_fold(word: str) -> tuple[str, int]:
    """The split and the number in the name of a list, such as train_fold0, fold_0_val or train1; empty for others."""
    for name, split in SPLIT_NAMES.items():
        bare = word.lower()
        if bare.startswith(name) and (found := _NUMBER.fullmatch(bare[len(name) :])):
            return split, int(found[1])
        if bare.endswith(name) and (found := _BEFORE.fullmatch(bare[: len(bare) - len(name)])):
            return split, int(found[1])
    return "", 0


def folds_of_folders(pairs: Sequence[Pair], around: str) -> tuple[dict[str, list[Pair]], str]:
    """As `named_folds`, where the images lie in folders such as fold1, fold2, ..

    Args:
        around: the folder in which all of them lie.
    """
    numbers = [_FOLD.fullmatch(pair.name.removeprefix(around).partition("/")[0]) for pair in pairs]
    folds = [int(found[1]) for found in numbers if found]
    if len(folds) < len(pairs) or len({*folds}) < 2:
        return {}, ""
    first = min(folds)
    splits = {
        split: [pair for pair, fold in zip(pairs, folds, strict=True) if (fold == first) == (split == "val")]
        for split in ("train", "val")
    }
    folder = os.path.dirname(splits["val"][0].name).removeprefix(around).partition("/")[0]
    others = counted(len({*folds}) - 1, "other fold", "are")
    return splits, f"{folder} is kept for validation, {others} trained on; {_OTHERS}"
