"""The formats by name, and the format of a file. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from degrid.exporters.aot_inductor import AotInductor
from degrid.exporters.core_ml import CoreMl
from degrid.exporters.executorch import ExecuTorch
from degrid.exporters.exporter import Exporter
from degrid.exporters.iree import Iree
from degrid.exporters.litert import LiteRt
from degrid.exporters.mnn import Mnn
from degrid.exporters.ncnn import Ncnn
from degrid.exporters.onnx import Onnx
from degrid.exporters.opencv import OpenCv
from degrid.exporters.openvino import OpenVino
from degrid.exporters.tensorrt import TensorRt
from degrid.exporters.torch_export import TorchExport
from degrid.lookup import lookup
from degrid.types import UserError

EXPORTERS: dict[str, type[Exporter]] = {
    "onnx": Onnx,
    "openvino": OpenVino,
    "torch-export": TorchExport,
    "aot-inductor": AotInductor,
    "opencv": OpenCv,
    "tensorrt": TensorRt,
    "litert": LiteRt,
    "coreml": CoreMl,
    "executorch": ExecuTorch,
    "mnn": Mnn,
    "ncnn": Ncnn,
    "iree": Iree,
}
"""`--format` to its class. Where two formats have the same ending, each recognises its own files by their content."""


def find_exporter(format: str | type[Exporter] | Exporter) -> Exporter:
    """The format of that name.

    Args:
        format: a name in `EXPORTERS`, "module:Class", the class itself, or one with options, such as `Onnx(opset=19)`.
    Raises:
        UserError: there is no such format, or it is not derived from `Exporter`.
    """
    if isinstance(format, Exporter):
        return format
    found = lookup(EXPORTERS, format, "format") if isinstance(format, str) else format
    if not (isinstance(found, type) and issubclass(found, Exporter)):
        raise UserError(f"format {format}: expected a class derived from degrid.exporters.exporter.Exporter")
    return found()


def find_opener(path: str | os.PathLike[str]) -> tuple[Exporter, Path] | None:
    """The format of an exported model, and its file; None if `path` is not the name of an exported model.

    Args:
        path: a file that one of `EXPORTERS` recognises, or a format and a file: "my_module:MyExporter=FILE".
    Raises:
        UserError: no such format.
    """
    text, file = os.fspath(path), Path(path)
    format, equals, rest = text.partition("=")
    if equals and rest and (format in EXPORTERS or ":" in format) and not file.exists():
        return find_exporter(format), Path(rest)
    return next(((each(), file) for each in EXPORTERS.values() if each().recognises(file)), None)


def name_of(exporter: Exporter) -> str:
    """The name of a format on the command line."""
    kind = type(exporter)
    return next((name for name, each in EXPORTERS.items() if each is kind), f"{kind.__module__}:{kind.__qualname__}")


def spelled(exporter: Exporter, path: Path) -> str:
    """A file as `find_opener` takes it: with the format before it unless the file alone is enough."""
    found = find_opener(path)
    return str(path) if found and type(found[0]) is type(exporter) else f"{name_of(exporter)}={path}"


def formats_with_int8() -> list[str]:
    """The names of the formats that can be quantized."""
    return [name for name, each in EXPORTERS.items() if each().has_int8]
