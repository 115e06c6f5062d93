"""PyTorch's own file of a traced network."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import KEY, Exporter, Opened, quiet

if TYPE_CHECKING:
    from degrid.exporters.graph import Source


class TorchExport(Exporter):
    """NAME.pt2, which `torch.export.load` reads."""

    ending = ".pt2"

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.pt2."""
        import torch

        program: Any = source.program
        # Tracing makes conditions of what it happened to see, such as an odd number of rows, and loaded files refuse
        # other images. The network asks for none of them; what it gives at other sizes is compared.
        program._guards_code = []
        for side, bounds in program.range_constraints.items():
            program.range_constraints[side] = type(bounds)(min(2, bounds.lower), bounds.upper)  # 2 means any
        # Given a path, PyTorch 2.15 ends the process where the disk is full.
        stream = io.BytesIO()
        torch.export.save(program, stream, extra_files={KEY: facts})
        path.write_bytes(stream.getbuffer())

    def open(self, path: Path) -> Opened:
        """Run by PyTorch."""
        import torch

        must_be_whole(path)
        extra = {KEY: ""}
        with quiet():  # it logs a traceback before it raises
            program = torch.export.load(str(path), extra_files=extra)
        # Files of earlier versions have conditions that only the traced sizes satisfy.
        return program.module(check_guards=False), extra[KEY]

    def recognises(self, path: Path) -> bool:
        """A .pt2 file without compiled code."""
        return super().recognises(path) and not holds_compiled_code(path)


def must_be_whole(path: Path) -> None:
    """Compare the file's parts with their check sums, which PyTorch does not do: damaged weights are numbers, too.

    Raises:
        BadZipFile: a part is another than was written, or the file ends too early.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged; copy or export the file again")


def holds_compiled_code(path: Path) -> bool:
    """Whether a .pt2 file is a package of machine code by AOTInductor."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/data/aotinductor/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):  # damaged: opening it reports that
        return False
