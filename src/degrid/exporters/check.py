"""Whether an exported model computes what the network computes, at sizes other than the traced one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from degrid.contracts import convention_of
from degrid.exporters.graph import example_image
from degrid.resize import resize
from degrid.types import UserError

SIZES = ((1, 3, 65, 97), (3, 3, 47, 33), (1, 3, 127, 130), (2, 3, 96, 160))
"""Batch, channels, height and width: odd and even, larger and smaller, higher and wider than the traced size."""
TOLERANCE = 1e-4
"""Largest difference of logits that is accepted, relative to the largest logit."""
AGREEMENT = 0.999
"""Smallest fraction of pixels that must get the same class; on the others two classes are practically equal."""


@dataclass(frozen=True)
class Comparison:
    """What was found on images of one size.

    size: of the images, N, C, H, W.
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


def compared(
    model: nn.Module, exported: nn.Module, output: str, sizes: Sequence[tuple[int, ...]] = SIZES, exact: bool = True
) -> list[Comparison]:
    """Run both on images of several sizes.

    Args:
        model: the network in PyTorch, in evaluation mode.
        exported: what was read from the file.
        output: what the file gives, "ids" or "logits".
        sizes: of the images, each N, C, H, W.
        exact: refuse a difference larger than rounding makes; int8 is judged by its mIoU instead.
    Raises:
        UserError: the exported model fails at a size, or its output has another shape or other values.
    """
    found = []
    for seed, size in enumerate(sizes):
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


def must_run(model: str) -> None:
    """Run an exported model in a process of its own first: int8 code of a runtime may take the process down with it.

    Args:
        model: the file, as `runtime.ExportedModel` takes it.
    Raises:
        UserError: that process crashed.
    """
    run = (
        "import sys, degrid.exporters.check as check, degrid.exporters.runtime as runtime; "
        "model = runtime.ExportedModel(sys.argv[1]); "
        "[model(check.example_image(size)) for size in check.SIZES]"
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
