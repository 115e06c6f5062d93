"""A dataset in, a few large files out: degrid.write_shards, and single TFRecord files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from degrid.arguments import checked
from degrid.data import bands_in, open_dataset, write_tfrecord
from degrid.data.dataset import FOUND, is_by_name, open_layout
from degrid.data.formats.classes import table_in, write_class_table
from degrid.data.shards.index import INDEX, KINDS, Index, read_index, write_index
from degrid.data.shards.write import write_split
from degrid.lookup import unknown
from degrid.types import Dataset, OnProgress, UserError


@checked
def write_shards(
    data: str | Path,
    out: str | Path,
    *,
    kind: str = "tar",
    size: int = 256 << 20,
    splits: Sequence[str] | None = None,
    shuffle: int | None = None,
    progress: OnProgress | None = None,
) -> Index:
    """Write a dataset as shards that `degrid.open_dataset` and training read, as `degrid data shard` does.

    Image files are copied if every reader sees the same pixels in them. Labels hold train ids; 255 is void. Shards
    appear when they are complete, and shards.json, with the classes and counts, last; the same call after an
    interruption continues after the last complete shard.

    Args:
        data: see `degrid.open_dataset`.
        out: the folder; other splits may be there already.
        kind: "tar": tar files of WebDataset with NAME.jpg or .png and NAME.seg.png; "tfrecord": TFRecord files in the
            keys of DeepLabV3-Tensorflow.
        size: bytes of a shard; at least one sample is in each.
        splits: to write; by default all.
        shuffle: a seed: write the images in random order; None: in the order of the dataset, so that training on the
            shards is the same, step by step, as training on the dataset.
        progress: told how many samples of a split are written.
    Returns:
        What the folder holds.
    Raises:
        UserError: an unknown kind; data that cannot be read or do not fit the kind; a folder that holds shards of other
            data or of these splits.
    """
    if kind not in KINDS:
        raise unknown("kind of shards", kind, KINDS)
    if size < 1:
        raise UserError(f"the size of a shard: expected at least 1 byte, got {size}")
    out = Path(out)
    there = read_index(str(out)) if (out / INDEX).exists() else None
    chosen = list(splits or (("train", "val") if is_by_name(data) else open_layout(data).splits))
    if there and (again := [split for split in chosen if split in there.splits]):
        raise UserError(f"{out} holds shards of {', '.join(again)} already; choose another folder, or empty it")
    index = Index(there.labels, dict(there.splits)) if there else None
    for split, dataset in _opened(data, chosen, index):
        table_in(out, dataset.labels)  # before the long work, since others would read the shards with that table
        shards = write_split(dataset, _order(len(dataset), shuffle), str(out), split, kind, size, progress)
        index = Index(dataset.labels, {**(index.splits if index else {}), split: tuple(shards)})
    assert index
    write_index(str(out), index)
    write_class_table(out, index.labels)
    return index


@checked
def write_records(
    data: str | Path,
    out: str | Path,
    split: str = "train",
    *,
    schema: str = "encoded",
    progress: OnProgress | None = None,
) -> tuple[int, Path]:
    """Write a split as one TFRecord file, and its classes as classes.csv beside it, as `degrid data export` does.

    Args:
        data: see `degrid.open_dataset`.
        out: the file.
        schema, progress: see `degrid.data.write_tfrecord`.
    Returns:
        The number of images, and the table of classes.
    Raises:
        UserError: see `degrid.data.write_tfrecord`; or the folder holds a table of other classes.
    """
    dataset, folder = open_dataset(data, split), Path(out).parent
    table_in(folder, dataset.labels)  # before the long work, since the records would be read with that table
    write_tfrecord(dataset, out, schema, progress)
    return len(dataset), write_class_table(folder, dataset.labels)


def _order(count: int, seed: int | None) -> list[int]:
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    found: list[int] = order.tolist()
    return found


def _opened(data: str | Path, splits: Sequence[str], index: Index | None) -> Iterator[tuple[str, Dataset]]:
    """Each split, with the classes and bands of the first."""
    labels, bands = index.labels if index else None, FOUND
    for split in splits:
        dataset = open_dataset(data, split, labels, bands=bands)
        labels, bands = dataset.labels, bands_in(dataset)
        yield split, dataset
