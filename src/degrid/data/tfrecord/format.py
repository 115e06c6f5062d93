"""TFRecord files as a dataset: their names say which of them make which split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, split_of
from degrid.data.formats.source import BrokenSource, LazySources, Source
from degrid.data.tfrecord.records import records_in, without_suffix
from degrid.data.tfrecord.source import RecordSource
from degrid.lookup import grouped
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


class TFRecord(DataFormat):
    """TFRecord files in a folder, or in records/ or tfrecords/ inside it; or one file, with the others beside it.

    Names such as voc_train.tfrecord and train-00000-of-00010 say the split; all its shards belong together. Without
    such names each name is a split of its own, a single one train. A file that is given brings its shards and the other
    splits of its dataset; if its split is not train, val or test, it is given in order to train on it.
    """

    wanted = "TFRecord files such as train.tfrecord"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: files of several datasets, or a class table that cannot be read.
        """
        splits = _splits_in(path) if path.is_dir() else _splits_beside(path)
        if not splits:
            return None
        first = next(iter(splits))
        folder = first.parent
        root = folder.parent if folder.name in _FOLDERS else folder
        labels, rule = class_table(folder)
        if labels is None:
            labels, rule = class_table(root)
        files = grouped((split, file) for file, split in splits.items())
        sources = {split: LazySources(partial(sources_in, chosen)) for split, chosen in files.items()}
        notes = [note for split, chosen in files.items() if (note := _incomplete(split, chosen))]
        return Layout(first.name, root, sources, labels, rule, notes=notes, how_to_add="a file {split}.tfrecord")


def _splits_in(folder: Path) -> dict[Path, str]:
    """The split of each file in a folder, or in records/ or tfrecords/ inside it."""
    places = (folder, *(folder / name for name in _FOLDERS))
    files: dict[Path, tuple[str, str]] = next(filter(None, map(_files_in, places)), {})
    return splits_by_name(files, "records") if files else {}


def splits_by_name(files: Mapping[Path, tuple[str, str]], what: str) -> dict[Path, str]:
    """The split of each file of one dataset: train for all where none is named like a split.

    Args:
        files: with the names of the dataset and the split that each is called by, see `called`.
        what: the files are, for the message.
    Raises:
        UserError: the files are of several datasets.
    """
    datasets = sorted({data for data, split in files.values() if split})
    if len(datasets) > 1:
        raise UserError(
            f"{next(iter(files)).parent} holds {what} of several datasets "
            f"({', '.join(name or '(no name)' for name in datasets)}); give one file: the other splits of its dataset "
            "are found beside it"
        )
    only = not datasets and len({data for data, _ in files.values()}) == 1
    return {file: "train" if only else split or data for file, (data, split) in files.items()}


def _splits_beside(file: Path) -> dict[Path, str]:
    """The split of every file in the dataset to which this file belongs."""
    if not is_record_file(file):
        return {}
    data, own = _parts(file)
    files = _files_in(file.parent)
    splits = {f: split for f, (name, split) in files.items() if name == data and bool(split) == bool(own)}
    if own in ("train", "val", "test"):
        return splits
    return {f: "train" if split == own else split for f, split in splits.items() if split != "train"}


def sources_in(files: Sequence[str | Path]) -> Iterator[Source]:
    """The records of TFRecord files as samples; where a file is damaged, a `BrokenSource` ends its part."""
    for file in map(Path, files):
        try:
            for record in records_in(file):
                yield RecordSource(record)
        except UserError as error:
            yield BrokenSource(file.name, error)


def _files_in(folder: Path) -> dict[Path, tuple[str, str]]:
    """TFRecord files, each with the name of its dataset and its split: ("voc", "train"), ("", "val"), ("cats", "")."""
    if not folder.is_dir():
        return {}
    return {file: _parts(file) for file in sorted(folder.iterdir()) if is_record_file(file) and file.is_file()}


def _parts(file: Path) -> tuple[str, str]:
    return called(without_suffix(file))


def called(name: str) -> tuple[str, str]:
    """The names of the dataset and of the split in that of a file without its ending: "voc_train-0001"."""
    stem = _SHARD.sub("", name)
    match = _SPLIT.fullmatch(stem)
    return (match[1] or "", split_of(match[2])) if match else (stem, "")


def _incomplete(split: str, files: list[Path]) -> str:
    """What the shards' names say about absent ones; "" if none is."""
    counts = [int(match[1]) for file in files if (match := _SHARD.search(without_suffix(file))) and match[1]]
    expected = max(counts, default=0)
    return f"{split}: only {len(files)} of {expected} shards are there" if len(files) < expected else ""
