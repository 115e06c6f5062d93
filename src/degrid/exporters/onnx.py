"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import KEY, Exporter, Opened, quiet
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source


class Onnx(Exporter):
    """One file, NAME.onnx, with the weights inside."""

    ending = ".onnx"
    packages = ("onnxscript", "onnxruntime")
    int8_packages = ("onnx", "nncf")
    own_threads = True

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.onnx.

        Raises:
            UserError: weights of more than 2 GB, or an operation that ONNX does not have.
        """
        import torch

        self.library("onnxscript")
        size = sum(tensor.numel() * tensor.element_size() for tensor in source.program.state_dict.values())
        if size >= 2**31:
            gigabytes = f"{size / 1e9:.1f} GB"
            raise UserError(f"an ONNX file holds at most 2 GB, this network has {gigabytes}; export to openvino")
        how: Any = {"optimize": True, "verbose": False, "custom_translation_table": {operator.floordiv: _floordiv}}
        with quiet():
            made: Any = torch.onnx.export(source.program, dynamo=True, **how)
        made.model.metadata_props[KEY] = facts
        made.save(str(path), external_data=False)

    def open(self, path: Path) -> Opened:
        """Run on as many threads as PyTorch would use."""
        import torch

        onnxruntime = self.library("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        facts = session.get_modelmeta().custom_metadata_map.get(KEY)
        return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0]), facts

    def quantize(self, source: Path, path: Path, images: Iterable[np.ndarray]) -> None:
        """By NNCF."""
        onnx = self.library("onnx")
        made = quantized(self.library("nncf"), onnx.load(str(source)), [{"image": image} for image in images])
        onnx.save(made, str(path))


def _floordiv(dividend: Any, divisor: Any) -> Any:
    """Division that rounds down, as in Python: ONNX's division of whole numbers rounds towards zero."""
    from onnxscript import opset20 as op

    return op.Div(op.Sub(dividend, op.Mod(dividend, divisor)), divisor)


def quantized(nncf: Any, model: Any, inputs: Sequence[Any]) -> Any:
    """NNCF's post-training quantization: one scale per output channel, and biases corrected for what rounding shifts.

    The model is of a library that NNCF knows, such as ONNX or OpenVINO; the inputs are as that library takes them.
    """
    with quiet():
        nncf.set_log_level("ERROR")
        preset = nncf.QuantizationPreset.MIXED
        return nncf.quantize(model, nncf.Dataset(inputs), preset=preset, subset_size=len(inputs))
