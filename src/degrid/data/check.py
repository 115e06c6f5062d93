"""Read a whole dataset and say what is wrong with it, and how to mend it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.dataset import open_layout, read_image_like, unknown_message
from degrid.data.masks import read_mask
from degrid.data.pairs import Layout, Pair
from degrid.types import IGNORE_INDEX, LabelSpace, UserError


@dataclass
class SplitReport:
    """One split. sizes: "WIDTHxHEIGHT" -> images; class_pixels, class_images: per class; void_pixels: count."""

    num_images: int
    sizes: dict[str, int]
    class_pixels: list[int]
    class_images: list[int]
    void_pixels: int


@dataclass
class DataReport:
    """What `check` found. problems: one sentence each; notes: what was decided or may surprise."""

    path: str
    kind: str
    classes: list[str]
    splits: dict[str, SplitReport]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing needs mending."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.kind}, {len(self.classes)} classes"]
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
        """Share of pixels, and images, per class and split."""
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
    """Problems and notes, gathered by kind, so that a thousand like ones make one sentence."""

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


def check(path: str | Path, on_image: Callable[[int, int], None] | None = None) -> DataReport:
    """Read every image and mask of a dataset.

    Looks for images without mask and masks without image, damaged files, masks of another size, JPEG masks, unknown ids
    and colours, classes without a pixel, masks that are all void or all one class, and the same image in two splits.

    Args:
        path: a folder, dataset.yaml or list file.
        on_image: called with (done, total) as it goes on.
    Raises:
        UserError: the dataset is not there or not recognised at all.
    """
    layout = open_layout(path)
    assert layout.labels is not None
    findings = _Findings()
    total, done = sum(map(len, layout.splits.values())), 0
    splits: dict[str, SplitReport] = {}
    seen: dict[str, tuple[str, str]] = {}
    for split, pairs in layout.splits.items():
        report = SplitReport(len(pairs), {}, [0] * len(layout.labels), [0] * len(layout.labels), 0)
        for pair in pairs:
            _check_pair(pair, layout, layout.labels, report, findings)
            _check_twice(pair, split, seen, findings)
            done += 1
            if on_image:
                on_image(done, total)
        splits[split] = report
    for orphan in layout.orphans:
        findings.add("masks without an image (remove them, or add the images)", orphan)
    for index, name in enumerate(layout.labels.names):
        if splits and not any(report.class_pixels[index] for report in splits.values()):
            findings.add("classes without a single pixel (is the list of classes right?)", f"{index} {name}", False)
    found = DataReport(str(path), layout.kind, list(layout.labels.names), splits)
    found.problems = findings.sentences(problem=True)
    found.notes = ([layout.note] if layout.note else []) + findings.sentences(problem=False)
    return found


def _check_pair(pair: Pair, layout: Layout, labels: LabelSpace, report: SplitReport, findings: _Findings) -> None:
    assert layout.rule is not None
    try:
        raw = read_mask(pair.mask) if pair.mask is not None and pair.mask.exists() else None
    except UserError as error:
        findings.add(
            "JPEG masks (their ids are blurred; save masks as PNG)"
            if "is a JPEG" in str(error)
            else "masks that cannot be read (make them anew)",
            pair.mask if "is a JPEG" in str(error) else error,
        )
        raw = None
    else:
        if raw is None:
            findings.add("images without mask (add the masks, or take the images away)", pair.image)
    try:
        image = read_image_like(pair.image, raw.shape[:2] if raw is not None else (0, 0))
    except UserError as error:
        findings.add("images that cannot be read (get them again)", error)
        return
    size = f"{image.shape[1]}x{image.shape[0]}"
    report.sizes[size] = report.sizes.get(size, 0) + 1
    if raw is None:
        return
    if raw.shape[:2] != image.shape[:2]:
        findings.add(
            "masks of another size than their image (export them at the image's size)",
            f"{pair.mask} is {raw.shape[1]}x{raw.shape[0]}, the image {size}",
        )
        return
    ids, unknown = layout.rule.apply(raw)
    if unknown:
        findings.add("masks with unknown values", unknown_message(pair.mask or pair.image, unknown, labels))
    elif (ids == IGNORE_INDEX).all():
        findings.add("masks that are all void (they teach nothing)", pair.mask, problem=False)
    counts = np.bincount(ids.ravel(), minlength=256)
    report.void_pixels += int(counts[IGNORE_INDEX])
    for index in range(len(labels)):
        report.class_pixels[index] += int(counts[index])
        report.class_images[index] += bool(counts[index])


def _check_twice(pair: Pair, split: str, seen: dict[str, tuple[str, str]], findings: _Findings) -> None:
    """The same picture in two splits makes the scores of the second one too good."""
    if not pair.image.is_file():
        return
    digest = hashlib.sha256(pair.image.read_bytes()).hexdigest()
    first = seen.setdefault(digest, (split, pair.name))
    if first[0] != split:
        findings.add(f"images of {split} that are in {first[0]} too", f"{pair.name} = {first[1]}")
    elif first[1] != pair.name:
        findings.add("images that are in one split twice", f"{pair.name} = {first[1]}", problem=False)
