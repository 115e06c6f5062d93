"""How many pixels of each class every label of a dataset holds; the labels alone are read, and only once."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from degrid.data.dataset import SourceDataset, read_ids
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.source import Source
from degrid.data.formats.survey import SETTLED
from degrid.data.processes import in_order
from degrid.files import kept_on_disk
from degrid.types import IGNORE_INDEX, Bands, Dataset, OnProgress, Progress
from degrid.version import VERSION


def class_counts(dataset: Dataset, progress: OnProgress | None = None) -> np.ndarray:
    """The pixels of each class in each label, and its void pixels in the last column, int64 [N,C+1].

    Files are counted by several processes, and not again before one of them changes its size or time, see
    `degrid.files.kept_on_disk`. What has no file of its own, such as a record of a TFRecord file, is counted each time.

    Args:
        progress: told how many labels have been read.
    Raises:
        UserError: a label cannot be read, or holds an unknown id or colour.
    """
    columns = [*range(len(dataset.labels)), IGNORE_INDEX]

    def count() -> str:
        counts = np.zeros((len(dataset), len(columns)), np.int64)
        for index, pixels in enumerate(_counted(dataset)):
            counts[index] = pixels[columns]
            if progress:
                progress(Progress("counting", index + 1, len(dataset)))
        return base64.b64encode(zlib.compress(counts.tobytes())).decode()

    key = content_key("class_counts", dataset)
    packed = kept_on_disk(key, count) if key else count()
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.int64).reshape(-1, len(columns))


def _counted(dataset: Dataset) -> Iterable[np.ndarray]:
    """The pixels of each train id in each label, [256]."""
    if isinstance(dataset, SourceDataset):
        count = partial(_count_source, rule=dataset.rule, bands=dataset.bands)
        return in_order(count, dataset.sources)
    return (np.bincount(dataset[index].label.numpy().ravel(), minlength=256) for index in range(len(dataset)))


def _count_source(source: Source, rule: MaskRule, bands: Bands) -> np.ndarray:
    counts: np.ndarray = np.bincount(read_ids(source, rule, bands).ravel(), minlength=256)
    return counts


def content_key(what: str, dataset: Dataset) -> list[str]:
    """A key for `degrid.files.kept_on_disk` with all that a dataset's images and labels depend on.

    Empty where files do not tell, or may change without a change of their time.

    Args:
        what: the values that are kept.
    """
    if not isinstance(dataset, SourceDataset):
        return []
    key = [what, VERSION, repr(dataset.rule), repr(dataset.labels), repr(dataset.bands)]
    latest = 0.0
    for source in dataset.sources:
        try:
            found = [Path(place).stat() for place in source.places()]
        except (OSError, ValueError):
            return []
        latest = max(latest, *(file.st_mtime for file in found))
        key.append(f"{source!r} {[(file.st_mtime_ns, file.st_size) for file in found]}")
    return key if time.time() - latest > SETTLED else []
