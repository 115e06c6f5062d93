"""ONNX in the form that TensorRT's parser accepts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import Exporter
from degrid.exporters.onnx import Onnx
from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.exporters.graph import Source

_OPERATORS = """
Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose
DepthToSpace Div Elu Equal Erf Exp Expand Flatten Floor Gather Gemm GlobalAveragePool GlobalMaxPool Greater
GreaterOrEqual HardSigmoid Identity InstanceNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool
Mean Min Mul Neg Not Or Pad Pow PRelu Range ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape
Resize Round Selu Shape Sigmoid Sign Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile
Transpose Unsqueeze Where
"""
"""Operators that image networks use and that onnx-tensorrt's table lists as supported by TensorRT 8.4 and later."""
_TYPES = ("FLOAT", "FLOAT16", "INT32", "INT64", "BOOL")


class TensorRt(Onnx):
    """NAME.onnx, from float32 pixels to class ids of int64, with the operators and types that TensorRT's parser knows.

    Run and compared by ONNX Runtime; TensorRT itself needs a GPU. Source: onnx-tensorrt, docs/operators.md.
    """

    note = "the same file for its parser, float32; compared in onnxruntime"
    packages = ("onnxscript", "onnxruntime", "onnx")
    int8_packages = ()
    inputs = ("float32",)
    quantize = Exporter.quantize

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.onnx.

        Raises:
            UserError: an operator or a type that TensorRT's parser does not take, or see `Onnx.write`.
        """
        super().write(source, path, facts)
        if unknown := _not_taken(self.library("onnx"), path):
            advice = "; a file of one size has no arithmetic on sizes: --size" if source.takes.size is None else ""
            raise UserError(f"TensorRT's parser does not take {', '.join(unknown)} of this network{advice}")


def _not_taken(onnx: Any, path: Path) -> list[str]:
    """The operators and types in a file that TensorRT's parser does not take, in alphabetical order."""
    model = onnx.load(str(path))
    types = onnx.TensorProto.DataType
    operators = {node.op_type for node in model.graph.node}
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    kinds = {value.type.tensor_type.elem_type for value in values} | {
        each.data_type for each in model.graph.initializer
    }
    return sorted({*(operators - {*_OPERATORS.split()}), *({types.Name(kind) for kind in kinds if kind} - {*_TYPES})})
