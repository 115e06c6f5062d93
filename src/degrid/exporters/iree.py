"""IREE: machine code for this kind of processor, in a file for a small runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import Exporter, Opened, append_facts, appended_facts, quiet
from degrid.exporters.onnx import OPSETS, Onnx
from degrid.lookup import shortened
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source


class Iree(Exporter):
    """NAME.vmfb, compiled for the CPU from ONNX; the number of images is fixed, their size may be free."""

    ending = ".vmfb"
    note = "a fixed number of images"
    packages = ("onnxscript", "onnx", "iree.compiler", "iree.runtime")
    install = "degrid[export,iree]"
    any_batch = False
    needs_torch = False

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.vmfb.

        Raises:
            UserError: the compiler fails, or see `Onnx.write`.
        """
        compiler = self.library("iree.compiler")
        half, text = path.with_suffix(".onnx"), path.with_suffix(".mlir")
        words = ["-m", "iree.compiler.tools.import_onnx", str(half), "-o", str(text), "--opset-version", str(OPSETS[0])]
        try:
            Onnx().write(source, half, facts)
            deep_to_space(self.library("onnx"), half)
            with quiet():
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                compiler.compile_file(
                    str(text),
                    input_type="onnx",
                    target_backends=["llvm-cpu"],
                    extra_args=["--iree-llvmcpu-target-cpu=host"],
                    output_file=str(path),
                )
        except (subprocess.CalledProcessError, compiler.CompilerToolError) as error:
            lines = str(getattr(error, "stderr", None) or error).strip().splitlines() or [""]
            reason = next((line for line in lines if "error:" in line), lines[-1])
            raise UserError(f"IREE's compiler fails on this network: {shortened(reason, 200)}") from error
        finally:
            half.unlink(missing_ok=True)
            text.unlink(missing_ok=True)
        append_facts(path, facts)

    def open(self, path: Path) -> Opened:
        """Run on the threads that IREE chooses."""
        module = self.library("iree.runtime").load_vm_flatbuffer_file(str(path), driver="local-task")

        def run(image: np.ndarray) -> Any:
            made = module.main_graph(image).to_host()
            return made.view("uint8") if made.dtype.name == "int8" else made  # its integer types carry no sign

        return run, appended_facts(path)


def deep_to_space(onnx: Any, path: Path) -> None:
    """In a file of ONNX, in place: DepthToSpace in the mode CRD as one in the mode DCR of channels in that order.

    IREE 3.13 gets the first wrong (findings/iree_depth_to_space.sh).
    """
    import numpy as np

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    nodes = []
    for node in model.graph.node:
        given = {each.name: each for each in node.attribute}
        if node.op_type == "DepthToSpace" and given["mode"].s == b"CRD":
            channels = shapes[node.input[0]][1].dim_value
            order = np.arange(channels).reshape(-1, given["blocksize"].i ** 2).T.ravel()
            model.graph.initializer.append(onnx.numpy_helper.from_array(order, f"{node.output[0]}_order"))
            names = [node.input[0], model.graph.initializer[-1].name], [f"{node.output[0]}_ordered"]
            nodes.append(onnx.helper.make_node("Gather", *names, axis=1))
            node.input[0], given["mode"].s = names[1][0], b"DCR"
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
