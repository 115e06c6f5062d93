"""The files that a prediction leaves on disk: which images there are, what is written for each, and the summary."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from degrid.data import CITYSCAPES_LABEL_IDS
from degrid.engine.inference.predictor import Prediction
from degrid.files import atomic_write, write_json
from degrid.image import IMAGE_SUFFIXES, overlay_classes, palette_image
from degrid.types import LabelSpace, UserError
from degrid.verbs.benchmark_files import CityscapesFiles, ResultWriter, VocFiles

FORMATS = ("ids", "voc", "cityscapes")


@dataclass(frozen=True)
class ResultFiles:
    """Which files are written for the images.

    Attributes:
        format: "ids": NAME.png, class ids with a palette, and summary.json; "voc" or "cityscapes": what the benchmark's
            test server takes.
        overlay: also NAME.overlay.jpg, the image with its classes laid over; by default with "ids" only.
        logits: also NAME.logits.npy, float32 [C,h,w], before enlarging; with "ids" only.
        voc_competition: for "voc": comp5 (trained on VOC alone) or comp6 (on other data too).
    Raises:
        UserError: an unknown format, or files that a benchmark does not take.
    """

    format: str = "ids"
    overlay: bool | None = None
    logits: bool = False
    voc_competition: str = "comp6"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f'unknown format "{self.format}"; known: {", ".join(FORMATS)}')
        if self.format != "ids" and (self.overlay or self.logits):
            raise UserError(
                f"--format {self.format} writes no more than the benchmark takes; leave out --overlay and --save-logits"
            )


def make_writer(files: ResultFiles, out: Path, labels: LabelSpace | None, images: Sequence[Path]) -> ResultWriter:
    """What writes the results.

    Args:
        labels: the model's classes; None for a network that does not declare them.
        images: all that will be written.
    Raises:
        UserError: the benchmark cannot take results of this model or for these images.
    """
    if files.format == "ids":
        return IdFiles(out, labels, files.overlay is not False, files.logits)
    if labels is None:
        raise UserError(
            f"--format {files.format} needs to know the network's classes: derive it from "
            "degrid.contracts.SegmentationNetwork"
        )
    if files.format == "voc":
        return VocFiles(out, len(labels), images, files.voc_competition)
    return CityscapesFiles(out, len(labels), images, CITYSCAPES_LABEL_IDS)


def find_images(patterns: Iterable[str], exclude: Path | None = None) -> dict[str, Path]:
    """Images by the name their results get: the path below the folder (or below the fixed part of the pattern)
    without extension; with the extension where two images would share a name.

    Args:
        patterns: files, folders (searched through with sub-folders) or glob patterns.
        exclude: a folder whose files do not count, such as the one results are written to.
    Raises:
        UserError: a pattern that finds no image.
    """
    found: list[tuple[Path, Path]] = []
    barred = exclude.resolve() if exclude is not None else None
    for pattern in patterns:
        base, files = _expand(pattern)
        images = [
            (file.relative_to(base), file)
            for file in files
            if file.suffix.lower() in IMAGE_SUFFIXES and not (barred and barred in file.resolve().parents)
        ]
        if not images:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            what = "the folder holds" if Path(pattern).is_dir() else "there is" if not files else "the pattern finds"
            raise UserError(f'"{pattern}": {what} no image; known kinds: {suffixes}')
        found += images
    stems = Counter(relative.with_suffix("") for relative, _ in dict(found).items())
    return {
        (relative if stems[relative.with_suffix("")] > 1 else relative.with_suffix("")).as_posix(): file
        for relative, file in found
    }


def _expand(pattern: str) -> tuple[Path, list[Path]]:
    path = Path(pattern)
    if path.is_dir():
        return path, sorted(file for file in path.rglob("*") if file.is_file())
    if path.is_file():
        return path.parent, [path]
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    fixed: list[str] = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed), files


class IdFiles(ResultWriter):
    """Class ids with a palette, and where wanted overlays and logits; then a summary of the pixels per class.

    Args:
        out: the folder.
        labels: the classes; None: "class 0", "class 1", ...
        overlay, logits: see `ResultFiles`.
    """

    needs_all = False

    def __init__(self, out: Path, labels: LabelSpace | None, overlay: bool = True, logits: bool = False) -> None:
        self.out, self.labels, self.overlay, self.logits = out, labels, overlay, logits
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, name: str, image: Path, prediction: Prediction, num_classes: int) -> None:
        """Write NAME.png, NAME.overlay.jpg and NAME.logits.npy, each file atomically."""
        labels = self.labels = self.labels or LabelSpace.of_size(num_classes)
        with atomic_write(self.out / f"{name}.png") as temporary:
            palette_image(prediction.ids, labels).save(temporary, format="PNG")
        if self.overlay:
            with atomic_write(self.out / f"{name}.overlay.jpg") as temporary:
                picture = overlay_classes(prediction.image, prediction.ids, labels)
                Image.fromarray(picture).save(temporary, format="JPEG", quality=92)
        if self.logits and prediction.logits is not None:
            with atomic_write(self.out / f"{name}.logits.npy") as temporary, temporary.open("wb") as stream:
                np.save(stream, prediction.logits)
        counts = np.bincount(prediction.ids.ravel(), minlength=len(labels))
        height, width = prediction.ids.shape
        pixels = {class_name: int(n) for class_name, n in zip(labels.names, counts, strict=True) if n}
        self.rows[name] = {"width": width, "height": height, "pixels": pixels}

    def finish(self) -> str:
        """Write summary.json: pixels per class, for each image and in total."""
        total: Counter[str] = Counter()
        for row in self.rows.values():
            total.update(row["pixels"])
        names = self.labels.names if self.labels else ()
        summary = self.out / "summary.json"
        write_json(
            summary,
            {
                "classes": list(names),
                "num_images": len(self.rows),
                "pixels": {name: total[name] for name in names},
                "images": self.rows,
            },
        )
        return f"{len(self.rows)} images: masks{' and overlays' if self.overlay else ''} in {self.out}, {summary}"
