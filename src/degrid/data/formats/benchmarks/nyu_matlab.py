"""NYU Depth v2 as it is distributed: one MATLAB file with all images, and the files that group its 894 classes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import divided, with_val
from degrid.data.formats.read_array import read_matlab
from degrid.data.formats.source import Source
from degrid.files import blaming
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

MATLAB = "nyu_depth_v2_labeled.mat"
_LISTS = {"train": "trainNdxs", "test": "testNdxs"}


def read_nyu(file: Path) -> Layout:
    """nyu_depth_v2_labeled.mat with classMapping40.mat (or 13) and, if the splits are wanted, splits.mat beside it.

    The mapping holds mapClass, the class from 1 on of each of the 894, and className; 0, not labelled, is void. Follows
    the description on the page of the data set; the file is of MATLAB's version 7.3, which is HDF5.

    Raises:
        UserError: the mapping, or a library that reads these files, is missing; or a file is of another form.
    """
    tables = sorted(file.parent.glob("classMapping*.mat"))
    if len(tables) != 1:
        raise UserError(
            f"{file} has 894 classes, and degrid has at most 255: put one table that groups them beside it, "
            f"classMapping40.mat (mapClass and className); there are {len(tables)}"
        )
    mapping = read_matlab(tables[0])
    with blaming(f"{tables[0]}: expected mapClass and className"):
        names = [str(np.asarray(name).ravel()[0]) for name in mapping["className"].ravel()]
        classes = tuple(int(number) for number in mapping["mapClass"].ravel())
    if not all(0 <= number <= len(names) for number in classes):
        raise UserError(f"{tables[0]}: expected classes from 0 to {len(names)}, got up to {max(classes)}")
    labels = LabelSpace(tuple(names), voc_palette(len(names) + 1)[1:])
    trains = tuple(IGNORE_INDEX if number == 0 else number - 1 for number in (0, *classes))
    with _opened(file) as data:
        count = int(data["images"].shape[0])
    samples: list[Source] = [Frame(f"{index + 1:04d}", file, index, trains) for index in range(count)]
    splits, notes = divided(samples)
    if (file.parent / "splits.mat").is_file():
        lists = read_matlab(file.parent / "splits.mat")
        chosen = {split: [samples[int(k) - 1] for k in lists[name].ravel()] for split, name in _LISTS.items()}
        splits, notes = with_val(chosen)
    rule = MaskRule.plain(labels, said=tables[0].name)
    return Layout(f"{file.name} and {tables[0].name}", file.parent, splits, labels, rule, notes=notes)


@dataclass(frozen=True)
class Frame(Source):
    """One image of the file.

    Attributes:
        file: of all images.
        index: from 0.
        trains: the train id of each value in the labels.
    """

    name: str
    file: Path
    index: int
    trains: tuple[int, ...] = field(repr=False)

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        with _opened(self.file) as data:
            return np.ascontiguousarray(np.transpose(data["images"][self.index]))  # MATLAB's order is the reverse

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        with _opened(self.file) as data:
            values = np.transpose(data["labels"][self.index])
        if values.max(initial=0) >= len(self.trains):
            raise UserError(f"{self.file}: image {self.name} has the class {values.max()} of {len(self.trains) - 1}")
        label: np.ndarray = np.array(self.trains, np.uint8)[values]
        return label

    def places(self) -> tuple[str, str]:
        """See `Source`."""
        return f"{self.file}:{self.name}", f"{self.file}:{self.name}"


def _opened(file: Path) -> Any:
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise UserError(f"{file} is of MATLAB's version 7.3, which is read with h5py: pip install h5py") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise UserError(f"{file} is damaged or cut short: {error}") from error
