"""Read a whole dataset: what is wrong with it and how to fix that, and how often each class occurs."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.dataset import is_by_name, open_dataset, open_layout
from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import Color, unknown_message
from degrid.data.formats.read_array import UnusableMaskError
from degrid.data.formats.read_mask import LossyMaskError
from degrid.data.formats.source import BrokenSource, Source
from degrid.data.inspection.promises import check_promises
from degrid.image import UnreadKindError
from degrid.types import IGNORE_INDEX, Dataset, LabelSpace, OnProgress, Progress, UserError

# The highest value, of 255, of images that are nearly black: what 14 bits give in a file of 16.
_DIM = 64
_NEARLY_BLACK = (
    "images that are nearly black: of 0 to 255 they use few values (grey of 10 to 14 bits in a 16-bit file is read as "
    "16 bits: stretch it to 0-65535)"
)


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

    def count_label(self, ids: np.ndarray) -> int:
        """Add one label, uint8 [H,W]; returns its number of distinct values, void included."""
        counts = np.bincount(ids.ravel(), minlength=256)
        self.void_pixels += int(counts[IGNORE_INDEX])
        for index in range(len(self.class_pixels)):
            self.class_pixels[index] += int(counts[index])
            self.class_images[index] += bool(counts[index])
        return int(np.count_nonzero(counts))


def class_pixels(dataset: Dataset, progress: OnProgress | None = None) -> SplitReport:
    """Read each sample once and count the pixels and images of every class, void pixels, and image sizes.

    Args:
        progress: told how many samples have been read.
    Raises:
        UserError: a sample cannot be read.
    """
    report = SplitReport.empty(len(dataset), dataset.labels)
    for index in range(len(dataset)):
        label = dataset[index].label
        report.count_size(*label.shape)
        report.count_label(label.numpy())
        if progress:
            progress(Progress("counting", index + 1, len(dataset)))
    return report


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
        unknown: value that belongs to no class -> (masks, pixels).
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
        lines = [f"{self.path}: {self.kind}{reason}, {len(self.classes)} classes"]
        for name, split in self.splits.items():
            sizes = Counter(split.sizes).most_common(3)
            shown = ", ".join(f"{size} ({count})" for size, count in sizes)
            more = f" and {len(split.sizes) - 3} other sizes" if len(split.sizes) > 3 else ""
            lines.append(f"{name}: {split.num_images} images; {shown}{more}")
        lines += self._histogram()
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append("ready to train on" if self.ok else f"{len(self.problems)} problems found")
        return "\n".join(lines)

    def _histogram(self) -> list[str]:
        """A table of the percentage of pixels and the number of images per class and split."""
        width = max([len(name) for name in self.classes] + [4])
        lines = [f"{'class':<{width + 5}}" + "".join(f"{f'{name} %':>12}{'images':>8}" for name in self.splits)]
        for index, name in [*enumerate(self.classes), (IGNORE_INDEX, "void")]:
            cells = []
            for split in self.splits.values():
                total = max(1, sum(split.class_pixels) + split.void_pixels)
                void = index == IGNORE_INDEX
                pixels = split.void_pixels if void else split.class_pixels[index]
                cells.append(f"{100 * pixels / total:>12.2f}{'' if void else split.class_images[index]:>8}")
            lines.append(f"{index:>3}  {name:<{width}}" + "".join(cells))
        return lines


class _Findings:
    """Problems and notes grouped by kind, so that a thousand alike make one sentence."""

    def __init__(self) -> None:
        self._examples: dict[tuple[bool, str], list[str]] = {}

    def add(self, kind: str, example: object, problem: bool = True) -> None:
        self._examples.setdefault((problem, kind), []).append(str(example))

    def sentences(self, problem: bool) -> list[str]:
        return [
            f"{len(examples)} {kind}: {'; '.join(examples[:3])}{'; ...' if len(examples) > 3 else ''}"
            for (is_problem, kind), examples in self._examples.items()
            if is_problem == problem
        ]


def check_data(path: str | Path, progress: OnProgress | None = None) -> DataReport:
    """Read every image and label of a dataset and report what is wrong.

    Finds images without a mask and masks without an image, damaged files, masks that differ in size from their image,
    JPEG masks, unknown ids and colours, classes without a pixel, masks that are all void or all one class, duplicate
    names, and images that occur in two splits.

    Args:
        path: whatever `degrid.open_dataset` takes.
        progress: told how many samples have been read.
    Raises:
        UserError: the dataset does not exist or its format is not recognised.
    """
    if is_by_name(path):
        return _check_samples(str(path), progress)
    layout = open_layout(path)
    assert layout.labels is not None
    check = _SourceCheck(layout, layout.labels)
    total, done = sum(map(len, layout.splits.values())), 0
    for split, sources in layout.splits.items():
        broken = sum(isinstance(source, BrokenSource) for source in sources)
        check.splits[split] = SplitReport.empty(len(sources) - broken, layout.labels)
        if not len(sources):
            check.findings.add("splits without an image (add images, or take the split away)", split)
        for source in sources:
            check.source(source, split)
            done += 1
            if progress:
                progress(Progress("checking", done, total))
    for orphan in layout.orphans:
        check.findings.add("masks without an image (remove them, or add the images)", orphan)
    report = _report(str(path), layout, check.splits, check.findings)
    report.unknown = {str(value): (masks, check.pixels[value]) for value, masks in check.masks.most_common()}
    if report.unknown:
        rows = [f"{value} ({masks} masks, {pixels} pixels)" for value, (masks, pixels) in report.unknown.items()]
        report.notes.append(f"values without a class: {', '.join(rows[:20])}{', ..' if len(rows) > 20 else ''}")
    return report


def _check_samples(name: str, progress: OnProgress | None) -> DataReport:
    """Check a dataset that yields samples but has no sources."""
    datasets: dict[str, Dataset] = {"train": open_dataset(name, "train")}
    for split in ("val", "test"):
        with contextlib.suppress(UserError):  # a user's own dataset need not have them
            datasets[split] = open_dataset(name, split)
    findings, splits = _Findings(), {}
    total, done = sum(map(len, datasets.values())), 0
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
                    progress(Progress("checking", done, total))
        except UserError as error:
            findings.add("datasets that break a promise (see degrid.types.Dataset)", f"{split}: {error}")
    layout = Layout("", Path(), {}, datasets["train"].labels, kind="dataset")
    return _report(name, layout, splits, findings)


def _report(path: str, layout: Layout, splits: dict[str, SplitReport], findings: _Findings) -> DataReport:
    names = layout.labels.names if layout.labels else ()
    for index, name in enumerate(names):
        if not any(report.class_pixels[index] for report in splits.values()):
            findings.add("classes without a single pixel (is the list of classes right?)", f"{index} {name}", False)
    notes = layout.notes + findings.sentences(problem=False)
    return DataReport(path, layout.kind, list(names), splits, findings.sentences(problem=True), notes, layout.reason)


class _SourceCheck:
    """Counts and findings while the sources of a dataset are read.

    masks, pixels: the number of masks and pixels with each unknown value.
    """

    def __init__(self, layout: Layout, labels: LabelSpace) -> None:
        assert layout.rule is not None
        self.rule, self.labels = layout.rule, labels
        self.splits: dict[str, SplitReport] = {}
        self.findings = _Findings()
        self.masks: Counter[int | Color] = Counter()
        self.pixels: Counter[int | Color] = Counter()
        self._digests: dict[str, tuple[str, str]] = {}
        self._names: set[tuple[str, str]] = set()

    def source(self, source: Source, split: str) -> None:
        """Read and count one sample."""
        try:
            name, image, label = source.read()
        except UserError as error:
            if source.unreadable:
                self.findings.add(source.unreadable, error)
            else:
                self._unreadable(source, split)
            return
        self._check_name(name, split)
        self._check_twice(source.image_file() or image.tobytes(), name, split)
        self.splits[split].count_size(*image.shape[:2])
        highest = int(image.max(initial=0))
        if highest <= _DIM:
            self.findings.add(_NEARLY_BLACK, f"{source.places()[0]} (0 to {highest})", problem=False)
        self._label(source.places()[1], split, label)

    def _unreadable(self, source: Source, split: str) -> None:
        """Report which part of a sample is faulty, and count its image if that can be read."""
        self._check_name(source.name, split)
        if source.image_file():
            self._check_twice(source.image_file(), source.name, split)
        label = self._read_label(source)
        try:
            image = source.read_image(None if label is None else label.shape[:2])
        except UserError as error:
            self.findings.add(
                "images of a kind that is not read"
                if isinstance(error, UnreadKindError)
                else "images that cannot be read (get them again)",
                error,
            )
            return
        self.splits[split].count_size(*image.shape[:2])
        if label is not None:
            self.findings.add(
                "masks of another size than their image (export them at the image's size)",
                f"{source.places()[1]} is {label.shape[1]}x{label.shape[0]}, the image "
                f"{image.shape[1]}x{image.shape[0]}",
            )

    def _read_label(self, source: Source) -> np.ndarray | None:
        image_place, label_place = source.places()
        missing = source.missing()
        if missing == "label":
            self.findings.add("images without mask (add the masks, or take the images away)", image_place)
        if missing:
            return None
        try:
            return source.read_label()
        except UserError as error:
            if isinstance(error, LossyMaskError):
                self.findings.add(f"{error.kind} masks (their ids are blurred; save masks as PNG)", label_place)
            elif isinstance(error, UnusableMaskError):
                self.findings.add("masks that are no image of class ids", error)
            else:
                self.findings.add("masks that cannot be read (make them anew)", error)
            return None

    def _label(self, place: str, split: str, raw: np.ndarray) -> None:
        ids, unknown = self.rule.apply(raw)
        num_values = self.splits[split].count_label(ids)
        self.masks.update(unknown.keys())
        self.pixels.update(unknown)
        if unknown:
            self.findings.add("masks with unknown values", unknown_message(place, unknown, self.labels))
        elif (ids == IGNORE_INDEX).all():
            self.findings.add("masks that are all void (they teach nothing)", place, problem=False)
        elif num_values == 1 and len(self.labels) > 1:
            name = self.labels.names[int(ids[0, 0])]
            self.findings.add("masks that are one class all over", f"{place} ({name})", problem=False)

    def _check_name(self, name: str, split: str) -> None:
        if (split, name) in self._names:
            self.findings.add(f"names in {split} that come twice (rename or remove one of each)", name)
        self._names.add((split, name))

    def _check_twice(self, image: bytes, name: str, split: str) -> None:
        """Look for duplicates: an image in two splits makes the scores of the second one too good."""
        first = self._digests.setdefault(hashlib.sha256(image).hexdigest(), (split, name))
        if first[0] != split:
            self.findings.add(f"images of {split} that are in {first[0]} too", f"{name} = {first[1]}")
        elif first[1] != name:
            self.findings.add("images that are in one split twice", f"{name} = {first[1]}", problem=False)
