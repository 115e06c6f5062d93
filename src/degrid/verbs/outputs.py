"""The files that a prediction leaves on disk, for the user or for the test servers of PASCAL VOC and Cityscapes."""

from __future__ import annotations

import itertools
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from degrid.arguments import check_fields
from degrid.data import CITYSCAPES_LABEL_IDS
from degrid.data.annotations import TOOLS, AnnotationTool, Regions
from degrid.data.formats.classes import table_in
from degrid.files import atomic_write, write_json
from degrid.image import as_rgb, color_table, overlay_classes, palette_image
from degrid.lookup import counted, unknown
from degrid.raster import is_on_map, write_map
from degrid.types import LabelSpace, UserError, voc_palette
from degrid.verbs.find_images import RESULT_MARK, FoundImages, is_result

if TYPE_CHECKING:
    from degrid.engine.inference.options import Prediction

FORMATS = ("ids", "voc", "cityscapes", *TOOLS)
VOC_COMPETITIONS = ("comp5", "comp6")
"""comp5: trained on VOC's own data alone; comp6: on any other data too, ImageNet among them."""
_VOC_CLASSES = 21
_LARGEST_JPEG = 65_500
"""Longest side of a JPEG, pixels."""


@dataclass(frozen=True)
class ResultFiles:
    """Which files are written for the images.

    Attributes:
        format: "ids": NAME.png, class ids with a palette (of a GeoTIFF NAME.tif, for the same place), and summary.json;
            "voc" or "cityscapes": what the benchmark's test server accepts; "coco", "labelme", "cvat" or "labelstudio":
            regions that these annotation tools open, with their confidence.
        overlay: also NAME.overlay.jpg, the image with its classes laid over; by default with "ids" only.
        logits: also NAME.logits.npy, float32 [C,h,w], before enlarging; with "ids" only.
        voc_competition: for "voc": comp5 (trained on VOC alone) or comp6 (on other data too).
        regions: for annotation tools: polygons or masks, and how exact; by default exact polygons of all regions.
        video_ids: besides the overlay of a video, the class ids of its frames: "png": NAME/000000.png, ...; "ffv1":
            NAME.ids.mkv, without loss.
        seconds: how long a camera or stream is recorded; by default until it ends, or the program is interrupted
            (Ctrl+C).
    Raises:
        UserError: an unknown format, or files that a benchmark or tool does not take.
    """

    format: str = "ids"
    overlay: bool | None = None
    logits: bool = False
    voc_competition: str = "comp6"
    regions: Regions | None = None
    video_ids: str | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
        if self.format != "ids" and (self.overlay or self.logits):
            raise UserError(
                f"--format {self.format} (format=...) writes only what the benchmark or tool takes; leave out "
                "--overlay and --save-logits (overlay=..., logits=...)"
            )
        if self.video_ids not in (None, "png", "ffv1"):
            raise UserError(f'video_ids: expected "png" or "ffv1", got "{self.video_ids}"')
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds: expected more than 0, got {self.seconds:g}")
        if self.regions is not None and self.format not in TOOLS:
            raise UserError(
                "--shapes, --smallest and --simplify (regions=...) are for the files of annotation tools; add --format "
                f"(format=...): {', '.join(TOOLS)}"
            )


def make_writer(files: ResultFiles, out: Path, labels: LabelSpace | None, found: FoundImages) -> ResultWriter:
    """What writes the results.

    Args:
        labels: the model's classes; None for a network that does not declare them.
        found: the images that will be predicted.
    Raises:
        UserError: the benchmark cannot take results of this model or for these images.
    """
    images = list(found.images.values())
    if files.format == "ids":
        return IdFiles(out, labels, files.overlay is not False, files.logits, found.left_out)
    if files.format in TOOLS:
        return AnnotationFiles(out, labels, TOOLS[files.format], files.regions or Regions())
    if labels is None:
        raise UserError(
            f"--format {files.format} (format=...) needs to know the network's classes: derive it from "
            "degrid.contracts.SegmentationNetwork"
        )
    if files.format == "voc":
        return VocFiles(out, len(labels), images, files.voc_competition)
    return CityscapesFiles(out, len(labels), images, CITYSCAPES_LABEL_IDS)


