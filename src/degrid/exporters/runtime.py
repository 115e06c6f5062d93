"""Exported models as modules, run by their own runtime, and whether they compute what the network computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from degrid.contracts import ExportedNetwork, bands_of, convention_of
from degrid.exporters.facts import Facts
from degrid.exporters.graph import example_image
from degrid.exporters.table import EXPORTERS, find_opener
from degrid.lookup import counted
from degrid.resize import resize
from degrid.types import UserError

SIZES = ((1, 3, 65, 97), (3, 3, 47, 33), (1, 3, 127, 130), (2, 3, 96, 160))
"""Batch, channels, height and width: odd and even, larger and smaller, higher and wider than the traced size. Where a
network takes other channels, they are as many."""
TOLERANCE = 1e-4
"""Largest difference of logits that is accepted, relative to the largest logit."""
AGREEMENT = 0.999
"""Smallest fraction of pixels that must get the same class; on the others two classes are practically equal."""


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
        try:
            run, text = exporter.open(file)
        except UserError:
            raise
        except Exception as error:  # the runtimes have exceptions of many kinds
            raise UserError(f"cannot read the exported model {file}: {_reason(error)}") from error
        # Wrapped: a program of torch.export is a module, but cannot be put into evaluation mode as a part of this one.
        self._run: Callable[[Tensor], Tensor] = lambda image: run(image)
        self.facts = Facts.read(text, file)
        self.labels = self.facts.labels
        self.output, self.resize, self.bands = self.facts.output, self.facts.resize, self.facts.bands

    def forward(self, image: Tensor) -> Tensor:
        """RGB [N,3,H,W], 0-255 -> ids, uint8 [N,H,W], or logits, float32 [N,C,h,w].

        Raises:
            UserError: the file is for images of another size, or another number of them.
        """
        takes = self.facts.takes
        if takes.shape(tuple(image.shape)) != tuple(image.shape):
            many = f"{counted(len(image), 'image')} of {image.shape[-2]}x{image.shape[-1]}"
            raise UserError(f"this exported model takes {takes}, got {many}; resize, or export the model for that")
        kind = torch.uint8 if takes.type == "uint8" else torch.float32
        with torch.no_grad():
            made = self._run(image.detach().cpu().to(kind).contiguous())
        return made.to(torch.uint8) if self.output == "ids" else made


def _reason(error: Exception) -> str:
    """What a runtime says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass(frozen=True)
class Comparison:
    """What was found on images of one size, N, C, H, W.

    difference: the largest difference of logits, relative to the largest logit; None where the file gives class ids.
    agreement: the fraction of pixels with the same best class, 0..1.
    """

    size: tuple[int, ...]
    difference: float | None
    agreement: float

    def __str__(self) -> str:
        count, _, height, width = self.size
        logits = "" if self.difference is None else f"logits differ by {self.difference:.1e} of the largest, "
        return f"{count} x {height}x{width}: {logits}same class on {100 * self.agreement:.2f} % of the pixels"


def compared(model: nn.Module, exported: ExportedModel, exact: bool = True) -> list[Comparison]:
    """Run both on images of the four `SIZES`, or twice of the only one that the file takes.

    Args:
        model: the network in PyTorch, in evaluation mode.
        exact: refuse a difference larger than rounding makes; int8 is judged by its mIoU instead.
    Raises:
        UserError: the exported model fails at a size, or its output has another shape or other values.
    """
    found = []
    takes = exported.facts.takes
    for seed, size in enumerate(SIZES[:2] if takes.size else SIZES):
        shape = takes.shape((size[0], bands_of(model).count, *size[2:]))
        image = example_image(shape, seed=seed)
        with torch.no_grad():
            logits = model(image)
            try:
                made = exported(image)
            except Exception as error:  # the runtimes have exceptions of many kinds
                raise UserError(f"the exported model fails on images of {shape}: {_reason(error)}") from error
            found.append(_compared(logits, made, shape, exported.output, convention_of(model)))
        wrong = found[-1].agreement < AGREEMENT or (found[-1].difference or 0) > TOLERANCE
        if exact and wrong:
            raise UserError(f"the exported model computes something else ({found[-1]}); nothing is written")
    return found


def must_run(model: str) -> None:
    """Run a file in a process of its own first: int8 code of a runtime may take the process down with it.

    Raises:
        UserError: that process crashed.
    """
    run = (
        "import sys, degrid.exporters.runtime as runtime; model = runtime.ExportedModel(sys.argv[1]); "
        "[model(runtime.example_image((size[0], model.bands.count, *size[2:]))) for size in runtime.SIZES]"
    )
    done = subprocess.run([sys.executable, "-c", run, model], capture_output=True)
    if done.returncode < 0:
        raise UserError(
            f"the runtime crashes on this int8 model here ({signal.Signals(-done.returncode).name}); nothing "
            "is written. Try another format with int8, or stay with float32"
        )


def _compared(logits: Tensor, made: Tensor, size: tuple[int, ...], output: str, convention: str) -> Comparison:
    ids = resize(logits, size[-2:], convention).argmax(1)
    wanted = ids if output == "ids" else logits
    if made.shape != wanted.shape:
        raise UserError(
            f"the exported model gives {list(made.shape)} for images of {list(size)}, expected {list(wanted.shape)}"
        )
    if output == "ids":
        return Comparison(size, None, (made == ids).float().mean().item())
    difference = ((made - logits).abs().max() / logits.abs().max()).item()
    agreement = (resize(made, size[-2:], convention).argmax(1) == ids).float().mean().item()
    return Comparison(size, difference, agreement)
