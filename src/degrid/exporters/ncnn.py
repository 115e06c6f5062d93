"""ncnn, for phones and other small machines."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import Exporter, Opened, append_facts, appended_facts
from degrid.exporters.onnx import Onnx
from degrid.lookup import shortened
from degrid.threads import num_threads
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source


class Ncnn(Exporter):
    """NAME.param and NAME.bin, made by pnnx from ONNX: the logits of one image of one size.

    ncnn has no argmax over classes, and at another size than the file's it gives wrong numbers without a word.
    """

    ending = ".param"
    note = "logits, float32, one size"
    packages = ("onnxscript", "pnnx", "ncnn")
    install = "degrid[export,ncnn]"
    inputs = ("float32",)
    outputs = ("logits",)
    any_size = False
    needs_torch = False

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.param and NAME.bin.

        Raises:
            UserError: more than one image, the converter fails, or see `Onnx.write`.
        """
        if source.takes.fixed_batch != 1:
            raise UserError(f"ncnn files take one image, not {source.takes.fixed_batch}; leave out --batch (batch=...)")
        with TemporaryDirectory(dir=path.parent) as place:
            Onnx().write(source, Path(place) / "m.onnx", facts)
            words = [self.library("pnnx").EXEC_PATH, "m.onnx", "fp16=0"]
            done = subprocess.run(words, cwd=place, capture_output=True, text=True, errors="replace")
            for file in self.files(path):
                made = Path(place) / f"m.ncnn{file.suffix}"
                if not made.exists():
                    last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
                    raise UserError(f"pnnx, ncnn's converter, fails on this network: {shortened(last, 200)}")
                made.replace(file)
        append_facts(path.with_suffix(".bin"), facts)

    def open(self, path: Path) -> Opened:
        """Run on as many threads as PyTorch would use, in float32."""
        import numpy as np

        ncnn = self.library("ncnn")
        network = ncnn.Net()
        options = network.opt
        options.num_threads = num_threads()
        options.use_vulkan_compute = options.use_bf16_storage = False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        weights = path.with_suffix(".bin")
        if network.load_param(str(path)) or network.load_model(str(weights)):
            raise ValueError("it has layers that ncnn does not know")

        def run(image: np.ndarray) -> Any:
            extractor = network.create_extractor()
            # A Mat of an array does not keep it; a clone has memory of its own.
            extractor.input("in0", ncnn.Mat(image[0]).clone())
            failed, made = extractor.extract("out0")
            if failed:
                raise ValueError(f"ncnn ends with {failed}")
            return np.array(made)[None]

        return run, appended_facts(weights)

    def files(self, path: Path) -> list[Path]:
        """NAME.bin and NAME.param."""
        return [path.with_suffix(".bin"), path]
