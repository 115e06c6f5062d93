"""The options of `degrid eval` and `degrid predict` that say how often an image is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.engine.looks import Inference

Scales = Annotated[str, typer.Option(help="Scales of the image to fuse, such as 0.5,0.75,1,1.25,1.5,1.75.")]
Flip = Annotated[bool, typer.Option("--flip", help="Also look at the mirrored image.")]
Fusion = Annotated[str, typer.Option(help="mean of the probabilities (v3), or max of the logits (v2).")]
Window = Annotated[str | None, typer.Option(help="Slide a window of HEIGHTxWIDTH over the image, for large images.")]
Overlap = Annotated[float, typer.Option(help="Share of a window that the next one covers again.")]
Crf = Annotated[bool, typer.Option("--crf", help="Sharpen by a dense CRF, with DeepLab v2's parameters.")]


def inference(scales: str, flip: bool, fusion: str, window: str | None, overlap: float, crf: bool) -> Inference:
    """The options as one value.

    Raises:
        UserError: a value of another form, or out of its range.
    """
    from degrid.assemble import parse_size
    from degrid.engine.crf import CRF
    from degrid.engine.looks import Inference

    try:
        factors = tuple(float(part) for part in scales.split(","))
    except ValueError as error:
        raise UserError(
            f'--scales: expected numbers separated by commas, such as 0.75,1,1.25; got "{scales}"'
        ) from error
    return Inference(factors, flip, fusion, parse_size(window) if window else None, overlap, CRF() if crf else None)
