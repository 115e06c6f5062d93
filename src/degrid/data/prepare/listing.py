"""What all benchmarks share: labels as palette PNGs, lists, the table of classes, and a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from degrid.data.formats.classes import class_table, write_class_table
from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.read_mask import read_mask
from degrid.files import atomic_write, write_text
from degrid.image import palette_image
from degrid.lookup import counted
from degrid.types import LabelSpace, OnProgress, Progress, UserError

WORK = "making labels"
"""The task that progress is reported for."""


class ListWriter:
    """Writes the list files of one benchmark, and reports what was found.

    Args:
        root: the folder that the leading slash of the lists' paths stands for.
        labels: the classes.
        expected: images per published split.
        folder: where lists and classes.csv are written: `root`, or a folder below it.
    Attributes:
        report: one line per finding. Lines on what is missing or differs from what was expected begin with "warning: ".
    """

    def __init__(self, root: Path, labels: LabelSpace, expected: Mapping[str, int], folder: Path | None = None) -> None:
        self.root, self.labels, self.expected, self.folder = root, labels, expected, folder or root
        self.report: list[str] = []
        self._written: list[str] = []
        self._usable: set[str] = set()

    def warn(self, what: str, files: Sequence[Path], noun: str = "image", verb: str = "have") -> None:
        """Report how many files a statement applies to, with an example; does nothing without files.

        Args:
            what: the statement, with {} in place of number, noun and verb, see `counted`.
        """
        if files:
            found = what.format(counted(len(files), noun, verb))
            self.report.append(f"warning: {found}, {files[0] if len(files) == 1 else f'{files[0]} among them'}")

    def write(self, split: str, pairs: Iterable[tuple[Path, Path | None]]) -> None:
        """Write a split's list; report its length, the length expected, and files that are not there."""
        rows = [[file for file in pair if file] for pair in pairs]
        expected = f", expected {self.expected[split]:,}" if split in self.expected else ""
        if not rows:
            self.report.append(f"warning: {split}.txt is not written: found no images{expected}")
            return
        lines = (" ".join(f"/{file.relative_to(self.root).as_posix()}" for file in row) for row in rows)
        write_text(self.folder / f"{split}.txt", "".join(f"{line}\n" for line in lines))
        self._written.append(f"{split}.txt")
        found = f"{self.folder / f'{split}.txt'}: found {counted(len(rows), 'image')}{expected}"
        as_expected = len(rows) == self.expected.get(split, len(rows))
        self.report.append(found if as_expected else f"warning: {found}")
        lost = [file for row in rows for file in row if not file.is_file()]
        self.warn(f"{split}.txt: {{}} not there", lost, "file", "are")
        if not lost:
            self._usable.add(split)

    def finish(self) -> list[str]:
        """Write classes.csv unless a table of classes exists, and return the report.

        The report's last line says what was written, and how to train on it.

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


def write_train_ids(
    targets: Mapping[Path, Path],
    rule: MaskRule,
    labels: LabelSpace,
    on_unknown: Callable[[Path, np.ndarray, dict[int | Color, int]], None],
    progress: OnProgress | None,
) -> int:
    """Write labels as train ids. Existing targets are kept, so that an interrupted run can be continued.

    Args:
        targets: for each label file, the file to write its train ids to.
        rule: from the values in the files to train ids.
        on_unknown: called with a label file, its train ids, and the values that the rule lacks with their pixel counts.
    Returns:
        How many were written.
    Raises:
        UserError: a label is damaged, or the place cannot be written to.
    """
    todo = {source: target for source, target in targets.items() if not target.exists()}
    for done, (source, target) in enumerate(todo.items(), 1):
        ids, unknown = rule.apply(read_mask(source))
        if unknown:
            on_unknown(source, ids, unknown)
        save_ids(ids, target, labels)
        if progress:
            progress(Progress(WORK, done, len(todo)))
    return len(todo)


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
    """Write class ids, uint8 [H,W], as a PNG whose values are the ids and whose palette has the classes' colours.

    Raises:
        UserError: the place cannot be written to.
    """
    with atomic_write(file) as temporary:
        palette_image(np.ascontiguousarray(ids, np.uint8), labels).save(temporary, format="PNG")
