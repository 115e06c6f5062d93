"""A model, the network of a recipe, or an exported file, in numbers. Imports torch only for a network."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.arguments import checked, later
from degrid.exporters.table import OpenedFile, find_exported, name_of
from degrid.lookup import counted, some
from degrid.model_places import is_named
from degrid.types import LabelSpace

if TYPE_CHECKING:
    from degrid.models import ModelInfo, Segmenter
else:
    ModelInfo = later("degrid.models.info", "ModelInfo")
    Segmenter = later("degrid.models.segmenter", "Segmenter")


@dataclass(frozen=True)
class FileInfo:
    """What an exported file says.

    Attributes:
        format: a name in `degrid.exporters.table.EXPORTERS`, or "module:Class".
        bytes: the size of its files.
        facts: classes, output, input and so on, see `degrid.exporters.facts.Facts`.
    """

    format: str
    bytes: int
    facts: dict[str, Any]
    lines: tuple[str, ...] = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": self.format, "bytes": self.bytes, **self.facts}

    def __str__(self) -> str:
        return "\n".join(self.lines)


@checked
def describe(
    model: Segmenter | str | os.PathLike[str], *, size: tuple[int, int] = (512, 512), num_classes: int = 21
) -> ModelInfo | FileInfo:
    """Layers, rates, parameters, multiply-adds, and which layers are smoothed; as `degrid info`.

    Args:
        model: a network, a model folder or a run folder; an exported file, which states its classes, what it takes and
            what it gives; or a recipe or run.json, whose network is built.
        size: height and width of the image that the multiply-adds are counted for, in pixels.
        num_classes: number of classes of a recipe's network.
    Raises:
        UserError: no such model or recipe.
    """
    if isinstance(model, str | os.PathLike) and find_exported(model):
        return _of_file(model)
    from degrid import recipes
    from degrid.chance import drawing_for_itself
    from degrid.model_folder import load
    from degrid.models import describe as describe_network
    from degrid.networks import build_model

    if isinstance(model, str | os.PathLike):
        if is_named(model) or Path(model).is_dir():
            model = load(model)
        else:
            untrained = dataclasses.replace(recipes.load(str(model), kind="model or recipe").model, pretrained=False)
            model = drawing_for_itself(build_model)(untrained, LabelSpace.of_size(num_classes))
    return describe_network(model, size)


def _of_file(path: str | os.PathLike[str]) -> FileInfo:
    file = OpenedFile(path)
    facts, size = file.facts, sum(each.stat().st_size for each in file.exporter.files(file.path))
    takes = f"{facts.takes}, {counted(facts.bands.count, 'band')}, {facts.input}"
    gives = "class ids at the image's size" if facts.output == "ids" else f"logits, to be enlarged ({facts.resize})"
    lines = (
        f"exported model {name_of(file.exporter)}, {size / 1e6:.1f} MB, by degrid {facts.version}",
        f"classes        {len(facts.classes)}: {some(facts.labels.names, 8)}",
        f"takes          {takes}",
        f"gives          {gives}",
    )
    return FileInfo(name_of(file.exporter), size, json.loads(facts.to_json()), lines)
