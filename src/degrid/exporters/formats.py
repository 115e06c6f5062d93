"""Files of other runtimes, each with what a reader must know about the model inside it."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from degrid.exporters.graph import quiet
from degrid.exporters.libraries import library, openvino_core
from degrid.types import UserError

KEY = "degrid"
"""Under this name every file holds the facts about its model, as JSON; see `runtime.Facts`."""

Program = torch.export.ExportedProgram


def write_onnx(program: Program, path: Path, facts: str) -> None:
    """ONNX, with its weights inside.

    Raises:
        UserError: weights of more than 2 GB, or an operation that ONNX does not have.
    """
    library("onnxscript")
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size >= 2**31:
        raise UserError(f"an ONNX file holds at most 2 GB, this network has {size / 1e9:.1f} GB; export to openvino")
    with quiet():
        made: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, optimize=True, custom_translation_table={operator.floordiv: _floordiv}
        )
    made.model.metadata_props[KEY] = facts
    made.save(str(path), external_data=False)


def _floordiv(dividend: Any, divisor: Any) -> Any:
    """Rounded down, as in Python: ONNX's division of whole numbers rounds towards zero."""
    from onnxscript import opset20 as op

    return op.Div(op.Sub(dividend, op.Mod(dividend, divisor)), divisor)


def write_openvino(program: Program, path: Path, facts: str) -> None:
    """OpenVINO's NAME.xml, and NAME.bin with the weights beside it; by way of ONNX."""
    openvino = library("openvino")
    half = path.with_suffix(".onnx")
    try:
        write_onnx(program, half, facts)
        with quiet():
            model = openvino.convert_model(str(half))
        model.set_rt_info(facts, KEY)
        openvino.save_model(model, str(path), compress_to_fp16=False)
    finally:
        half.unlink(missing_ok=True)


def write_program(program: Program, path: Path, facts: str) -> None:
    """PyTorch's own torch.export file."""
    torch.export.save(program, str(path), extra_files={KEY: facts})


def write_inductor(program: Program, path: Path, facts: str) -> None:
    """Machine code of this kind of machine, made by torch.compile's C++ back end.

    Raises:
        UserError: no C++ compiler, or the code cannot be made.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        with quiet():
            aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"aot_inductor.metadata": {KEY: facts}}
            )
    except InvalidCxxCompiler as error:
        raise UserError("aot-inductor needs a C++ compiler, such as g++, and there is none; export to onnx") from error


FORMATS: dict[str, tuple[str, Callable[[Program, Path, str], None]]] = {
    "onnx": (".onnx", write_onnx),
    "openvino": (".xml", write_openvino),
    "torch-export": (".pt2", write_program),
    "aot-inductor": (".pt2", write_inductor),
}
"""Ending and writer."""


def quantize_onnx(source: Path, path: Path, images: Iterable[np.ndarray]) -> None:
    """An ONNX file in int8, by NNCF.

    Args:
        images: for calibration, uint8 or float32 [1,3,H,W].
    """
    onnx = library("onnx")
    onnx.save(_quantized(onnx.load(str(source)), [{"image": image} for image in images]), str(path))


def quantize_openvino(source: Path, path: Path, images: Iterable[np.ndarray]) -> None:
    """OpenVINO files in int8, by NNCF; arguments as `quantize_onnx`."""
    model = openvino_core().read_model(str(source))
    facts = model.get_rt_info(KEY).value
    made = _quantized(model, list(images))
    made.set_rt_info(facts, KEY)
    library("openvino").save_model(made, str(path), compress_to_fp16=False)


def _quantized(model: Any, inputs: Sequence[Any]) -> Any:
    """NNCF's post-training quantization: weights per output channel, biases corrected for what rounding shifts."""
    nncf = library("nncf")
    with quiet():
        nncf.set_log_level("ERROR")
        preset = nncf.QuantizationPreset.MIXED
        return nncf.quantize(model, nncf.Dataset(inputs), preset=preset, subset_size=len(inputs))


QUANTIZERS: dict[str, Callable[[Path, Path, Iterable[np.ndarray]], None]] = {
    "onnx": quantize_onnx,
    "openvino": quantize_openvino,
}


def files_of(path: Path) -> list[Path]:
    """All files of an exported model, the one that is named last."""
    weights = path.with_suffix(".bin")
    return [weights, path] if path.suffix == ".xml" else [path]


def as_json(facts: dict[str, Any]) -> str:
    """Facts as the text that the files hold."""
    return json.dumps(facts, ensure_ascii=True)
