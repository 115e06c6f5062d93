"""What all pictures have in common: their colours, and the way into a file."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that is faint on white."""
DPI = 120


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    # Long noisy lines overflow the renderer in one piece; a character missing in the font becomes a box, silently.
    with rc_context({"agg.path.chunksize": 10000}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


def svg(figure: Figure) -> str:
    """The picture as an <svg> element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
