"""HTML pages that hold everything they show, and the way of a picture into a file or onto a page."""

from __future__ import annotations

import base64
import html
import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that is faint on white."""


class Raw(str):
    """HTML, to be taken as it is: text of any other class is escaped."""

    __slots__ = ()


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page: its title, as text, and its sections, as HTML."""
    heading = html.escape(title)
    return _PAGE.replace("{title}", heading).replace("{body}", "\n".join([f"<h1>{heading}</h1>", *sections]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a row of heads."""
    lines = []
    for tag, cells in [("th", head), *(("td", row) for row in rows)]:
        texts = [cell if isinstance(cell, Raw) else html.escape(cell) for cell in cells]
        lines.append(f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def figure(picture: str, caption: str) -> str:
    """A picture, as HTML, over its caption."""
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"


def image(png: bytes, description: str) -> str:
    """A PNG file inside the page."""
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    # Long noisy lines overflow the renderer in one piece; a character missing in the font becomes a box, silently.
    with rc_context({"agg.path.chunksize": 10000}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def svg(figure: Figure) -> str:
    """The picture as an <svg> element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def percent(value: float | None, digits: int = 1) -> str:
    """0.5 as "50.0"; "-" for what is not known or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; } figcaption { color: #555; font-size: .9rem; }
figure img, figure svg { max-width: 100%; height: auto; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; border: 1px solid #0003; }
.grid { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: .4rem; }
.grid img { width: 100%; image-rendering: pixelated; }
code { background: #f3f3f3; padding: .1em .3em; border-radius: 3px; }
</style>
<body>
{body}
</body>
</html>
"""
