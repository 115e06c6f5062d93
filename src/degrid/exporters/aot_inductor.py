"""Machine code for this kind of machine, made by torch.compile's C++ back end (AOTInductor)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import KEY, Exporter, Opened, quiet
from degrid.exporters.torch_export import holds_compiled_code, must_be_whole
from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.exporters.graph import Source


class AotInductor(Exporter):
    """NAME.pt2, a package that `torch._inductor.aoti_load_package` reads."""

    ending = ".pt2"
    note = "needs a C++ compiler"

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Compile, and write NAME.pt2.

        Raises:
            UserError: there is no C++ compiler.
        """
        from torch._inductor import aoti_compile_and_package
        from torch._inductor.exc import InvalidCxxCompiler

        settings = {"aot_inductor.metadata": {KEY: facts}}
        try:
            with quiet():
                aoti_compile_and_package(source.program, package_path=str(path), inductor_configs=settings)
        except InvalidCxxCompiler as error:
            raise UserError(
                "aot-inductor needs a C++ compiler, such as g++, and there is none; export to onnx"
            ) from error

    def open(self, path: Path) -> Opened:
        """Run the compiled code."""
        from torch._inductor import aoti_load_package

        must_be_whole(path)
        package: Any = aoti_load_package(str(path))
        return package, package.get_metadata().get(KEY)

    def recognises(self, path: Path) -> bool:
        """A .pt2 file with compiled code."""
        return super().recognises(path) and holds_compiled_code(path)
