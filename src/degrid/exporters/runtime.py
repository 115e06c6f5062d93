"""Exported models as modules, run by their own runtime, and whether they compute what the network computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from degrid.contracts import ExportedNetwork, bands_of, convention_of
from degrid.exporters.facts import FIXED
from degrid.exporters.graph import example_image
from degrid.exporters.table import OpenedFile, reason_of
from degrid.resize import resize
from degrid.types import UserError

SIZES = ((1, 3, 65, 97), (3, 3, 47, 33), (1, 3, 127, 130), (2, 3, 96, 160))
"""Batch, channels, height and width: odd and even, larger and smaller, higher and wider than the traced size. Where a
network takes other channels, they are as many."""
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
        self._file = OpenedFile(path)
        self.facts, self.exporter = self._file.facts, self._file.exporter
        self.labels = self.facts.labels
        self.output, self.resize, self.bands = self.facts.output, self.facts.resize, self.facts.bands

    def forward(self, image: Tensor) -> Tensor:
        """RGB [N,3,H,W], 0-255 -> ids, uint8 [N,H,W], or logits, float32 [N,C,h,w].

        Raises:
            UserError: the file is for images of another size, or another number of them.
        """
        pixels = image.detach().cpu().to(torch.uint8 if self.facts.input == "uint8" else torch.float32).contiguous()
        if not self._file.needs_torch:
            return torch.from_numpy(self._file(pixels.numpy()))
        self._file.check(tuple(image.shape))
        with torch.no_grad():
            made: Tensor = self._file.run(pixels)
        return made.to(torch.uint8) if self.output == "ids" else made


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
        model: the network in PyTorch, in evaluation mode, from RGB images [N,3,H,W] to logits.
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
            try:
                logits = model(image)
            except Exception as error:  # a user's network may raise anything
                raise UserError(
                    f"the network itself fails on images of {shape[2]}x{shape[3]} ({reason_of(error)}); say which size "
                    "it takes: --size 512x1024 (takes=ImageInput(size=...))"
                ) from error
            if logits.shape[1] != len(exported.labels):
                raise UserError(f"the network gives {logits.shape[1]} classes, and {len(exported.labels)} are named")
            try:
                made = exported(image)
            except Exception as error:  # the runtimes have exceptions of many kinds
                raise UserError(
                    f"the exported model fails on images of {shape} ({reason_of(error)}); {FIXED}"
                ) from error
            found.append(_compared(logits, made, shape, exported.output, convention_of(model)))
        wrong = found[-1].agreement < AGREEMENT or (found[-1].difference or 0) > exported.exporter.tolerance
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
