"""Core ML, for Apple's devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.exporters.exporter import KEY, Exporter, quiet
from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.exporters.graph import Source


class CoreMl(Exporter):
    """NAME.mlpackage, a folder: a program in float32 for images of one size, and class ids of int32.

    Runs on Apple's systems only: what was written is read back, and its inputs, outputs and weights are checked.
    """

    ending = ".mlpackage"
    note = "float32, one size; not run here"
    packages = ("coremltools",)
    install = "degrid[coreml]"
    inputs = ("float32",)
    any_size = False

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write NAME.mlpackage.

        Raises:
            UserError: what was written does not take and give what it must.
        """
        with quiet():
            tools = self.library("coremltools")
            program = source.program.run_decompositions({})
            made = tools.convert(
                program,
                outputs=[tools.TensorType(name=source.graph.output)],
                minimum_deployment_target=tools.target.iOS17,
                compute_precision=tools.precision.FLOAT32,
                skip_model_load=True,
            )
            made.user_defined_metadata[KEY] = facts
            made.save(str(path))
            found = _shapes(tools.utils.load_spec(str(path)).description)
        output = source.program.graph.output_node().args[0][0].meta["val"]
        wanted = {"image": ("FLOAT32", tuple(source.example.shape))}
        kind = "INT32" if source.graph.output == "ids" else "FLOAT32"
        wanted[source.graph.output] = (kind, tuple(output.shape))
        if found != wanted:
            raise UserError(f"coremltools wrote a file from and to {found}, expected {wanted}; nothing is written")

    def recognises(self, path: Path) -> bool:
        """A folder NAME.mlpackage."""
        return path.name.endswith(self.ending)


def _shapes(description: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> type and shape of each input and output."""
    found = {}
    for value in (*description.input, *description.output):
        array = value.type.multiArrayType
        found[value.name] = (type(array).ArrayDataType.Name(array.dataType), tuple(array.shape))
    return found
