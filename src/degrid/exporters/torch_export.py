"""PyTorch's own file of a traced network."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from degrid.exporters.exporter import KEY, Exporter, Opened, quiet

if TYPE_CHECKING:
    from degrid.exporters.graph import Source


class TorchExport(Exporter):
    """NAME.pt2, which `torch.export.load` reads."""

    ending = ".pt2"

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.pt2."""
        import torch

        # Given a path, PyTorch 2.15 ends the process where the disk is full.
        stream = io.BytesIO()
        torch.export.save(source.program, stream, extra_files={KEY: facts})
        path.write_bytes(stream.getbuffer())

    def open(self, path: Path) -> Opened:
        """Run by PyTorch."""
        import torch

        extra = {KEY: ""}
        with quiet():  # it logs a traceback before it raises
            program = torch.export.load(str(path), extra_files=extra)
        # Its guards are those of the traced sizes; what other sizes give was compared when it was written.
        return program.module(check_guards=False), extra[KEY]

    def recognises(self, path: Path) -> bool:
        """A .pt2 file without compiled code."""
        return super().recognises(path) and not holds_compiled_code(path)


def holds_compiled_code(path: Path) -> bool:
    """Whether a .pt2 file is a package of machine code by AOTInductor."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/data/aotinductor/" in name for name in archive.namelist())
