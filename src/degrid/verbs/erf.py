"""degrid.erf: what an output of a network sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from degrid.analysis.field_numbers import effective_size, gridding_score, hole_ratio, mass_side, score_of_width
from degrid.analysis.page import png
from degrid.analysis.part import Part
from degrid.analysis.plots import draw_field, draw_fields
from degrid.analysis.reach import Following
from degrid.analysis.receptive_field import part_receptive_field
from degrid.arguments import checked
from degrid.chance import drawing_for_itself
from degrid.contracts import DressedConv, copied, unchanged
from degrid.files import atomic_write, write_bytes, write_json
from degrid.smoothing import smooth_dilated_convs
from degrid.smoothing.table import OPERATORS
from degrid.types import OnProgress, Progress
from degrid.verbs.look_inside import NetworkOrName, images_for, opened, with_random_weights

IMAGE = "image"
"""Stands for the beginning of a network in results."""


@dataclass(frozen=True)
class ReceptiveField:
    """What the centre of a feature map sees of an earlier map, or of the image.

    Attributes:
        network: its class.
        start, end: the layer whose input is seen, "image" for the image; and the layer whose output sees it, or the
            network's class.
        operator: the smoothing operator applied for the comparison; None for the unchanged network.
        field: float64 [H,W], mean absolute gradient, the centre in the middle.
        theoretical: height and width of what the layers allow it to see, within the map; `whole` says whether that is
            the whole map, so that it might be more on a larger image.
        box: side of the centred square with 95 % of the field, pixels of the start; `size`: side of a square as large
            as what is above 4.55 % of the peak.
        holes: see `degrid.analysis.hole_ratio`.
        scores: gridding score for each period that the dilated layers have at the start, in pixels; `score_of_width`:
            the same for a Gaussian as wide as the field.
        runs: number of images.
    """

    network: str
    start: str
    end: str
    operator: str | None
    field: np.ndarray = field(repr=False)
    theoretical: tuple[int, int]
    whole: bool
    box: int
    size: float
    holes: float
    scores: dict[int, float]
    score_of_width: dict[int, float]
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the field."""
        values = {name: value for name, value in vars(self).items() if name != "field"}
        return {**values, "theoretical": list(self.theoretical)}

    def __str__(self) -> str:
        more = " (all of it; perhaps more on a larger one)" if self.whole else ""
        height, width = self.theoretical
        lines = [
            f"{self.end} of {self.network}, from the {'image' if self.start == IMAGE else f'input of {self.start}'}"
            + (f", smoothed by {self.operator}" if self.operator else ""),
            f"can see         {height}x{width}{more}",
            f"95 % lie in     {self.box}x{self.box}",
            f"effective size  {self.size:.1f}, of what is above 4.55 % of the peak",
            f"holes           {100 * self.holes:.1f} % of the square with 95 %",
        ]
        for period, score in self.scores.items():
            lines.append(
                f"gridding score  {score:.4f} at period {period} (without a grid, as wide: "
                f"{self.score_of_width[period]:.4f})"
            )
        return "\n".join(lines)


@checked
def erf(
    model: NetworkOrName,
    layer: str = "",
    images: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    start: str = "",
    size: tuple[int, int] = (321, 321),
    runs: int = 8,
    random_weights: int | None = None,
    progress: OnProgress | None = None,
) -> ReceptiveField:
    """Measure the effective receptive field of the centre of a layer's map or a network's output, as `degrid erf` does.

    It is the mean |d y_centre / d x| over images and channels, in evaluation mode; one forward and one backward pass
    are in memory at a time.

    Args:
        model: any PyTorch network: the module, a folder, a recipe or "module:function"; see
            `degrid.verbs.look_inside.NetworkOrName`. It is not changed.
        layer: dotted name of the layer whose output is measured, such as encoder.layer4; "": what the network returns.
        images: image files, folders or patterns; by default noise.
        out: folder for the picture (erf.png), the numbers (erf.json) and the field (erf.npy); or the name of the .png,
            beside which the others are written.
        start: dotted name of the layer whose input is used instead of the image, such as the first dilated one.
        size: height and width of the images, odd for a true centre.
        runs: number of images.
        random_weights: a seed from which all weights are drawn again.
        progress: called after each image.
    Raises:
        UserError: no such model, layer or image; or the layer's output is not a map, or does not depend on the start.
    Source: Luo et al., NeurIPS 2016 (arXiv 1701.04128).
    """
    network = opened(model, random_weights)
    given = images_for(network, images, size, runs)
    found = measured(network, given, (start, layer), partial(_tell, progress, len(given), 0))
    if out is not None:
        title = str(found).partition("\n")[0]
        _write(Path(out), [found], draw_field(found.field, title, _unit(found)))
    return found


