"""HTML pages that contain everything they show, and pictures written to a file or put on a page."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that is faint on white."""

LONG = 24
"""Characters of a cell of a table that are still kept in one line."""


class Raw(str):
    """HTML, to be taken as it is: text of any other class is escaped."""

    __slots__ = ()


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page: its title, as text, and its sections, as HTML."""
    heading = html.escape(title)
    return _PAGE.replace("{title}", heading).replace("{body}", "\n".join([f"<h1>{heading}</h1>", *sections]))


def text(words: str) -> str:
    """Words as HTML."""
    return words if isinstance(words, Raw) else html.escape(words)


def paragraph(words: str) -> str:
    """A paragraph of text."""
    return f"<p>{text(words)}</p>"


def lines(words: str) -> str:
    """Lines of text in a font of equal widths; on narrow screens they scroll."""
    return f'<pre class="wide">{text(words)}</pre>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a row of heads; long cells have several lines, and on narrow screens it scrolls."""
    heads = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = [f"<tr>{cells}</tr>" for cells in (heads, *("".join(map(_cell, row)) for row in rows))]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _cell(words: str) -> str:
    is_long = len(words) > LONG and not isinstance(words, Raw)
    return f'<td class="long">{text(words)}</td>' if is_long else f"<td>{text(words)}</td>"


def swatch(color: Sequence[int], name: str) -> Raw:
    """A class with its colour, R, G and B from 0 to 255."""
    return Raw(f'<span class="swatch" style="background:rgb({",".join(map(str, color))})"></span>{html.escape(name)}')


def grid(columns: int, cells: Sequence[str]) -> str:
    """Cells of HTML in that many columns; on narrow screens it scrolls."""
    inner = "".join(f"<div>{cell}</div>" for cell in cells)
    return f'<div class="wide"><div class="grid" style="--columns:{columns}">{inner}</div></div>'


def side_by_side(figures: Sequence[str]) -> str:
    """Figures in one row where the screen is wide enough."""
    return f'<div class="row">{"".join(figures)}</div>'


def folded(title: str, content: str) -> str:
    """HTML that a click on its title shows."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def figure(picture: str, caption: str) -> str:
    """A picture, as HTML, over its caption."""
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"


def image(file: bytes, description: str) -> str:
    """A PNG or JPEG file inside the page."""
    kind = "jpeg" if file.startswith(b"\xff\xd8") else "png"
    return f'<img alt="{html.escape(description)}" src="data:image/{kind};base64,{base64.b64encode(file).decode()}">'


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    # Long noisy lines overflow the renderer in one piece; a character missing in the font becomes a box, silently.
    with rc_context({"agg.path.chunksize": 10000}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
figure { margin: 2rem 0; } figcaption { color: #555; font-size: .9rem; }
figure img { max-width: 100%; height: auto; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; border: 1px solid #0003; }
.wide { overflow-x: auto; margin: 1rem 0; } td { white-space: nowrap; }
td.long { white-space: normal; min-width: 12rem; }
.grid { display: grid; grid-template-columns: repeat(var(--columns), minmax(9rem, 1fr)); gap: .4rem; }
.grid img { width: 100%; } .grid div { font-size: .85rem; overflow-wrap: anywhere; }
.legend span { white-space: nowrap; margin-right: 1.1em; } .legend .swatch { margin-right: .4em; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.row figure { margin: .5rem 0; }
summary { cursor: pointer; margin: .6rem 0; }
code { background: #f3f3f3; padding: .1em .3em; border-radius: 3px; }
</style>
<body>
{body}
</body>
</html>
"""
