"""LiteRT, once called TensorFlow Lite, for phones and other small machines."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import Exporter, Opened, append_facts, appended_facts, quiet
from degrid.threads import num_threads

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source


class LiteRt(Exporter):
    """NAME.tflite, made by litert-torch: images [N,3,H,W] as everywhere, of one size."""

    ending = ".tflite"
    note = "TensorFlow Lite; one size"
    packages = ("litert_torch", "ai_edge_litert")
    install = "degrid[litert]"
    any_size = False
    needs_torch = False

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.tflite."""
        from degrid.exporters.graph import traceable_padding

        litert_torch = self.library("litert_torch")
        # It prints each of its steps.
        printed = io.StringIO()
        with quiet(), traceable_padding(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            litert_torch.convert(source.graph, (source.example,)).export(str(path))
        append_facts(path, facts)

    def open(self, path: Path) -> Opened:
        """Run on as many threads as PyTorch would use."""
        interpreter = self.library("ai_edge_litert.interpreter").Interpreter(str(path), num_threads=num_threads())
        interpreter.allocate_tensors()
        given, made = (
            details[0]["index"] for details in (interpreter.get_input_details(), interpreter.get_output_details())
        )

        def run(image: np.ndarray) -> Any:
            interpreter.set_tensor(given, image)
            interpreter.invoke()
            return interpreter.get_tensor(made)

        return run, appended_facts(path)
