"""ExecuTorch, PyTorch's runtime for phones and other small machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import Exporter, Opened, append_facts, appended_facts, quiet

if TYPE_CHECKING:
    from degrid.exporters.graph import Source


class ExecuTorch(Exporter):
    """NAME.pte, its convolutions for XNNPACK, its memory planned for images of one size."""

    ending = ".pte"
    note = "one size"
    packages = ("executorch.exir", "executorch.runtime")
    install = "degrid[executorch]"
    any_size = False

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.pte."""
        with quiet():
            exir = self.library("executorch.exir")
            xnnpack = self.library("executorch.backends.xnnpack.partition.xnnpack_partitioner")
            lowered = exir.to_edge_transform_and_lower(source.program, partitioner=[xnnpack.XnnpackPartitioner()])
            path.write_bytes(lowered.to_executorch().buffer)
        append_facts(path, facts)

    def open(self, path: Path) -> Opened:
        """Run by ExecuTorch's own runtime, from PyTorch's tensors to PyTorch's tensors."""
        with quiet():
            program = self.library("executorch.runtime").Runtime.get().load_program(str(path))
        method: Any = program.load_method("forward")
        # The next image's output is written over this one's.
        return lambda image: method.execute([image])[0].clone(), appended_facts(path)
