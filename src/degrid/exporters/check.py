"""Whether an exported model says what the model says, at sizes that it was not traced at."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from degrid.exporters.graph import example_image
from degrid.resize import convention_of, resize
from degrid.types import UserError

SIZES = ((1, 3, 65, 97), (3, 3, 47, 33), (1, 3, 127, 130), (2, 3, 96, 160))
"""Batch, channels, height and width: odd and even, larger and smaller, higher and wider than the traced size."""
TOLERANCE = 1e-4
"""Most difference of logits, over the largest logit."""
AGREEMENT = 0.999
"""Least share of pixels with the same class; the others have two classes that are as good as equal."""


@dataclass(frozen=True)
class Comparison:
    """One size: what came out differs by at most `difference` (logits, over the largest; None for class ids), and the
    best class is the same on a share `agreement` of the pixels."""

    size: tuple[int, ...]
    difference: float | None
    agreement: float

    def __str__(self) -> str:
        count, _, height, width = self.size
        logits = "" if self.difference is None else f"logits differ by {self.difference:.1e} of the largest, "
        return f"{count} x {height}x{width}: {logits}same class on {100 * self.agreement:.2f} % of the pixels"


def compared(model: nn.Module, exported: nn.Module, output: str, exact: bool = True) -> list[Comparison]:
    """Run both on images of several sizes.

    Args:
        model: the model in PyTorch, in evaluation mode.
        exported: what its file gives.
        output: "ids" or "logits".
        exact: refuse more difference than rounding makes; int8 is judged by its mIoU instead.
    Raises:
        UserError: the exported model fails at a size, gives another shape, or other numbers.
    """
    found = []
    for seed, size in enumerate(SIZES):
        image = example_image(size, seed=seed)
        with torch.no_grad():
            logits = model(image)
            try:
                made = exported(image)
            except Exception as error:  # the runtimes have exceptions of many kinds
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"the exported model fails on images of {size}: {reason[:200]}") from error
            found.append(_compared(logits, made, size, output, convention_of(model)))
        wrong = found[-1].agreement < AGREEMENT or (found[-1].difference or 0) > TOLERANCE
        if exact and wrong:
            raise UserError(f"the exported model computes something else ({found[-1]}); nothing is written")
    return found


def must_run(path: Path) -> None:
    """Run an exported model in a process of its own first: int8 code of a runtime may take the process down with it.

    Raises:
        UserError: that process crashed.
    """
    run = (
        "import sys, pathlib, degrid.exporters.check as check, degrid.exporters.runtime as runtime; "
        "model = runtime.ExportedModel(pathlib.Path(sys.argv[1])); "
        "[model(check.example_image(size)) for size in check.SIZES]"
    )
    done = subprocess.run([sys.executable, "-c", run, str(path)], capture_output=True)
    if done.returncode < 0:
        raise UserError(
            f"the runtime crashes on this int8 model here ({signal.Signals(-done.returncode).name}); nothing "
            "is written. Take the other of onnx and openvino, or stay with float32"
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