class ResultWriter:
    """Writes the results of a run over images; by default class ids alone, as benchmarks take them.

    needs_all: whether `finish` makes no sense if an image is missing.
    wants_confidence: whether `add` is given the probability of each pixel's class, where the network gives it.
    """

    needs_all = True
    wants_confidence = False

    def names(self, images: Mapping[str, Path]) -> dict[str, Path]:
        """The images by names under which their results replace nothing but results of an earlier run.

        Raises:
            UserError: a benchmark wants a name that another file has.
        """
        for image in images.values():
            if not _is_free(self.place(image)):
                raise UserError(
                    f"{self.place(image)} was not written by degrid and would be lost; choose another folder"
                )
        return dict(images)

    def place(self, image: Path) -> Path:
        """Where the class ids of an image go, for a writer that does not choose names."""
        raise NotImplementedError

    def fail(self, name: str, reason: str) -> None:
        """Hear of an image that could not be used."""

    def add(
        self, name: str, image: Path, prediction: Prediction, num_classes: int, confidence: np.ndarray | None = None
    ) -> None:
        """Write one image's results, each file atomically.

        Args:
            name: of the results, with sub-folders, without extension.
            image: the file that was predicted.
            num_classes: of the model.
            confidence: the probability of each pixel's class, float32 [H,W].
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

    Args:
        left_out: for the summary: how many other files were skipped, by kind.
    """

    needs_all = False

    def __init__(
        self, out: Path, labels: LabelSpace | None, overlay: bool, logits: bool, left_out: Mapping[str, int]
    ) -> None:
        self.out, self.labels, self.overlay, self.logits, self.left_out = out, labels, overlay, logits, left_out
        self.rows: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}
        self.videos: dict[str, dict[str, Any]] = {}

    def names(self, images: Mapping[str, Path]) -> dict[str, Path]:
        """See `ResultWriter.names`: where a.png is taken, as by the image itself, a becomes a.png, then a.png_2, ..."""
        summary = self.out / "summary.json"
        if summary.is_file() and b"num_images" not in summary.read_bytes():
            raise UserError(f"{summary} was not written by degrid and would be lost; choose another folder")
        chosen: dict[str, Path] = {}
        for name, image in images.items():
            longer = f"{name}{image.suffix}"
            others = itertools.chain([longer], (f"{longer}_{number}" for number in itertools.count(2)))
            free = (other for other in others if other not in images and other not in chosen and self._is_free(other))
            chosen[name if self._is_free(name) else next(free)] = image
        return chosen

    def _is_free(self, name: str) -> bool:
        return all(_is_free(self.out / f"{name}{ending}") for ending in (".png", ".tif", ".overlay.jpg"))

    def fail(self, name: str, reason: str) -> None:
        """See `ResultWriter.fail`."""
        self.failures[name] = reason

    def add(
        self, name: str, image: Path, prediction: Prediction, num_classes: int, confidence: np.ndarray | None = None
    ) -> None:
        """Write NAME.png (NAME.tif for a GeoTIFF), NAME.overlay.jpg and NAME.logits.npy, each file atomically."""
        labels = self.labels = self.labels or LabelSpace.of_size(num_classes)
        if is_on_map(image):
            with atomic_write(self.out / f"{name}.tif") as temporary:
                write_map(temporary, prediction.ids, color_table(labels), image, RESULT_MARK)
        else:
            save_picture(palette_image(prediction.ids, labels), self.out / f"{name}.png")
        if self.overlay:
            picture = overlay_classes(*_shown(prediction), labels)
            save_picture(Image.fromarray(picture), self.out / f"{name}.overlay.jpg")
        if self.logits and prediction.logits is not None:
            with atomic_write(self.out / f"{name}.logits.npy") as temporary, temporary.open("wb") as stream:
                np.save(stream, prediction.logits)
        # In parts: NumPy counts in int64, eight times the memory of a large map.
        parts = (prediction.ids[row : row + 1024] for row in range(0, len(prediction.ids), 1024))
        counts = np.sum([np.bincount(part.ravel(), minlength=256) for part in parts], axis=0)[: len(labels)]
        height, width = prediction.ids.shape
        pixels = {class_name: int(n) for class_name, n in zip(labels.names, counts, strict=True) if n}
        self.rows[name] = {"file": str(image), "width": width, "height": height, "pixels": pixels}

    def finish(self) -> str:
        """Write summary.json: pixels per class, for each image and in total; and which files have no result."""
        total: Counter[str] = Counter()
        for row in (*self.rows.values(), *self.videos.values()):
            total.update(row["pixels"])
        names = self.labels.names if self.labels else ()
        summary = self.out / "summary.json"
        pixels = {name: total[name] for name in names}
        record = {"classes": list(names), "num_images": len(self.rows), "pixels": pixels, "images": self.rows}
        films = {"videos": self.videos} if self.videos else {}
        write_json(summary, {**record, **films, "failures": self.failures, "left_out": dict(self.left_out)})
        what = "masks and overlays" if self.overlay else "masks"
        images = [f"{counted(len(self.rows), 'image')}: {what}"] if self.rows or not films else []
        images += [counted(len(films["videos"]), "video")] if films else []
        return f"{' and '.join(images)} in {self.out}, {summary}"


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
            raise unknown("VOC competition", competition, VOC_COMPETITIONS)
        self.out = out
        self.folder = Path("results", "VOC2012", "Segmentation", f"{competition}_test_cls")
        # Names do not matter to the palette.
        self.labels = LabelSpace(LabelSpace.of_size(_VOC_CLASSES).names, voc_palette(_VOC_CLASSES))
        self.written: set[str] = set()

    def place(self, image: Path) -> Path:
        """See `ResultWriter.place`."""
        return self.out / self.folder / f"{image.stem}.png"

    def write(self, image: Path, ids: np.ndarray) -> None:
        """See `ResultWriter.write`."""
        save_picture(palette_image(ids, self.labels), self.place(image))
        self.written.add(self.place(image).name)

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

    def place(self, image: Path) -> Path:
        """See `ResultWriter.place`."""
        return self.out / f"{image.stem.removesuffix('_leftImg8bit')}_pred.png"

    def write(self, image: Path, ids: np.ndarray) -> None:
        """See `ResultWriter.write`."""
        save_picture(Image.fromarray(self.table[ids]), self.place(image))
        self.count += 1

    def finish(self) -> str:
        """Nothing remains to be done; see `ResultWriter.finish`."""
        return f"{counted(self.count, 'image')} as label ids in {self.out}"


