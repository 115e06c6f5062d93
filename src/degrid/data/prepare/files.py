"""What preparing any benchmark takes: labels as palette PNGs, lists, the table of classes, and the count of it all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from degrid.data.formats.classes import class_table, write_class_table
from degrid.files import atomic_write, write_text
from degrid.image import palette_image
from degrid.types import LabelSpace, UserError

OnImage = Callable[[int, int], None]
"""Called with (done, total) for each label made."""


class Lists:
    """The lists of one benchmark: written, counted, and what there is to say about them.

    report: one line per finding; those on what is missing, or is more or less than expected, begin with "warning: ".

    Args:
        root: where the leading slash of the lists' paths points.
        labels: the classes.
        expected: images per published split.
        folder: where lists and classes.csv come to lie: `root`, or a folder below it.
    """

    def __init__(self, root: Path, labels: LabelSpace, expected: Mapping[str, int], folder: Path | None = None) -> None:
        self.root, self.labels, self.expected, self.folder = root, labels, expected, folder or root
        self.report: list[str] = []
        self._written: list[str] = []
        self._usable: set[str] = set()

    def write(self, split: str, pairs: Iterable[tuple[Path, Path | None]]) -> None:
        """Write a split's list; note how many lines it has, how many were expected, and whether the files are there."""
        rows = [[file for file in pair if file] for pair in pairs]
        expected = f", expected {self.expected[split]:,}" if split in self.expected else ""
        if not rows:
            self.report.append(f"warning: {split}.txt is not written: found no images{expected}")
            return
        lines = (" ".join(f"/{file.relative_to(self.root).as_posix()}" for file in row) for row in rows)
        write_text(self.folder / f"{split}.txt", "".join(f"{line}\n" for line in lines))
        self._written.append(f"{split}.txt")
        found = f"{self.folder / f'{split}.txt'}: found {len(rows):,} images{expected}"
        as_expected = len(rows) == self.expected.get(split, len(rows))
        self.report.append(found if as_expected else f"warning: {found}")
        lost = [file for row in rows for file in row if not file.is_file()]
        if lost:
            self.report.append(
                f"warning: {split}.txt names {len(lost):,} files that are not there, {lost[0]} among them"
            )
        else:
            self._usable.add(split)

    def finish(self) -> list[str]:
        """Name the classes for who opens the lists; a table that is there stays. Then the last line.

        Returns:
            The report. Its last line says what was written, and how to train on it.
        Raises:
            UserError: the place cannot be written to.
        """
        if self._written and class_table(self.folder)[0] is None:
            table = write_class_table(self.folder, self.labels)
            self.report.append(f"classes: {table}")
            self._written.append(table.name)
        ready = {"train", "val"} <= self._usable
        then = train_line(self.folder / "train.txt") if ready else "not ready to train on: see the warnings"
        what = f"written to {self.folder}: {', '.join(self._written)}" if self._written else "nothing written"
        self.report.append(f"{what}; {then}")
        return self.report


def train_line(data: Path) -> str:
    """The command that trains on what was prepared."""
    return f"train on it: degrid train --data {shlex.quote(str(data))}"


def folder_at(path: str | Path) -> Path:
    """The folder that the user named.

    Raises:
        UserError: there is none.
    """
    if not Path(path).is_dir():
        raise UserError(f"no folder at {path}")
    return Path(path)


def save_ids(ids: np.ndarray, file: Path, labels: LabelSpace) -> None:
    """Write class ids, uint8 [H,W], as a PNG: the values are the ids, the palette shows the classes' colours.

    Raises:
        UserError: the place cannot be written to.
    """
    with atomic_write(file) as temporary:
        palette_image(np.ascontiguousarray(ids, np.uint8), labels).save(temporary, format="PNG")
