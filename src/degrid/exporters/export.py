"""From a network to a file that was run and compared."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from degrid.contracts import convention_of
from degrid.exporters.check import SIZES, Comparison, compared, must_run
from degrid.exporters.exporter import Exporter
from degrid.exporters.graph import Source
from degrid.exporters.runtime import ExportedModel, Facts
from degrid.exporters.table import find_exporter, formats_with_int8, name_of
from degrid.types import LabelSpace, Tell, UserError


@dataclass(frozen=True)
class Quantization:
    """How to make a model int8, and who says whether it is good enough.

    images: to choose the ranges by, uint8 [H,W,3].
    judge: called with the float model and the int8 model, both as modules; raises UserError to refuse.
    """

    images: list[np.ndarray]
    judge: Callable[[nn.Module, nn.Module], None]


def export_model(
    model: nn.Module,
    labels: LabelSpace,
    path: Path,
    format: str | type[Exporter] = "onnx",
    *,
    output: str = "ids",
    input_type: str = "uint8",
    size: tuple[int, int] | None = None,
    int8: Quantization | None = None,
    tell: Tell = lambda line: None,
) -> list[Comparison]:
    """Write a network for another runtime, run it there, and compare; only then is there a file at `path`.

    Args:
        model: from RGB images [N,3,H,W] (0-255) to logits, in evaluation mode; is not changed.
        path: the file to write; has the format's ending.
        format: a name in `table.EXPORTERS`, "module:Class", or a class.
        output: "ids": class ids at the image's size; "logits": as the network gives them, for fusing scales or a CRF.
        input_type: of the pixels, "uint8" or "float32".
        size: height and width, for a file that takes one image of this size; None: any number of any size.
        int8: quantize.
        tell: called with a line about each step.
    Returns:
        What the comparison found for each size; nothing for a format that cannot be run here.
    Raises:
        UserError: a format, output or network that cannot be exported, a package that is not installed, or a result
            that differs.
    """
    exporter = find_exporter(format)
    check_can_export(exporter, path, size, int8 is not None)
    source = Source.of(model, output, input_type, size)
    tell(f"{source.graph.folded} batch norms folded, {source.graph.fixed} smoothed convolutions with fixed filters")
    facts = Facts.of(labels, output, input_type, convention_of(model), size).to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    # On the same disk, so that the finished files can be renamed to their place.
    place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        made = _within(place / "float", path)
        tell(f"tracing, and writing {path.name}")
        exporter.write(source, made, facts)
        found: list[Comparison] = []
        if exporter.runs_here:
            tell("comparing with PyTorch at sizes that were not traced")
            sizes = SIZES if size is None else ((1, 3, *size),) * 2
            found = compared(model, ExportedModel(_spelled(exporter, made)), output, sizes)
        if int8:
            tell(f"calibrating int8 on {len(int8.images)} images")
            exact, made = made, _within(place / "int8", path)
            exporter.quantize(exact, made, (_as_input(image, input_type) for image in int8.images))
            found = _judged(model, _spelled(exporter, exact), _spelled(exporter, made), output, int8)
        for file, target in zip(exporter.files(made), exporter.files(path), strict=True):
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found


def check_can_export(exporter: Exporter, path: Path, size: tuple[int, int] | None, int8: bool) -> None:
    """Before any long work: whether the format can do what is wanted, and whether all that it needs is installed.

    Raises:
        UserError: it cannot, or something is missing.
    """
    name = name_of(exporter)
    if not path.name.endswith(exporter.ending):
        raise UserError(f"expected a file name that ends in {exporter.ending} for {name}, got {path}")
    if size is None and not exporter.any_size:
        raise UserError(f"{name} files are for images of one size; say which, such as --size 512x1024")
    if int8 and not (exporter.has_int8 and exporter.runs_here):
        raise UserError(f"int8 is for {' and '.join(formats_with_int8())}, not for {name}")
    if int8 and size:
        raise UserError("int8 is for files that take images of any size; leave out --size")
    for package in (*exporter.packages, *(exporter.int8_packages if int8 else ())):
        exporter.library(package)


def _judged(model: nn.Module, exact: str, small: str, output: str, int8: Quantization) -> list[Comparison]:
    """Run the int8 file, compare it, and let the judge compare it with the float file.

    Raises:
        UserError: it crashes, or is not good enough.
    """
    must_run(small)
    quantized = ExportedModel(small)
    found = compared(model, quantized, output, exact=False)
    int8.judge(ExportedModel(exact), quantized)
    return found


def _within(folder: Path, path: Path) -> Path:
    """A file of the same name in a new folder: files that name one another then need no change."""
    folder.mkdir()
    return folder / path.name


def _spelled(exporter: Exporter, path: Path) -> str:
    """The file as `ExportedModel` takes it, whatever other formats have the same ending."""
    return f"{name_of(exporter)}={path}"


def _as_input(image: np.ndarray, input_type: str) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(input_type)
