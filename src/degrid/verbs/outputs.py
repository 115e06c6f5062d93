"""The files that a prediction leaves on disk: which images there are and what is written for each, for oneself or for
the test servers of PASCAL VOC and Cityscapes."""

from __future__ import annotations

import glob
import itertools
import os
import tarfile
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
from degrid.lookup import counted
from degrid.types import LabelSpace, UserError, voc_palette

FORMATS = ("ids", "voc", "cityscapes")
VOC_COMPETITIONS = ("comp5", "comp6")
"""comp5: trained on VOC's own data alone; comp6: on any other data too, ImageNet among them."""
_VOC_CLASSES = 21


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
                f"--format {self.format} writes no more than the benchmark takes; leave out --overlay and "
                "--save-logits (overlay=..., logits=...)"
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
        UserError: no patterns, or one that finds no image.
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
            if not files and not Path(pattern).is_dir():
                raise UserError(f'no such file, folder or pattern: "{pattern}"; give images of the kinds {suffixes}')
            what = "the folder holds" if Path(pattern).is_dir() else "the pattern finds"
            raise UserError(f'"{pattern}": {what} no image; known kinds: {suffixes}')
        found += images
    if not found:
        raise UserError("no images: expected files, folders or glob patterns, got none; name those to segment")
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
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])), files


class ResultWriter:
    """Writes the results of a run over images; by default class ids alone, as benchmarks take them.

    needs_all: whether `finish` makes no sense if an image is missing.
    """

    needs_all = True

    def add(self, name: str, image: Path, prediction: Prediction, num_classes: int) -> None:
        """Write one image's results, each file atomically.

        Args:
            name: of the results, with sub-folders, without extension.
            image: the file that was predicted.
            num_classes: of the model.
        Raises:
            UserError: the place cannot be written to.
        """
        self.write(image, prediction.ids)

    def write(self, image: Path, ids: np.ndarray) -> None:
        """Write one image's class ids, uint8 [H,W], atomically."""
        raise NotImplementedError

    def finish(self) -> str:
        """Do what remains once every image is written, and say in one line what is where.

        Raises:
            UserError: the place cannot be written to.
        """
        raise NotImplementedError


class IdFiles(ResultWriter):
    """Class ids with a palette, and where wanted overlays and logits; then a summary of the pixels per class.

    Without labels the classes are called "class 0", "class 1", ...
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
        pixels = {name: total[name] for name in names}
        record = {"classes": list(names), "num_images": len(self.rows), "pixels": pixels, "images": self.rows}
        write_json(summary, record)
        what = "masks and overlays" if self.overlay else "masks"
        return f"{counted(len(self.rows), 'image')}: {what} in {self.out}, {summary}"


class VocFiles(ResultWriter):
    """VOC2012: palette PNGs of the ids as they are, and the archive to upload.

    Source: the VOC2012 development kit, "Submission of results": results/VOC2012/Segmentation/comp6_test_cls/NAME.png.

    Args:
        images: all that will be written.
    Raises:
        UserError: not 21 classes, an unknown competition, or two images of one name.
    """

    def __init__(self, out: Path, num_classes: int, images: Iterable[Path], competition: str = "comp6") -> None:
        _check("VOC", _VOC_CLASSES, num_classes, images)
        if competition not in VOC_COMPETITIONS:
            raise UserError(f'unknown VOC competition "{competition}"; known: {", ".join(VOC_COMPETITIONS)}')
        self.out = out
        self.folder = Path("results", "VOC2012", "Segmentation", f"{competition}_test_cls")
        # Names do not matter to the palette.
        self.labels = LabelSpace(LabelSpace.of_size(_VOC_CLASSES).names, voc_palette(_VOC_CLASSES))
        self.written: set[str] = set()

    def write(self, image: Path, ids: np.ndarray) -> None:
        """See `ResultWriter.write`."""
        name = f"{image.stem}.png"
        with atomic_write(self.out / self.folder / name) as temporary:
            palette_image(ids, self.labels).save(temporary, format="PNG")
        self.written.add(name)

    def finish(self) -> str:
        """Pack results.tgz, of this run's images alone: an earlier run may have left others in the folder."""
        archive = self.out / "results.tgz"
        with atomic_write(archive) as temporary, tarfile.open(temporary, "w:gz") as packed:
            for name in sorted(self.written):
                packed.add(self.out / self.folder / name, arcname=(self.folder / name).as_posix())
        return f"{counted(len(self.written), 'image')} in {self.out / self.folder}; to upload: {archive}"


class CityscapesFiles(ResultWriter):
    """Cityscapes: 8-bit PNGs of label ids, ulm_000000_000019_pred.png for ulm_000000_000019_leftImg8bit.png.

    Source: cityscapesScripts, evalPixelLevelSemanticLabeling.py, which searches for CITY_SEQUENCE_FRAME*.png and takes
    label ids, not train ids.

    Args:
        images: all that will be written; the PNGs lie in no sub-folders.
        label_ids: the label id of each train id.
    Raises:
        UserError: another number of classes, or two images of one name.
    """

    def __init__(self, out: Path, num_classes: int, images: Iterable[Path], label_ids: Sequence[int]) -> None:
        _check("Cityscapes", len(label_ids), num_classes, images)
        self.out, self.table = out, np.array(label_ids, np.uint8)
        self.count = 0

    def write(self, image: Path, ids: np.ndarray) -> None:
        """See `ResultWriter.write`."""
        with atomic_write(self.out / f"{image.stem.removesuffix('_leftImg8bit')}_pred.png") as temporary:
            Image.fromarray(self.table[ids]).save(temporary, format="PNG")
        self.count += 1

    def finish(self) -> str:
        """Nothing remains to be done; see `ResultWriter.finish`."""
        return f"{counted(self.count, 'image')} as label ids in {self.out}"


def _check(benchmark: str, expected: int, num_classes: int, images: Iterable[Path]) -> None:
    """Refuse what the benchmark cannot take before the long work begins."""
    if num_classes != expected:
        raise UserError(f"{benchmark} has {expected} classes, the model has {num_classes}; leave out --format")
    seen: dict[str, Path] = {}
    for image in images:
        # Without the ending, because a.jpg and a_leftImg8bit.png would give the same file too.
        name = image.stem.removesuffix("_leftImg8bit")
        if name in seen:
            raise UserError(f"{seen[name]} and {image} have one name, by which {benchmark} tells images apart")
        seen[name] = image
