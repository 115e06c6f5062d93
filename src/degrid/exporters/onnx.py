"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from degrid.exporters.exporter import KEY, Exporter, Opened, quiet
from degrid.exporters.facts import FIXED
from degrid.lookup import in_a_line
from degrid.threads import num_threads
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source

OPSETS = range(18, 24)
"""Versions of ONNX's operators that PyTorch writes; asked for an older one, it writes 18."""

_INT64 = 7
"""Number of a type of tensors (onnx.proto: TensorProto.DataType.INT64)."""
_METADATA = 14
"""Number of a model's field of names and texts (onnx.proto: ModelProto.metadata_props)."""


class Onnx(Exporter):
    """One file, NAME.onnx, with the weights inside.

    Args:
        opset: version of the operators, 18 to 23. The lowest is the default: more runtimes read it, and onnxruntime
            1.20 to 1.24 average wrongly at the border from 19 on.
    Raises:
        UserError: another version.
    """

    ending = ".onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnxscript", "onnxruntime")
    int8_packages: ClassVar[tuple[str, ...]] = ("onnx", "nncf")
    needs_torch = False

    def __init__(self, opset: int = OPSETS[0]) -> None:
        if opset not in OPSETS:
            raise UserError(f"opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}, which PyTorch can write")
        self.opset = opset

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
        how: Any = {"optimize": True, "verbose": False, "custom_translation_table": _SIZES}
        how["opset_version"] = self.opset
        try:
            with quiet():
                made: Any = torch.onnx.export(source.program, dynamo=True, **how)
        except torch.onnx.OnnxExporterError as error:
            raise UserError(
                f"ONNX cannot hold this network {_where(error)}; {FIXED}, or another format, such as openvino or "
                "torch-export"
            ) from error
        _name_sizes(made.model.graph, source.graph.output)
        _name_convolutions(made.model.graph)
        made.model.metadata_props[KEY] = facts
        made.save(str(path), external_data=False)

    def open(self, path: Path) -> Opened:
        """Run on as many threads as PyTorch would use."""
        onnxruntime = self.library("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads()
        # Waiting threads sleep, and take small parts of the work, so that one that shares its core delays no other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.dynamic_block_base", "4")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        facts = session.get_modelmeta().custom_metadata_map.get(KEY)
        return lambda image: session.run(None, {name: image})[0], facts

    def quantize(self, source: Path, path: Path, images: Iterable[np.ndarray], keep: Sequence[str] = ()) -> None:
        """By NNCF."""
        onnx = self.library("onnx")
        nncf = self.library("nncf")
        # One range per tensor: the default has one per channel before depthwise convolutions, as smoothing filters are,
        # and onnxruntime merges those into an operation that takes one.
        parameters = nncf.quantization.advanced_parameters
        how = parameters.AdvancedQuantizationParameters(
            activations_quantization_params=parameters.QuantizationParameters(per_channel=False)
        )
        model = onnx.load(str(source))
        kept = [node.name for node in model.graph.node if module_of(node.name) in keep]
        inputs = [{"image": image} for image in images]
        made = quantized(nncf, model, inputs, kept, advanced_parameters=how)
        onnx.save(made, str(path))


def _where(error: BaseException) -> str:
    """The operation of PyTorch at which writing failed, and the innermost reason."""
    operation, last = "", error
    while last.__cause__ is not None:
        last = last.__cause__
        found = re.search(r"target=torch\.ops\.([\w.]+)", str(last))
        operation = operation or (f"at its operation {found[1]} " if found else "")
    return f"{operation}({in_a_line(last)})"


def stored_facts(path: Path) -> str | None:
    """The facts in an ONNX file, read without its libraries; None if it holds none."""
    from degrid.protobuf import Span

    for number, value in Span(memoryview(path.read_bytes()), str(path)).fields():
        if number == _METADATA and isinstance(value, Span):
            key, text = (dict(value.fields()).get(each) for each in (1, 2))
            if isinstance(key, Span) and isinstance(text, Span) and key.text("a name") == KEY:
                return text.text("facts")
    return None


def _floor_division(dividend: Any, divisor: Any) -> tuple[Any, Any]:
    """Quotient and remainder of whole numbers, rounded down as in Python: ONNX's Div rounds towards zero.

    Without ONNX's Mod, which not every runtime knows (TensorRT's parser).
    """
    from onnxscript import opset18 as op

    quotient = op.Div(dividend, divisor)
    remainder = op.Sub(dividend, op.Mul(quotient, divisor))
    below = op.Cast(op.Less(op.Mul(remainder, divisor), op.Constant(value_int=0)), to=_INT64)  # 1 if the signs differ
    return op.Sub(quotient, below), op.Add(remainder, op.Mul(below, divisor))


_SIZES: dict[Any, Any] = {
    operator.floordiv: lambda dividend, divisor: _floor_division(dividend, divisor)[0],
    operator.mod: lambda dividend, divisor: _floor_division(dividend, divisor)[1],
}
"""Functions that write arithmetic on sizes."""


def _name_sizes(graph: Any, output: str) -> None:
    """Name the output, and call the free sizes batch, height and width in place of the tracer's s77 and terms of it.

    Args:
        graph: of onnx_ir.
        output: "ids" or "logits".
    """
    import onnx_ir

    image, made = graph.inputs[0], graph.outputs[0]
    made.name = output
    names = {str(size): name for size, name in zip(image.shape, ("batch", "channels", "height", "width"), strict=True)}

    for value in [*(value for node in graph for value in node.outputs), image]:
        others = (None, None, "logits_height", "logits_width") if value is made and output == "logits" else (None,) * 9
        value.shape = value.shape and onnx_ir.Shape(
            size if isinstance(size, int) else names.get(str(size), others[axis])
            for axis, size in enumerate(value.shape)
        )


def _name_convolutions(graph: Any) -> None:
    """Name each convolution after its module; where one runs again, as at another scale, with "#2" and so on."""
    counts: Counter[str] = Counter()
    for node in graph:
        weight = node.inputs[1].name if node.op_type == "Conv" else ""
        if weight.startswith("network.") and weight.endswith(".weight"):
            name = weight.removeprefix("network.").removesuffix(".weight")
            counts[name] += 1
            node.name = name if counts[name] == 1 else f"{name}#{counts[name]}"


def module_of(node: str) -> str:
    """The module of a convolution by its name in a file; OpenVINO adds an ending to that of one with a bias."""
    return node.removesuffix("/WithoutBiases").partition("#")[0]


def quantized(nncf: Any, model: Any, inputs: Sequence[Any], kept: list[str], **how: Any) -> Any:
    """NNCF's post-training quantization: one scale per output channel, and biases corrected for what rounding shifts.

    The model is of a library that NNCF knows, such as ONNX or OpenVINO; the inputs are as that library takes them.
    Kept: the nodes that stay in float32. How: more of its arguments.
    """
    with quiet():
        nncf.set_log_level("ERROR")
        preset = nncf.QuantizationPreset.MIXED
        scope = nncf.IgnoredScope(names=kept) if kept else None
        data = nncf.Dataset(inputs)
        return nncf.quantize(model, data, preset=preset, subset_size=len(inputs), ignored_scope=scope, **how)
