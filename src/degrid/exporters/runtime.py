"""Exported models as modules: run by their own runtime, used like any network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from degrid.contracts import ExportedNetwork
from degrid.exporters.exporter import Exporter
from degrid.exporters.table import EXPORTERS, find_opener
from degrid.types import LabelSpace, UserError


@dataclass(frozen=True)
class Facts:
    """What a file says about its network.

    classes: name and colour of each. output: "ids", uint8 [N,H,W] at the image's size, or "logits", float32 [N,C,h,w].
    input: type of the pixels, RGB [N,3,H,W], 0-255: "uint8" or "float32". resize: how logits are enlarged. version: of
    degrid. size: height and width of the one image that it takes; None if it takes any number of any size.
    """

    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    output: str
    input: str
    resize: str
    version: str
    kind: str = "model"
    size: tuple[int, int] | None = None

    @classmethod
    def read(cls, text: str | None, path: Path) -> Facts:
        """From the JSON in a file.

        Raises:
            UserError: there is none, or it has another form.
        """
        try:
            values = json.loads(text or "")
            classes = tuple((name, tuple(color)) for name, color in values.pop("classes"))
            size = values.pop("size", None)
            return cls(classes, **values, size=size and (size[0], size[1]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} was not written by degrid export: it does not say its classes and output"
            ) from error

    def to_json(self) -> str:
        """ASCII; the size is left out where there is none, so that earlier versions can read it."""
        values = asdict(self)
        if self.size is None:
            del values["size"]
        return json.dumps(values, ensure_ascii=True)

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return LabelSpace(tuple(name for name, _ in self.classes), tuple(color for _, color in self.classes))


class ExportedModel(ExportedNetwork):
    """A network in a file, from RGB images [N,3,H,W] (0-255) to logits or class ids, on the CPU.

    Args:
        path: the file, such as NAME.onnx; for a format of your own "my_module:MyExporter=FILE".
    Raises:
        UserError: no such file, a damaged one, one that degrid did not write, or the runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        found = find_opener(path)
        if found is None:
            endings = dict.fromkeys(each.ending for each in EXPORTERS.values())
            raise UserError(f"expected an exported model that ends in {', '.join(endings)}, got {path}")
        exporter, file = found
        if not file.exists():
            raise UserError(f"no exported model {file}")
        run, text = _opened(exporter, file)
        # Wrapped: a program of torch.export is a module, but cannot be put into evaluation mode as a part of this one.
        self._run: Callable[[Tensor], Tensor] = lambda image: run(image)
        self.facts = Facts.read(text, file)
        self.labels, self.output, self.resize = self.facts.labels, self.facts.output, self.facts.resize

    def forward(self, image: Tensor) -> Tensor:
        """RGB [N,3,H,W], 0-255 -> ids, uint8 [N,H,W], or logits, float32 [N,C,h,w].

        Raises:
            UserError: the file is for one image of another size.
        """
        size = self.facts.size
        if size and (len(image), *image.shape[-2:]) != (1, *size):
            raise UserError(
                f"this exported model takes one image of {size[0]}x{size[1]}, got {len(image)} of "
                f"{image.shape[-2]}x{image.shape[-1]}; resize it, or export the model for that size"
            )
        kind = torch.uint8 if self.facts.input == "uint8" else torch.float32
        with torch.no_grad():
            return self._run(image.detach().cpu().to(kind).contiguous())


def _opened(exporter: Exporter, file: Path) -> tuple[Callable[[Tensor], Tensor], str | None]:
    try:
        return exporter.open(file)
    except UserError:
        raise
    except Exception as error:  # the runtimes have exceptions of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read the exported model {file}: {reason[:200]}") from error
