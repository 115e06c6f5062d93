"""Training curves as picture files, and one HTML page that holds them all."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from degrid.analysis.curves import Curves, Validation, distinct
from degrid.analysis.figures import PICTURES, png, smoothed
from degrid.files import atomic_write, write_text
from degrid.types import UserError


def plot_runs(
    curves: Sequence[Curves], out: str | Path, smooth: float = 0.9, epoch_steps: float | None = None
) -> list[Path]:
    """Draw runs over each other: PNG files and index.html, a page with all of them and a table of final scores.

    What no run has (validations, learning rates, a known epoch) is left out.

    Args:
        out: the folder to write to; made if need be.
        smooth: weight of the past in the average of the loss, 0 (no smoothing) up to below 1.
        epoch_steps: optimiser steps per epoch, where the runs do not tell it or tell it wrongly.
    Returns:
        The files written; the page is the last.
    Raises:
        UserError: no runs, or a smoothing or epoch that cannot be.
    """
    if not curves:
        raise UserError("nothing to plot: expected at least one run")
    if not 0 <= smooth < 1:
        raise UserError(f"expected a smoothing of at least 0 and below 1, got {smooth}")
    if epoch_steps is not None and not epoch_steps >= 1:
        raise UserError(f"expected at least 1 step per epoch, got {epoch_steps}")
    names = distinct(run.name for run in curves)
    runs = [
        replace(run, name=name, epoch_steps=epoch_steps or run.epoch_steps)
        for run, name in zip(curves, names, strict=True)
    ]
    folder, files, figures = Path(out), [], []
    for stem, draw, caption in PICTURES:
        figure = draw(runs, smooth)
        if figure is None:
            continue
        data = png(figure)
        files.append(folder / f"{stem}.png")
        with atomic_write(files[-1]) as temporary:
            temporary.write_bytes(data)
        figures.append(_figure(data, caption))
    files.append(folder / "index.html")
    body = "\n".join(["<h1>Training curves</h1>", _table(runs, smooth), *figures])
    write_text(files[-1], _PAGE.replace("{body}", body))
    return files


def _figure(data: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _table(runs: Sequence[Curves], smooth: float) -> str:
    head = (
        "run",
        "last step",
        "final loss",
        "steps without a finite loss",
        "mIoU %",
        "pixel accuracy %",
        "best mIoU %",
    )
    lines = ["<table><tr>", *(f"<th>{cell}</th>" for cell in head), "</tr>"]
    for run in runs:
        losses = [value for value in smoothed(run.loss, smooth) if math.isfinite(value)]
        last = run.validations[-1] if run.validations else None
        best = max((found for found in run.validations if math.isfinite(found.miou)), key=_by_miou, default=None)
        cells = (
            run.name,
            str(run.steps[-1]) if run.steps else "-",
            f"{losses[-1]:.4f}" if losses else "-",
            str(len(run.loss) - len(losses)),
            _percent(last.miou if last else None),
            _percent(last.pixel_accuracy if last else None),
            f"{_percent(best.miou)} (step {best.step})" if best else "-",
        )
        lines += ["<tr>", *(f"<td>{html.escape(cell)}</td>" for cell in cells), "</tr>"]
    note = f"The final loss is smoothed with weight {smooth:g}; the scores are of the last and of the best validation."
    return "".join([*lines, "</table>", f"<p>{note}</p>"])


def _by_miou(found: Validation) -> float:
    return found.miou


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Training curves</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
</style>
<body>
{body}
</body>
</html>
"""
