"""An exported file, opened by its runtime: with another than PyTorch's, arrays to arrays. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from degrid.exporters.facts import Facts
from degrid.exporters.table import EXPORTERS, find_opener
from degrid.lookup import counted
from degrid.types import UserError


class OpenedFile:
    """A network in a file, made ready to run.

    Args:
        path: the file, such as NAME.onnx; for a format of your own "my_module:MyExporter=FILE".
    Attributes:
        exporter, path: its format, and the file.
        facts: what the file says about its network.
        needs_torch: whether `run` is a function of PyTorch's tensors rather than of arrays.
        run: from images [N,3,H,W] as the file takes them to what it gives, unchecked; see `Exporter.open`.
    Raises:
        UserError: no such file, a damaged one, one that degrid did not write, or the runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        found = find_opener(path)
        if found is None:
            endings = dict.fromkeys(each.ending for each in EXPORTERS.values())
            raise UserError(f"expected an exported model that ends in {', '.join(endings)}, got {path}")
        exporter, file = found
        if not file.exists():
            raise UserError(f"no exported model {file}")
        try:
            run, text = exporter.open(file)
        except UserError:
            raise
        except Exception as error:  # the runtimes have exceptions of many kinds
            raise UserError(f"cannot read the exported model {file}: {reason_of(error)}") from error
        self.facts = Facts.read(text, file)
        self.exporter, self.path, self.needs_torch = exporter, file, exporter.needs_torch
        self.run: Callable[[Any], Any] = run

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images [N,C,H,W] of a shape that the file does not take.

        Raises:
            UserError: the file is for images of another size, or another number of them.
        """
        takes = self.facts.takes
        if takes.shape(shape) != shape:
            many = f"{counted(shape[0], 'image')} of {shape[-2]}x{shape[-1]}"
            raise UserError(f"this exported model takes {takes}, got {many}; resize, or export the model for that")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """RGB [N,3,H,W], 0-255 -> ids, uint8 [N,H,W], or logits, float32 [N,C,h,w]; for a runtime that takes arrays.

        Raises:
            UserError: see `check`.
        """
        self.check(image.shape)
        made: np.ndarray = self.run(np.ascontiguousarray(image, self.facts.input))
        # A copy: the memory may be the runtime's, which writes its next result there.
        return made.astype(np.uint8 if self.facts.output == "ids" else np.float32)


def reason_of(error: Exception) -> str:
    """What a runtime says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
