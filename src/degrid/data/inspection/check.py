"""Read a whole dataset: what is wrong with it and how to fix that, and how often each class occurs."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.arguments import checked
from degrid.bands import MixedBandsError
from degrid.data.dataset import FOUND, bands_found, find_layout, is_by_name, open_dataset, repeated
from degrid.data.formats.doubts import check_kinds, doubts
from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import Color, unknown_message
from degrid.data.formats.pairs import Pair
from degrid.data.formats.scan import resolve_classes
from degrid.data.formats.source import BrokenSource, LazySources, Source
from degrid.data.formats.values import MOST_VALUES, LabelValues, Survey, total
from degrid.data.inspection.reading import Reader, Reading
from degrid.data.processes import kept_processes
from degrid.lookup import counted
from degrid.types import IGNORE_INDEX, Bands, Dataset, LabelSpace, OnProgress, Progress, UserError


@dataclass
class SplitReport:
    """Counts of one split. sizes: "WIDTHxHEIGHT" -> images; class_pixels, class_images: one number per class."""

    num_images: int
    sizes: dict[str, int]
    class_pixels: list[int]
    class_images: list[int]
    void_pixels: int

    @classmethod
    def empty(cls, num_images: int, labels: LabelSpace) -> SplitReport:
        """Nothing counted yet."""
        return cls(num_images, {}, [0] * len(labels), [0] * len(labels), 0)

    def count_size(self, height: int, width: int) -> None:
        """Add one image."""
        size = f"{width}x{height}"
        self.sizes[size] = self.sizes.get(size, 0) + 1

    def count_label(self, ids: np.ndarray) -> None:
        """Add one label, train ids uint8 [H,W]."""
        self.count_pixels(np.bincount(ids.ravel(), minlength=256))

    def count_pixels(self, counts: np.ndarray) -> None:
        """Add one label: the pixels of each train id, [256]."""
        self.void_pixels += int(counts[IGNORE_INDEX])
        for index in range(len(self.class_pixels)):
            self.class_pixels[index] += int(counts[index])
            self.class_images[index] += bool(counts[index])


@dataclass
class DataReport:
    """What `check_data` found.

    Attributes:
        path: as it was given.
        kind, reason: the format of the dataset, and how it was recognised.
        classes: their names.
        splits: what was counted.
        problems: one sentence each, with the fix.
        notes: decisions made on the user's behalf, and what may surprise them.
        unknown: value that belongs to no class -> (masks, pixels); the first 4096 of them.
    """

    path: str
    kind: str
    classes: list[str]
    splits: dict[str, SplitReport]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reason: str = ""
    unknown: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        lines = [f"{self.path}: {self.kind}{reason}, {counted(len(self.classes), 'class')}"]
        for name, split in self.splits.items():
            sizes = Counter(split.sizes).most_common(3)
            shown = ", ".join(f"{size} ({count})" for size, count in sizes)
            more = f" and {counted(len(split.sizes) - 3, 'other size')}" if len(split.sizes) > 3 else ""
            lines.append(f"{name}: {counted(split.num_images, 'image')}; {shown}{more}")
        lines += self._histogram()
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append(self._verdict())
        return "\n".join(lines)

    def _verdict(self) -> str:
        if not self.ok:
            return f"{counted(len(self.problems), 'problem')} found"
        there = ", ".join(self.splits)
        return (
            "ready to train on" if "train" in self.splits else f'fine, but without a split "train"; there is: {there}'
        )

    def _histogram(self) -> list[str]:
        """A table of the percentage of pixels and the number of images per class and split.

        Of many classes those without a pixel are left out if they are most: a note lists some of them.
        """
        width = max([len(name) for name in self.classes] + [4])
        lines = [f"{'class':<{width + 5}}" + "".join(f"{f'{name} %':>12}{'images':>8}" for name in self.splits)]
        there = [index for index in range(len(self.classes)) if self._has_pixels(index)]
        shown = range(len(self.classes)) if len(self.classes) <= max(_MOST_ROWS, 2 * len(there)) else there
        for index, name in [*((index, self.classes[index]) for index in shown), (IGNORE_INDEX, "void")]:
            cells = []
            for split in self.splits.values():
                total = max(1, sum(split.class_pixels) + split.void_pixels)
                void = index == IGNORE_INDEX
                pixels = split.void_pixels if void else split.class_pixels[index]
                cells.append(f"{100 * pixels / total:>12.2f}{'' if void else split.class_images[index]:>8}")
            lines.append(f"{index:>3}  {name:<{width}}" + "".join(cells))
        return lines

    def _has_pixels(self, index: int) -> bool:
        return any(split.class_pixels[index] for split in self.splits.values())


# Number of classes up to which all are listed, even if most are empty.
_MOST_ROWS = 40


class _Findings:
    """Problems and notes grouped by kind, so that a thousand of one kind make a single sentence."""

    def __init__(self) -> None:
        self._numbers: Counter[tuple[bool, str]] = Counter()
        self._examples: dict[tuple[bool, str], list[str]] = {}

    def add(self, kind: str, example: str, problem: bool = True) -> None:
        self._numbers[problem, kind] += 1
        examples = self._examples.setdefault((problem, kind), [])
        if len(examples) < 3:
            examples.append(example)

    def sentences(self, problem: bool) -> list[str]:
        return [
            f"{_numbered(number, kind)}: {'; '.join(self._examples[is_problem, kind])}{'; ...' if number > 3 else ''}"
            for (is_problem, kind), number in self._numbers.items()
            if is_problem == problem
        ]


def _numbered(number: int, kind: str) -> str:
    """ "1 mask that is all void", "2 masks that are all void"."""
    if number != 1:
        return f"{number} {kind}"
    one = re.sub(r"\b(class|dataset|file|image|mask|name|record|sample|split)e?s\b", r"\1", kind, count=1)
    return "1 " + re.sub(r"(?<= that )(are|come|call|break|do)\b", lambda verb: _ONE_DOES[verb[0]], one, count=1)


_ONE_DOES = {"are": "is", "come": "comes", "call": "calls", "break": "breaks", "do": "does"}


@checked
def check_data(
    path: str | Path,
    progress: OnProgress | None = None,
    *,
    processes: int | None = None,
    accept: Sequence[str] = (),
) -> DataReport:
    """Read every image and label of a dataset and report what is wrong.

    Finds images without a mask and masks without an image, damaged files, masks that differ in size from their image,
    JPEG masks, unknown ids and colours, classes without a pixel, masks that are all void or all one class, duplicate
    names, and images that occur in two splits.

    Args:
        path: whatever `degrid.open_dataset` takes.
        progress: told how many samples have been read.
        processes: how many read; None: one per core if there is enough to read. The report does not depend on it.
        accept: kinds of doubts that are not problems; see `degrid.data.formats.doubts`.
    Raises:
        UserError: the dataset does not exist or its format is not recognised.
    """
    check_kinds(accept, "accept")
    if is_by_name(path):
        return _check_samples(str(path), progress)
    with kept_processes():
        return _check_files(path, progress, processes, accept)


def _check_files(
    path: str | Path, progress: OnProgress | None, processes: int | None, accept: Sequence[str]
) -> DataReport:
    layout = find_layout(path)
    _leave_images_alone(layout)
    sources = _all_sources(layout)
    try:
        bands, notes = bands_found(sources, FOUND)
    except MixedBandsError as error:  # the others are listed among the problems
        bands, notes = Bands(error.commonest, "file"), []
    reader = Reader(len(sources), bands, processes, progress)
    layout = resolve_classes(layout, reader.values)
    layout.notes += notes
    tally = _Tally(layout)
    readings = reader.readings(_all_sources(layout))
    for split, found in layout.splits.items():
        broken = sum(isinstance(source, BrokenSource) for source in found)
        tally.splits[split] = SplitReport.empty(len(found) - broken, tally.labels)
        clashes, again = repeated(found)
        for name in clashes:
            tally.findings.add(f"names of different samples in {split} (rename or remove one of each)", name)
        for name in again:
            tally.findings.add(f"images that are repeated in {split}", name, problem=False)
        if not len(found):
            tally.findings.add("splits without images (add some, or remove the split)", split)
        for reading in itertools.islice(readings, len(found)):
            tally.add(reading, split)
    report = _report(str(path), layout, tally.splits, tally.findings)
    left = [doubt for doubt in doubts(layout, tally.surveys, tally.seen) if doubt.kind not in accept]
    report.problems += [doubt.sentence for doubt in left]
    if not any(doubt.kind == "splits-overlap" for doubt in left):
        report.notes += tally.copies.sentences(problem=False)
    _report_unknown(report, tally)
    return report


def _leave_images_alone(layout: Layout) -> None:
    """Leave a split "test" out where it holds images without a single mask, as many lists do."""
    found = layout.splits.get("test", [])
    alone = [] if isinstance(found, LazySources) else found
    without = [isinstance(each, Pair) and each.missing() == "label" for each in alone]
    if len(layout.splits) > 1 and without and all(without):
        layout.splits = {split: sources for split, sources in layout.splits.items() if split != "test"}
        layout.notes.append(
            f"{counted(len(alone), 'image')} of test without masks: left out, since nothing can be scored"
        )


def _all_sources(layout: Layout) -> list[Source]:
    return [source for sources in layout.splits.values() for source in sources]


def _report_unknown(report: DataReport, tally: _Tally) -> None:
    report.unknown = {str(value): (masks, tally.pixels[value]) for value, masks in tally.masks.most_common()}
    if report.unknown:
        rows = [
            f"{value} ({counted(masks, 'mask')}, {counted(pixels, 'pixel')})"
            for value, (masks, pixels) in report.unknown.items()
        ]
        others = f"; {counted(tally.beyond, 'pixel')} of further ones" if tally.beyond else ""
        listed = sorted(total(tally.surveys).ids)
        if len(listed) != len(tally.labels):  # 255 is void, unless it is that of a class
            listed = [value for value in listed if value != IGNORE_INDEX]
        if len(listed) == len(tally.labels) and not tally.rule.exact:
            others += (
                f'; if the values in the masks are those of the classes in order, write "ids: {listed}" in dataset.yaml'
            )
        report.notes.append(f"values without a class: {', '.join(rows[:20])}{', ..' if len(rows) > 20 else ''}{others}")


def _check_samples(name: str, progress: OnProgress | None) -> DataReport:
    """Check a dataset that yields samples but has no sources."""
    from degrid.data.inspection.promises import check_promises  # imported here: files are checked without torch

    datasets: dict[str, Dataset] = {"train": open_dataset(name, "train")}
    for split in ("val", "test"):
        with contextlib.suppress(UserError):  # a user's own dataset need not have them
            datasets[split] = open_dataset(name, split)
    findings, splits = _Findings(), {}
    number, done = sum(map(len, datasets.values())), 0
    for split, dataset in datasets.items():
        splits[split] = SplitReport.empty(len(dataset), datasets["train"].labels)
        try:
            check_promises(dataset)
            for index in range(len(dataset)):
                label = dataset[index].label
                splits[split].count_size(*label.shape)
                splits[split].count_label(label.numpy())
                done += 1
                if progress:
                    progress(Progress("checking", done, number))
        except UserError as error:
            findings.add("datasets that break a promise (see degrid.types.Dataset)", f"{split}: {error}")
    layout = Layout("", Path(), {}, datasets["train"].labels, kind="dataset")
    return _report(name, layout, splits, findings)


def _report(path: str, layout: Layout, splits: dict[str, SplitReport], findings: _Findings) -> DataReport:
    names = layout.labels.names if layout.labels else ()
    for index, name in enumerate(names):
        if not any(report.class_pixels[index] for report in splits.values()):
            findings.add("classes without a single pixel (is the list of classes right?)", f"{index} {name}", False)
        elif "train" in splits and not splits["train"].class_pixels[index]:
            findings.add("classes that are not in train (and so never learned)", f"{index} {name}", False)
    notes = layout.notes + findings.sentences(problem=False)
    return DataReport(path, layout.kind, list(names), splits, findings.sentences(problem=True), notes, layout.reason)


class _Tally:
    """Counts and findings of a whole dataset, out of the readings of its samples in order.

    masks, pixels: the number of masks and pixels with each unknown value, of `MOST_VALUES` at most.
    beyond: pixels of further unknown values.
    copies: images that are in two splits.
    seen: how each image of each split looks.
    """

    def __init__(self, layout: Layout) -> None:
        assert layout.labels is not None
        assert layout.rule is not None
        self.rule, self.labels = layout.rule, layout.labels
        self.splits: dict[str, SplitReport] = {}
        self.findings, self.copies = _Findings(), _Findings()
        self.surveys: dict[str, Survey] = {}
        self.seen: dict[str, list[bytes]] = {}
        self.masks: Counter[int | Color] = Counter()
        self.pixels: Counter[int | Color] = Counter()
        self.beyond = 0
        self._first: dict[bytes, tuple[str, str]] = {}

    def add(self, reading: Reading, split: str) -> None:
        """Count one sample."""
        self.seen.setdefault(split, []).append(reading.look)
        for kind, example in reading.faults:
            self.findings.add(kind, example)
        for kind, example in reading.remarks:
            self.findings.add(kind, example, problem=False)
        if reading.digest:
            self._check_twice(reading.digest, reading.name, split)
        if reading.size:
            self.splits[split].count_size(*reading.size)
        if reading.label is not None and reading.fits:
            self._label(reading.label_place, split, reading.label)
            self.surveys.setdefault(split, Survey()).add(reading.label, reading.label_place)

    def _label(self, place: str, split: str, label: LabelValues) -> None:
        counts, unknown = label.by_class(self.rule)
        self.splits[split].count_pixels(counts)
        for value, pixels in unknown.items():
            if value in self.masks or len(self.masks) < MOST_VALUES:
                self.masks[value] += 1
                self.pixels[value] += pixels
            else:
                self.beyond += pixels
        present = np.flatnonzero(counts)
        if unknown:
            held = label.values.ravel().tolist()
            self.findings.add("masks with unknown values", unknown_message(place, unknown, self.rule, held))
        elif present.tolist() == [IGNORE_INDEX]:
            self.findings.add("masks that are all void (they teach nothing)", place, problem=False)
        elif len(present) == 1 and len(self.labels) > 1:
            name = self.labels.names[int(present[0])]
            self.findings.add("masks that are entirely one class", f"{place} ({name})", problem=False)

    def _check_twice(self, digest: bytes, name: str, split: str) -> None:
        """Look for duplicates. The doubts decide whether those in two splits are a problem."""
        first = self._first.setdefault(digest, (split, name))
        if first[0] != split:
            self.copies.add(f"images of {split} that are in {first[0]} too", f"{name} = {first[1]}", problem=False)
        elif first[1] != name:
            self.findings.add("images that are in one split twice", f"{name} = {first[1]}", problem=False)
