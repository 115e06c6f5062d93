"""Which TFRecord files make which split of a dataset: their names tell."""

from __future__ import annotations

import re
from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.pairs import SPLIT_NAMES, Layout, split_of
from degrid.data.tfrecord.records import without_suffix
from degrid.types import UserError

# x.tfrecord, x-00000.tfrecord, x-00000-of-00010.tfrecord, x.tfrecord-00000-of-00010, x-00000-of-00010. The last without
# dots in x: the data of a TensorFlow checkpoint are called model.ckpt.data-00000-of-00001.
_FILE = re.compile(r".+\.tfrecords?(-\d+-of-\d+)?|[^.]+-\d+-of-\d+", re.IGNORECASE)
_SHARD = re.compile(r"[-_]\d+(?:-of-(\d+))?$")
_SPLIT = re.compile(rf"(?:(.*)[-_.])?({'|'.join(SPLIT_NAMES)}|trainval|train_?aug)", re.IGNORECASE)
_FOLDERS = ("records", "tfrecords")


def is_record_file(file: Path) -> bool:
    """Whether a name is that of a TFRecord file."""
    return _FILE.fullmatch(file.name) is not None and not file.name.startswith(".")


def find_records(root: Path) -> Layout | None:
    """TFRecord files in a folder, or in records/ or tfrecords/ inside it.

    Names such as voc_train.tfrecord and train-00000-of-00010 tell the split; all its shards belong together. Without
    such names each name is a split of its own, a single one train.

    Raises:
        UserError: files of several datasets, or a class table that cannot be read.
    """
    for folder in (root, *(root / name for name in _FOLDERS)):
        parts = _files_in(folder)
        datasets = sorted({data for data, split in parts.values() if split})
        if len(datasets) > 1:
            raise UserError(
                f"{folder} holds records of several datasets ({', '.join(name or '(no name)' for name in datasets)}); "
                "give one file: the other splits of its dataset are found beside it"
            )
        if parts:
            only = not datasets and len({data for data, _ in parts.values()}) == 1
            return _layout(folder, {f: "train" if only else split or data for f, (data, split) in parts.items()})
    return None


def records_beside(file: Path) -> Layout:
    """The split that a TFRecord file belongs to, all shards, and the other splits of the same dataset beside it.

    A split other than train, val and test is given in order to train on it.

    Raises:
        UserError: a class table that cannot be read.
    """
    parts = _files_in(file.parent)
    data, own = _parts(file)
    splits = {other: split for other, (name, split) in parts.items() if name == data and bool(split) == bool(own)}
    if own not in ("train", "val", "test"):
        splits = {other: "train" if split == own else split for other, split in splits.items() if split != "train"}
    return _layout(file.parent, splits)


def _files_in(folder: Path) -> dict[Path, tuple[str, str]]:
    """TFRecord files, each with the name of its dataset and its split: ("voc", "train"), ("", "val"), ("cats", "")."""
    if not folder.is_dir():
        return {}
    return {file: _parts(file) for file in sorted(folder.iterdir()) if is_record_file(file) and file.is_file()}


def _parts(file: Path) -> tuple[str, str]:
    stem = _SHARD.sub("", without_suffix(file))
    match = _SPLIT.fullmatch(stem)
    return (match[1] or "", split_of(match[2])) if match else (stem, "")


def _layout(folder: Path, split_of_file: dict[Path, str]) -> Layout:
    root = folder.parent if folder.name in _FOLDERS else folder
    labels, rule = class_table(folder)
    if labels is None:
        labels, rule = class_table(root)
    layout = Layout("TFRecord", root, {}, labels, rule)
    for file, split in split_of_file.items():
        layout.records.setdefault(split, []).append(file)
    layout.notes += filter(None, (_incomplete(split, files) for split, files in layout.records.items()))
    return layout


def _incomplete(split: str, files: list[Path]) -> str:
    """What the shards' names say about absent ones; "" if none is."""
    counts = [int(match[1]) for file in files if (match := _SHARD.search(without_suffix(file))) and match[1]]
    expected = max(counts, default=0)
    return f"{split}: only {len(files)} of {expected} shards are there" if len(files) < expected else ""
