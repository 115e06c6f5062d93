"""Predictions as the test servers of PASCAL VOC and Cityscapes take them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from degrid.engine.inference.predictor import Prediction
from degrid.files import atomic_write
from degrid.image import palette_image
from degrid.types import LabelSpace, UserError, voc_palette

VOC_COMPETITIONS = ("comp5", "comp6")
"""comp5: trained on VOC's own data alone; comp6: on any other data too, ImageNet among them."""
_VOC_CLASSES = 21


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


class VocFiles(ResultWriter):
    """VOC2012: palette PNGs of the ids as they are, and the archive to upload.

    Source: the VOC2012 development kit, "Submission of results": results/VOC2012/Segmentation/comp6_test_cls/NAME.png.

    Args:
        out: the folder for results/ and results.tgz.
        num_classes: of the model.
        images: all that will be written.
        competition: comp5 or comp6.
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
        return f"{len(self.written)} images in {self.out / self.folder}; to upload: {archive}"


class CityscapesFiles(ResultWriter):
    """Cityscapes: 8-bit PNGs of label ids, ulm_000000_000019_pred.png for ulm_000000_000019_leftImg8bit.png.

    Source: cityscapesScripts, evalPixelLevelSemanticLabeling.py, which searches for CITY_SEQUENCE_FRAME*.png and takes
    label ids, not train ids.

    Args:
        out: the folder for the PNGs, without sub-folders.
        num_classes: of the model.
        images: all that will be written.
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
        return f"{self.count} images as label ids in {self.out}"


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