@checked
@drawing_for_itself
def erf_of_operators(
    model: NetworkOrName | None = None,
    layer: str = "",
    images: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    start: str = "",
    size: tuple[int, int] = (321, 321),
    runs: int = 8,
    operators: Sequence[str] = tuple(OPERATORS),
    random_weights: int | None = None,
    progress: OnProgress | None = None,
) -> tuple[ReceptiveField, ...]:
    """The effective receptive fields of a network whose dilated layers are smoothed by one operator after another.

    As `degrid erf --operators`. The weights stay the same. Learned operators that begin as the identity get random
    parameters, as they would have after training: 0.1 times numbers from 0 to 1 are added.

    Args:
        model: see `erf`, not smoothed yet; None for a single 3x3 convolution of rate 4 with equal weights, and a
            block of three bottleneck units of rate 4 with random ones, as in figures 8 and 9 of Wang and Ji (KDD 2018).
        operators: their names.
        layer, images, out, start, size, runs, random_weights, progress: see `erf`.
    Raises:
        UserError: see `erf` and `degrid.smooth_dilated_convs`.
    """
    if model is None:
        rows, size = {"one convolution": _one_convolution(), "a block of three units": _block()}, _SIDES
    else:
        rows = {"": opened(model, random_weights)}
    found: list[tuple[str, ReceptiveField]] = []
    total = runs * len(rows) * len(operators)
    for row, network in rows.items():
        for operator in operators:
            changed, before = _smoothed(network, operator), runs * len(found)
            given = images_for(changed, images, size, runs)
            ran = partial(_tell, progress, total, before)
            made = measured(changed, given, (start, layer), ran)
            found.append((row, replace(made, network=row or made.network, operator=operator)))
    if out is not None:
        panels = {row: {_title(each): each.field for name, each in found if name == row} for row in rows}
        unit = _unit(found[0][1]) if model is not None else "pixels of the map"
        _write(Path(out), [each for _, each in found], draw_fields(panels, unit))
    return tuple(each for _, each in found)


def _tell(progress: OnProgress | None, total: int, before: int, done: int) -> None:
    if progress:
        progress(Progress("receptive field", before + done, total))


_SIDES = (41, 41)
_RATE = 4


def _one_convolution() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3, padding=_RATE, dilation=_RATE, bias=False)
    nn.init.ones_(conv.weight)
    return conv


def _block() -> nn.Module:
    """Bottleneck units as in the last stage of DeepLab v2's ResNet, with few channels."""
    from torchvision.models.resnet import Bottleneck  # torchvision loads PyTorch's compiler, which sets the environment

    units = [Bottleneck(64, 16, dilation=_RATE) for _ in range(3)]
    return with_random_weights(nn.Sequential(nn.Conv2d(3, 64, 1), *units), 0)


def _smoothed(network: nn.Module, operator: str) -> nn.Module:
    """A copy with an operator, whose parameters are not at their start."""
    changed = copied(network)
    report = smooth_dilated_convs(changed, operator, lambda name, conv: True)
    random = torch.Generator().manual_seed(0)
    layers = dict(changed.named_modules())
    with torch.no_grad():
        for name, _ in report.replaced:
            for parameter in cast(DressedConv, layers[name]).operator_parameters():
                parameter.add_(0.1 * torch.rand(parameter.shape, generator=random).to(parameter))
    return changed


def measured(
    network: nn.Module, images: Sequence[Tensor], ends: tuple[str, str], ran: Callable[[int], None] | None = None
) -> ReceptiveField:
    """The field of a part of a network, and its numbers.

    Args:
        images: what the network takes, all of one size.
        ends: see `Part`, start and end.
        ran: called after each image with how many there have been.
    """
    values = part_receptive_field(Part(network, *ends), images, ran=ran)
    with unchanged(network):
        followed = Following(network, images[0], lambda name, layer: name == ends[0], ends[1])
    reach = followed.reach(ends[0], ends[1])
    seen, source = reach.box(), (reach.rows.shape[1], reach.columns.shape[1])
    periods = [period for period in followed.periods(source[0]) if period <= min(values.shape) // 2]
    return ReceptiveField(
        network=type(network).__name__,
        start=ends[0] or IMAGE,
        end=ends[1] or "the output",
        operator=None,
        field=values,
        theoretical=seen,
        whole=seen == source,
        box=mass_side(values),
        size=effective_size(values),
        holes=hole_ratio(values),
        scores={period: gridding_score(values, period) for period in periods},
        score_of_width={period: score_of_width(values, period) for period in periods},
        runs=len(images),
    )


def _unit(found: ReceptiveField) -> str:
    return "pixels of the image" if found.start == IMAGE else "pixels of the map"


def picture_in(out: Path) -> Path:
    """Where the picture is written: a .png that was asked for, or erf.png in a folder."""
    return out if out.suffix == ".png" else out / "erf.png"


def _write(out: Path, found: Sequence[ReceptiveField], picture: Figure) -> None:
    file = picture_in(out)
    write_bytes(file, png(picture))
    write_json(file.with_suffix(".json"), [each.to_dict() for each in found])
    with atomic_write(file.with_suffix(".npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.stack([each.field for each in found]))


def _title(found: ReceptiveField) -> str:
    score = next(iter(found.scores.items()), None)
    return f"{found.operator}" + (f"\ngridding score {score[1]:.3f}" if score else "")
