"""The formats by name, the format of a file, and files opened by their runtimes. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.aot_inductor import AotInductor
from degrid.exporters.core_ml import CoreMl
from degrid.exporters.executorch import ExecuTorch
from degrid.exporters.exporter import Exporter
from degrid.exporters.facts import Facts
from degrid.exporters.iree import Iree
from degrid.exporters.litert import LiteRt
from degrid.exporters.mnn import Mnn
from degrid.exporters.ncnn import Ncnn
from degrid.exporters.onnx import Onnx
from degrid.exporters.opencv import OpenCv
from degrid.exporters.openvino import OpenVino
from degrid.exporters.tensorrt import TensorRt
from degrid.exporters.torch_export import TorchExport
from degrid.lookup import counted, lookup, shortened
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

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


def find_exported(path: str | os.PathLike[str]) -> tuple[Exporter, Path] | None:
    """The format of an exported model that is there, and its file; None for anything else. See `find_opener`."""
    found = find_opener(path)
    return found if found and found[1].exists() else None


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


class OpenedFile:
    """A network in a file, made ready to run.

    Args:
        path: the file, such as NAME.onnx; for a format of your own "my_module:MyExporter=FILE".
    Attributes:
        exporter, path: its format, and the file.
        facts: what the file says about its network.
        needs_torch: whether `run` is a function of PyTorch's tensors rather than of arrays.
        run: from images [N,3,H,W] as the file takes them to what it gives, unchecked; see `Exporter.open`.
    Raises:
        UserError: no such file, a damaged one, one that degrid did not write, or the runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        found = find_opener(path)
        if found is None:
            endings = dict.fromkeys(each.ending for each in EXPORTERS.values())
            raise UserError(f"expected an exported model that ends in {', '.join(endings)}, got {path}")
        exporter, file = found
        if not file.exists():
            raise UserError(f"no exported model {file}")
        try:
            run, text = exporter.open(file)
        except UserError:
            raise
        except Exception as error:  # the runtimes have exceptions of many kinds
            raise UserError(f"cannot read the exported model {file}: {reason_of(error)}") from error
        self.facts = Facts.read(text, file)
        self.exporter, self.path, self.needs_torch = exporter, file, exporter.needs_torch
        self.run: Callable[[Any], Any] = run

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images [N,C,H,W] of a shape that the file does not take.

        Raises:
            UserError: the file is for images of another size, or another number of them.
        """
        takes = self.facts.takes
        if takes.shape(shape) != shape:
            many = f"{counted(shape[0], 'image')} of {shape[-2]}x{shape[-1]}"
            raise UserError(f"this exported model takes {takes}, got {many}; resize, or export the model for that")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """RGB [N,3,H,W], 0-255 -> ids, uint8 [N,H,W], or logits, float32 [N,C,h,w]; for a runtime that takes arrays.

        Raises:
            UserError: see `check`.
        """
        import numpy as np

        self.check(image.shape)
        made: np.ndarray = self.run(np.ascontiguousarray(image, self.facts.input))
        # A copy: the memory may be the runtime's, which writes its next result there.
        return made.astype(np.uint8 if self.facts.output == "ids" else np.float32)


def reason_of(error: Exception) -> str:
    """What a runtime says, in one line."""
    return shortened((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
