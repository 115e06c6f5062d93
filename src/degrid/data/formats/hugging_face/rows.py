"""The samples of a Hugging Face dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from degrid.data.formats.hugging_face.columns import is_image
from degrid.data.formats.masks import AS_STORED, MaskReading
from degrid.data.formats.packed import as_file, npy
from degrid.data.formats.pairs import Pair
from degrid.data.formats.source import Source
from degrid.types import UserError

_BEGINNINGS = {b"\xff\xd8": ".jpg", b"II": ".tif", b"MM": ".tif", b"GIF": ".gif"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row(Source):
    """A sample in a dataset of Hugging Face.

    Attributes:
        rows: gives cells by index and column; images are not decoded.
        index: of the row.
        columns: of images and masks.
        place: what messages call the row.
        lacks: "image" or "label", if the row has none.
        how: the mask is read.
    """

    name: str
    rows: Any
    index: int
    columns: tuple[str, str]
    place: str
    lacks: str = ""
    how: MaskReading = AS_STORED
    unreadable: ClassVar[str] = ""

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        return self._with_file("image", lambda file: Pair(self.name, file, None).read_image(size))

    def read_values(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        return self._with_file("image", lambda file: Pair(self.name, file, None).read_values(size))

    def is_plain(self) -> bool:
        """See `Source`."""
        return self.lacks == "image" or self._with_file("image", lambda file: Pair(self.name, file, None).is_plain())

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        return self._with_file("mask", lambda file: self._pair(file).read_label())

    def palette(self) -> np.ndarray | None:
        """See `Source`."""
        return self._with_file("mask", lambda file: self._pair(file).palette())

    def reading(self, how: MaskReading) -> Row:
        """See `Source`."""
        return dataclasses.replace(self, how=how)

    def places(self) -> tuple[str, str]:
        """See `Source`."""
        return f"{self.place}, image", "" if self.lacks == "label" else f"{self.place}, mask"

    def missing(self) -> str:
        """See `Source`."""
        return self.lacks

    def image_file(self) -> bytes:
        """See `Source`."""
        return b"" if self.lacks == "image" else self._with_file("image", Path.read_bytes)

    def _pair(self, mask: Path) -> Pair:
        return Pair(self.name, mask, mask, how=self.how)

    def _with_file(self, part: str, read: Callable[[Path], Result]) -> Result:
        """The result of `read` for the image or mask as a file; messages name the row."""
        place = f"{self.place}, {part}"
        if self.lacks == ("label" if part == "mask" else part):
            raise UserError(f"{place}: there is none; degrid data check lists all such rows")
        with _as_file(self.rows[self.index][self.columns[part == "mask"]], place) as file:
            try:
                return read(file)
            except UserError as error:
                error.args = (str(error).replace(str(file), place),)
                raise


@contextlib.contextmanager
def _as_file(value: Any, place: str) -> Iterator[Path]:
    """A cell of a table as a file, so that it is read as any other; it lasts as long as the context."""
    if isinstance(value, Mapping) and value.get("bytes") is None and os.path.isfile(value.get("path") or ""):
        yield Path(value["path"])
        return
    if not isinstance(value, Mapping):
        data, suffix = npy(np.asarray(value)), ".npy"
    elif value.get("bytes") is None:
        raise UserError(f"{place}: no such image: {value.get('path')}")
    else:
        data = value["bytes"]
        suffix = next((suffix for start, suffix in _BEGINNINGS.items() if data.startswith(start)), ".png")
    with as_file(data, suffix) as file:
        yield file


def rows_of(data: Any, columns: tuple[str, str], place: str, split: str, first: int | None) -> list[Row]:
    """The rows of a split.

    Args:
        data: a `Dataset`; an `IterableDataset`, if it is streamed.
        columns: of images and masks.
        place: what messages call the dataset.
        first: how many rows to fetch, if it is streamed; else None.
    """
    import datasets

    for column in columns:
        if is_image(data.features[column]):
            data = data.cast_column(column, datasets.Image(decode=False))
    data = data.select_columns(list(columns))

    def row(index: int, rows: Any, at: int, lacks: str) -> Row:
        return Row(f"{split}/{index:06d}", rows, at, columns, f"{place}, {split}[{index}]", lacks)

    if first is not None:
        # Each sample holds its own row, so that a process is sent no more than it reads.
        values = [[_fetched(each[column]) for column in columns] for each in itertools.islice(data, first)]
        return [
            row(index, [dict(zip(columns, each, strict=True))], 0, _lacking(each[0] is None, each[1] is None))
            for index, each in enumerate(values)
        ]
    data = data.with_format(None)
    no_image, no_mask = (_empty_cells(data, column) for column in columns)
    return [row(index, data, index, _lacking(index in no_image, index in no_mask)) for index in range(len(data))]


def _lacking(no_image: bool, no_mask: bool) -> str:
    return "image" if no_image else "label" if no_mask else ""


def _fetched(value: Any) -> Any:
    """A streamed cell, with the bytes of a file stored elsewhere; None for an empty one."""
    if not isinstance(value, Mapping) or value.get("bytes") is not None:
        return value
    if not value.get("path"):
        return None
    import fsspec

    with fsspec.open(value["path"], "rb") as stream:
        return {**value, "bytes": stream.read()}


def _empty_cells(data: Any, column: str) -> set[int]:
    """The rows without a value; none of the values is read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = data.select_columns([column]).with_format("arrow")[:].column(column)
    empty = pc.is_null(cells)
    if pa.types.is_struct(cells.type):
        parts = [pc.is_null(pc.struct_field(cells, name)) for name in ("bytes", "path")]
        empty = pc.or_(empty, pc.and_(*parts))
    return set(np.flatnonzero(empty.to_numpy()).tolist())
