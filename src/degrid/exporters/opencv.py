"""ONNX in the form that OpenCV's DNN module accepts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import Exporter, Opened
from degrid.exporters.onnx import Onnx, stored_facts
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source


class OpenCv(Onnx):
    """NAME.onnx, which `cv2.dnn.readNetFromONNX` of the installed OpenCV reads: of one size for 4.x, of any for 5.x."""

    note = "the same file for its DNN module; one size for OpenCV 4"
    packages = ("onnxscript", "cv2")
    int8_packages = ()
    install = "degrid[export,opencv]"
    quantize = Exporter.quantize

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.onnx.

        Raises:
            UserError: OpenCV 4 and no size, or see `Onnx.write`.
        """
        version = self.library("cv2").__version__
        if source.takes.size is None and int(version.split(".")[0]) < 5:
            raise UserError(
                f"OpenCV {version} reads files of one size only; say which: --size 512x1024 "
                "(takes=ImageInput(size=...)), or install OpenCV 5"
            )
        super().write(source, path, facts)

    def open(self, path: Path) -> Opened:
        """Run on as many threads as OpenCV uses."""
        network = self.library("cv2").dnn.readNetFromONNX(str(path))

        def run(image: np.ndarray) -> Any:
            network.setInput(image)
            return network.forward()

        return run, stored_facts(path)
