"""From a model to a file that was run and compared."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from degrid.exporters.check import Comparison, compared, must_run
from degrid.exporters.formats import FORMATS, QUANTIZERS, as_json, files_of
from degrid.exporters.graph import ExportGraph, traced
from degrid.exporters.runtime import ExportedModel, Facts
from degrid.resize import convention_of
from degrid.types import LabelSpace, UserError


@dataclass(frozen=True)
class Quantization:
    """How to make a model int8, and who says whether it is good enough.

    images: for calibration, uint8 [H,W,3].
    judge: called with the float model and the int8 model, both as modules; raises UserError to refuse.
    """

    images: list[np.ndarray]
    judge: Callable[[nn.Module, nn.Module], None]


def export_model(
    model: nn.Module,
    labels: LabelSpace,
    path: Path,
    kind: str = "onnx",
    *,
    output: str = "ids",
    input_type: str = "uint8",
    version: str = "",
    int8: Quantization | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Comparison]:
    """Write a model for another runtime, run it there, and compare; only then is there a file at `path`.

    Args:
        model: from RGB images [N,3,H,W] (0-255) to logits, in evaluation mode; stays as it is.
        path: where to; its ending must be the format's.
        kind: of file, a name in `FORMATS`.
        output: "ids": class ids at the image's size; "logits": as the model gives them, for fusing scales or a CRF.
        input_type: of the image, "uint8" or "float32".
        version: of degrid, for the record.
        int8: quantize; for onnx and openvino.
        tell: called with a line about each step.
    Returns:
        What the comparison found, for each size.
    Raises:
        UserError: a format, output or model that cannot be exported, a runtime that is not installed, or a result that
            differs.
    """
    ending, write = _format(kind, path)
    graph = ExportGraph(model, output)
    tell(f"{graph.folded} batch norms folded, {graph.fixed} smoothed convolutions with fixed filters; tracing")
    program = traced(graph, input_type)
    classes = tuple(zip(labels.names, labels.colors, strict=True))
    facts = as_json(Facts(classes, output, input_type, convention_of(model), version).to_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    # On the same disk, so that what is done can be renamed to its place.
    place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        made = place / f"float{ending}"
        tell(f"writing {kind}")
        write(program, made, facts)
        tell("comparing with PyTorch at sizes that were not traced")
        found = compared(model, ExportedModel(made), output)
        if int8:
            tell(f"calibrating int8 on {len(int8.images)} images")
            exact, made = made, place / f"int8{ending}"
            batches = (_as_input(image, input_type) for image in int8.images)
            QUANTIZERS[kind](exact, made, batches)
            must_run(made)
            found = compared(model, ExportedModel(made), output, exact=False)
            int8.judge(ExportedModel(exact), ExportedModel(made))
        for file, target in zip(files_of(made), files_of(path), strict=True):
            file.replace(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found


def _format(kind: str, path: Path) -> tuple[str, Callable[..., None]]:
    if kind not in FORMATS:
        raise UserError(f'unknown format "{kind}"; known: {", ".join(FORMATS)}')
    ending, write = FORMATS[kind]
    if path.suffix != ending:
        raise UserError(f"expected a file name that ends in {ending} for {kind}, got {path}")
    return ending, write


def _as_input(image: np.ndarray, input_type: str) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(input_type)
