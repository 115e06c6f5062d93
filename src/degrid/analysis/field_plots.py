"""Receptive fields as pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from degrid.analysis.field_numbers import mass_side, radial_profile, spectrum
from degrid.analysis.page import COLORS

_DECADES = 4
"""Range of a logarithmic map, powers of ten below the peak."""


def draw_field(field: np.ndarray, title: str, unit: str = "pixels of the image") -> Figure:
    """A field from four sides: its map, its map on a logarithmic scale, its radial profile and its spectrum.

    The first three end where nothing is left that the logarithmic scale could show.

    Args:
        field: [H,W], not negative, centre at [H//2, W//2].
        unit: of its positions.
    """
    drawing = Figure(figsize=(9.6, 9), layout="constrained")
    (plain, logarithmic), (profile, frequencies) = drawing.subplots(2, 2)
    side, reach = mass_side(field), _reach(field)
    drawing.suptitle(f"{title}\n95 % of the influence in the white square, side {side}")
    for axes, values, name in (
        (plain, np.sqrt(field / field.max()), "square root of the influence"),
        (logarithmic, np.log10(np.maximum(field / field.max(), 10.0**-_DECADES)), "logarithm of the influence"),
    ):
        shown = _map(axes, values, unit)
        axes.set(title=name, xlabel=f"offset, {unit}")
        edge = np.array([-side, side, side, -side, -side]) / 2
        axes.plot(edge, np.roll(edge, 1), color="white", linewidth=0.8, scalex=False, scaley=False)
        height, width = (min(reach, whole // 2) + 0.5 for whole in field.shape)
        axes.set(xlim=(-width, width), ylim=(height, -height))
        if axes is logarithmic:
            drawing.colorbar(shown, ax=axes, shrink=0.8, label="powers of ten below the peak")
    means = radial_profile(field)[: reach + 1]
    profile.plot(means / means.max(), color=COLORS[0], marker="." if len(means) < 60 else "")
    lowest = max(10.0**-_DECADES, means[means > 0].min() / means.max() / 2)
    profile.set(title="mean influence at a distance", xlabel=f"distance, {unit}", ylim=(lowest, 2))
    profile.set_yscale("log")
    profile.grid(alpha=0.3, which="both")
    power = np.log10(np.maximum(spectrum(field), 10.0**-_DECADES))
    shown = frequencies.imshow(power, cmap="magma", extent=(-0.5, 0.5, 0.5, -0.5), interpolation="nearest")
    frequencies.set(title="spectrum; a grid has peaks beside the centre", xlabel="cycles per pixel", ylabel="")
    drawing.colorbar(shown, ax=frequencies, shrink=0.8, label="powers of ten below the centre")
    return drawing


def draw_fields(
    rows: Mapping[str, Mapping[str, np.ndarray]], unit: str = "feature pixels", panel: float = 2.0
) -> Figure:
    """Several fields beside one another, square-root scale.

    Args:
        rows: by the name of a row, the fields of its panels by their titles; fields as for `draw_field`.
        unit: of their positions.
        panel: side of a panel, inches.
    """
    columns = max(len(fields) for fields in rows.values())
    drawing = Figure(figsize=(0.6 + panel * max(2, columns), 0.4 + (panel + 0.4) * len(rows)), layout="constrained")
    panels = drawing.subplots(len(rows), columns, squeeze=False, sharex="row", sharey="row")
    for line, (name, fields) in zip(panels, rows.items(), strict=True):
        for axes in line[len(fields) :]:
            axes.set_axis_off()
        for axes, (title, field) in zip(line, fields.items(), strict=False):
            _map(axes, np.sqrt(field / field.max()), unit)
            axes.set_title(title, fontsize=10)
        line[0].set_ylabel(name, fontsize=11)
    drawing.supxlabel(f"offset from the centre, {unit}", fontsize=10)
    return drawing


def _reach(field: np.ndarray) -> int:
    """How far from the centre, along rows or columns, a field is above the least that a logarithmic map shows."""
    rows, columns = np.nonzero(field > field.max() * 10.0**-_DECADES)
    height, width = (side // 2 for side in field.shape)
    return max(1, int(np.abs(rows - height).max()), int(np.abs(columns - width).max()))


def _map(axes: Axes, values: np.ndarray, unit: str) -> AxesImage:
    """The values around the centre, by their offset from it."""
    height, width = (side / 2 for side in values.shape)
    shown = axes.imshow(values, cmap="magma", extent=(-width, width, height, -height), interpolation="nearest")
    return shown
