"""Exported models as modules: run by their own runtime, used like any model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from degrid.exporters.formats import KEY
from degrid.exporters.libraries import library, openvino_core
from degrid.types import LabelSpace, UserError

ENDINGS = (".onnx", ".xml", ".pt2")


@dataclass(frozen=True)
class Facts:
    """What a file says of its model.

    output: "ids", uint8 [N,H,W] at the image's size, or "logits", float32 [N,C,h,w]; input: "uint8" or "float32", RGB
    [N,3,H,W], 0-255; resize: how logits are enlarged; version: of degrid.
    """

    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    output: str
    input: str
    resize: str
    version: str
    kind: str = "model"

    @classmethod
    def read(cls, text: str | None, path: Path) -> Facts:
        """From the JSON in a file.

        Raises:
            UserError: none, or of another form.
        """
        try:
            values = json.loads(text or "")
            classes = tuple((name, tuple(color)) for name, color in values.pop("classes"))
            return cls(classes, **values)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} was not written by degrid export: it does not say its classes and output"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return LabelSpace(tuple(name for name, _ in self.classes), tuple(color for _, color in self.classes))


class ExportedModel(nn.Module):
    """A model in a file, from RGB images [N,3,H,W] (0-255) to logits or class ids, on the CPU.

    Args:
        path: NAME.onnx, NAME.xml or NAME.pt2.
    Raises:
        UserError: no such file, a damaged one, one that degrid did not write, or the runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise UserError(f"no exported model {path}")
        if path.suffix not in _OPENERS:
            raise UserError(f"expected an exported model that ends in {', '.join(ENDINGS)}, got {path}")
        try:
            self._run, text = _OPENERS[path.suffix](path)
        except UserError:
            raise
        except Exception as error:  # the runtimes have exceptions of many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot read the exported model {path}: {reason[:200]}") from error
        self.facts = Facts.read(text, path)
        self.labels, self.output, self.resize = self.facts.labels, self.facts.output, self.facts.resize

    def forward(self, image: Tensor) -> Tensor:
        """RGB [N,3,H,W], 0-255 -> ids, uint8 [N,H,W], or logits, float32 [N,C,h,w]."""
        kind = torch.uint8 if self.facts.input == "uint8" else torch.float32
        with torch.no_grad():
            return cast(Tensor, self._run(image.detach().cpu().to(kind).contiguous()))


def _open_onnx(path: Path) -> tuple[Any, str | None]:
    onnxruntime = library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    facts = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0]), facts


def _open_openvino(path: Path) -> tuple[Any, str | None]:
    core = openvino_core()
    model = core.read_model(str(path))
    facts = model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None
    # A file computes what was compared: no silent bfloat16. int8 layers stay int8.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)
    return lambda image: torch.from_numpy(compiled(image.numpy())[0].copy()), facts


def _open_program(path: Path) -> tuple[Any, str | None]:
    """A torch.export file, or a package of compiled code."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        compiled = any("/data/aotinductor/" in name for name in archive.namelist())
    if compiled:
        from torch._inductor import aoti_load_package

        package: Any = aoti_load_package(str(path))
        return package, package.get_metadata().get(KEY)
    extra = {KEY: ""}
    # Its guards are those of the traced sizes; what other sizes give was compared when it was written.
    program = torch.export.load(str(path), extra_files=extra).module(check_guards=False)
    return lambda image: program(image), extra[KEY]


_OPENERS = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_program}
