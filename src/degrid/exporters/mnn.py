"""MNN, for phones and other small machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import Exporter, Opened, append_facts, appended_facts
from degrid.exporters.onnx import Onnx
from degrid.lookup import shortened
from degrid.threads import num_threads
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source


class Mnn(Exporter):
    """NAME.mnn, made by MNN's converter from ONNX."""

    ending = ".mnn"
    packages = ("onnxscript", "MNN")
    install = "degrid[export,mnn]"
    needs_torch = False
    # Its convolutions by Winograd's algorithm round more coarsely: 1e-4 of the largest logit is usual.
    tolerance = 5e-4

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.mnn.

        Raises:
            UserError: the converter fails, or see `Onnx.write`.
        """
        half = path.with_suffix(".onnx")
        words = ["-f", "ONNX", "--modelFile", str(half), "--MNNModel", str(path), "--bizCode", "degrid"]
        try:
            Onnx().write(source, half, facts)
            # A process of its own, since the converter prints.
            done = subprocess.run(
                [sys.executable, "-m", "MNN.tools.mnnconvert", *words], capture_output=True, text=True, errors="replace"
            )
        finally:
            half.unlink(missing_ok=True)
        if done.returncode or not path.exists():
            last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UserError(f"MNN's converter fails on this network: {shortened(last, 200)}")
        append_facts(path, facts)

    def open(self, path: Path) -> Opened:
        """Run on as many threads as PyTorch would use, in float32."""
        import numpy as np

        nn, expr = self.library("MNN.nn"), self.library("MNN.expr")
        how = {"backend": "CPU", "numThread": num_threads(), "precision": "high"}
        manager = nn.create_runtime_manager((how,))
        network = nn.load_module_from_file(str(path), [], [], runtime_manager=manager)

        def run(image: np.ndarray) -> Any:
            # It accepts floats in an array, but bytes only in a list.
            kind, values = (expr.uint8, image.ravel().tolist()) if image.dtype == np.uint8 else (expr.float, image)
            made = network.forward([expr.const(values, list(image.shape), expr.NCHW, kind)])[0]
            made = expr.convert(made, expr.NCHW) if made.data_format == expr.NC4HW4 else made
            return np.array(made.read()).reshape(made.shape)

        return run, appended_facts(path)