class AnnotationFiles(ResultWriter):
    """Regions with their confidence, for an annotation tool.

    Existing files of these names are not replaced, since somebody may have corrected them.

    Args:
        labels: None for a network that does not declare them; its classes are called "class 0", "class 1", ...
        tool: which makes the files.
        regions: how regions are drawn.
    """

    needs_all = False
    wants_confidence = True

    def __init__(self, out: Path, labels: LabelSpace | None, tool: type[AnnotationTool], regions: Regions) -> None:
        self.out, self.regions, self.kind = out, regions, tool
        self.tool = tool(out, labels, regions) if labels else None

    def names(self, images: Mapping[str, Path]) -> dict[str, Path]:
        """See `ResultWriter.names`.

        Raises:
            UserError: a file is there, or a table of other classes.
        """
        taken = next((place for place in self.kind.places(self.out, images) if place.exists()), None)
        if taken:
            raise UserError(f"{taken} exists, and may have been corrected by hand; move it, or choose another folder")
        if self.tool:
            table_in(self.out, self.tool.labels)
        return dict(images)

    def add(
        self, name: str, image: Path, prediction: Prediction, num_classes: int, confidence: np.ndarray | None = None
    ) -> None:
        """See `ResultWriter.add`."""
        self.tool = self.tool or self.kind(self.out, LabelSpace.of_size(num_classes), self.regions)
        self.tool.add(name, image, prediction.ids, confidence)

    def finish(self) -> str:
        """See `ResultWriter.finish`."""
        return self.tool.finish() if self.tool else ""


def _shown(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Image, uint8 [h,w,3], and class ids, uint8 [h,w], of one size: a smaller one where a JPEG cannot be so large."""
    image, ids = as_rgb(prediction.image), prediction.ids
    step = -(-max(image.shape[:2]) // _LARGEST_JPEG)
    image = image[::step, ::step]
    if image.shape[:2] != ids.shape:
        rows, columns = (np.arange(small) * side // small for small, side in zip(image.shape, ids.shape, strict=False))
        ids = ids[np.ix_(rows, columns)]
    return image, ids


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture atomically and mark it as a result: a PNG, or a JPEG where the path ends in .jpg."""
    mark = PngInfo()
    mark.add_text("Software", RESULT_MARK)
    with atomic_write(path) as temporary:
        if path.suffix == ".jpg":
            picture.save(temporary, format="JPEG", quality=92, comment=RESULT_MARK)
        else:
            # Maps of ids become a fifth larger than by the default level, in a third of its time.
            picture.save(temporary, format="PNG", pnginfo=mark, compress_level=3)


def _is_free(path: Path) -> bool:
    """Whether writing a result there would lose nothing."""
    return not path.exists() or (path.is_file() and is_result(path))


def _check(benchmark: str, expected: int, num_classes: int, images: Iterable[Path]) -> None:
    """Before the long work begins, refuse options that the benchmark does not accept."""
    if num_classes != expected:
        raise UserError(
            f"{benchmark} has {expected} classes, the model has {num_classes}; leave out --format (format=...)"
        )
    seen: dict[str, Path] = {}
    for image in images:
        # Without the ending, because a.jpg and a_leftImg8bit.png would give the same file too.
        name = image.stem.removesuffix("_leftImg8bit")
        if name in seen:
            raise UserError(f"{seen[name]} and {image} share a name, by which {benchmark} tells images apart")
        seen[name] = image
