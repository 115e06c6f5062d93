"""OpenVINO, for Intel's and other CPUs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import KEY, Exporter, Opened, quiet
from degrid.exporters.onnx import Onnx, module_of, quantized
from degrid.threads import num_threads

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source

_KEPT_LAYERS = 256
"""Layers, each for one size of image, that OpenVINO keeps ready: some sizes. By default it keeps 5,000, 30 KiB each."""


class OpenVino(Exporter):
    """NAME.xml, and NAME.bin beside it with the weights."""

    ending = ".xml"
    packages = ("onnxscript", "openvino")
    int8_packages = ("nncf",)
    needs_torch = False

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.xml and NAME.bin, by way of ONNX."""
        openvino = self.library("openvino")
        half = path.with_suffix(".onnx")
        try:
            Onnx().write(source, half, facts)
            with quiet():
                model = openvino.convert_model(str(half))
            self._save(model, path, facts)
        finally:
            half.unlink(missing_ok=True)

    def open(self, path: Path) -> Opened:
        """Run on as many threads as PyTorch would use, in float32: OpenVINO alone might choose bfloat16."""
        core = _core()
        model = core.read_model(str(path))
        facts = model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None
        # A file computes what was compared. int8 layers stay int8.
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": num_threads(),
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_LAYERS,
        }
        compiled = core.compile_model(model, "CPU", settings)
        return lambda image: compiled(image)[0].copy(), facts

    def quantize(self, source: Path, path: Path, images: Iterable[np.ndarray], keep: Sequence[str] = ()) -> None:
        """By NNCF."""
        model = _core().read_model(str(source))
        facts = model.get_rt_info(KEY).value
        convolutions = (node for node in model.get_ordered_ops() if "Convolution" in node.get_type_name())
        kept = [name for node in convolutions if module_of(name := node.get_friendly_name()) in keep]
        self._save(quantized(self.library("nncf"), model, list(images), kept), path, facts)

    def files(self, path: Path) -> list[Path]:
        """NAME.bin and NAME.xml."""
        return [path.with_suffix(".bin"), path]

    def _save(self, model: Any, path: Path, facts: str) -> None:
        model.set_rt_info(facts, KEY)
        self.library("openvino").save_model(model, str(path), compress_to_fp16=False)


@functools.cache
def _core() -> Any:
    """OpenVINO's runtime: one for the whole process, which is never taken down.

    Each takes over the stack on which the process handles signals and gives it back when it ends. Of two that end in
    the order in which they began, the second gives back memory that is free already, and the next signal breaks the
    process (OpenVINO 2026.4).

    Raises:
        UserError: it is not installed.
    """
    return OpenVino().library("openvino").Core()
