"""degrid.gridding: whether a network suffers from gridding, how many networks it splits into, and what would help."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from degrid.analysis.field_numbers import (
    checkerboard_energy,
    gridding_score,
    hole_ratio,
    independent_networks,
    phase_exchange,
    score_of_width,
)
from degrid.analysis.part import Part, stride_between
from degrid.analysis.reach import Following, is_dilated, rates_of
from degrid.analysis.receptive_field import effective_receptive_field, part_receptive_field
from degrid.arguments import checked
from degrid.contracts import DressedConv, copied, unchanged
from degrid.lookup import some
from degrid.smoothing import rate_at_most, smooth_dilated_convs
from degrid.types import OnProgress, Progress, UserError
from degrid.verbs.look_inside import NetworkOrName, images_for, opened

_PAPER_RATE = 4
"""Both papers smooth the encoder's rates, up to 4, and leave ASPP as it is."""


@dataclass(frozen=True)
class GridLayer:
    """A dilated convolution in the order in which the network calls it.

    Attributes:
        rate: along rows and columns; operator: of smoothing, None for none.
        score: gridding score of the layer alone at its rate, with taps as large as its own but all positive; None where
            it cannot be run alone at one size.
        divisor: greatest common divisor, along rows and columns, of the distances between what the centre of this
            layer's output reads of the first dilated layer's input, by the layers' shapes: that of the rates between.
        networks: independent networks between the two; coverage: fraction of the rows within reach that it reads.
        networks_from_here: from this layer's input to the end.
    """

    name: str
    rate: tuple[int, int]
    operator: str | None
    score: float | None
    divisor: tuple[int, int]
    networks: int
    coverage: float
    networks_from_here: int


@dataclass(frozen=True)
class Repair:
    """A change, and what was measured after it, with the same weights.

    Attributes:
        change: in words.
        networks, exchange, score, checkerboard: see `GriddingReport`.
        parameters: how many more; multiply_adds: how many more, as a fraction of those of the layers concerned.
    """

    change: str
    networks: int
    exchange: float
    score: float
    checkerboard: float | None
    parameters: int
    multiply_adds: float


@dataclass(frozen=True)
class GriddingReport:
    """How much gridding a network has, from its first dilated layer to the last map of the same size.

    Averages over the whole map, such as image pooling, count as constants: they give every position the same value.

    Attributes:
        network: its class; start, end: the layers; "" for the network's output. size: of the map, height and width.
        networks: how many independent networks it consists of, found by changing one position; networks_by_shape: how
            many there are at least, by the shapes of its layers, whatever the weights. averages: whether only such
            averages join them.
        field: what the centre of the end sees of the start, as in `degrid.ReceptiveField`.
        period: rows and columns between two outputs of one network; the first rate if there is only one network.
        exchange: fraction of a change on one phase of the period that arrives on others, 0 to 1 - 1 / phases.
        score: gridding score at the larger period, 0..1; score_of_width: of a Gaussian as wide, without a grid.
        scores: at each rate. holes: fraction of the square with 95 % that has no influence.
        checkerboard: energy of that period in the logits of real images, about 1 without a grid; None without images,
            or where the logits are too small, which `unmeasured` then says in words.
        opaque: operations that may move data anywhere, so that networks_by_shape may be too low.
    """

    network: str
    start: str
    end: str
    size: tuple[int, int]
    field: np.ndarray = field(repr=False)
    networks: int
    networks_by_shape: int
    averages: bool
    period: tuple[int, int]
    exchange: float
    score: float
    score_of_width: float
    scores: dict[int, float]
    holes: float
    checkerboard: float | None
    unmeasured: str
    layers: tuple[GridLayer, ...]
    repairs: tuple[Repair, ...]
    opaque: tuple[str, ...]

    @property
    def joined_by_averages(self) -> bool:
        """Whether averages over the image are all that joins the networks."""
        return self.averages and self.networks > 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the field."""
        return {name: value for name, value in asdict(self).items() if name != "field"}

    def __str__(self) -> str:
        return "\n".join([*_headlines(self), "", *_layer_lines(self), *_repair_lines(self)])


def _headlines(report: GriddingReport) -> list[str]:
    most, (height, width) = 1 - 1 / math.prod(report.period), report.size
    joined = ", joined only by averages over the image" if report.joined_by_averages else ""
    if report.networks == 1 < report.networks_by_shape:
        joined = f" ({report.networks_by_shape} by the shapes of its layers alone)"
    lines = [
        f"{report.network}, from the input of {report.start} to {report.end or 'its output'}: {height}x{width}",
        f"networks        {report.networks} independent, interleaved{joined}"
        if report.networks > 1
        else f"networks        1{joined}",
        f"phase exchange  {report.exchange:.3f} of a change on one phase of period {_by(report.period)} arrives on "
        f"others; {most:.3f} if all are mixed",
        f"gridding score  {report.score:.4f} at period {max(report.period)} (without a grid, as wide: "
        f"{report.score_of_width:.4f})",
        f"                at each rate: {', '.join(f'{rate}: {score:.4f}' for rate, score in report.scores.items())}",
        f"holes           {100 * report.holes:.1f} % of the square with 95 % of the influence",
    ]
    if report.networks > report.networks_by_shape:
        lines.append(f"                {report.networks_by_shape} by the layers' shapes: training could join more")
    if report.checkerboard is not None:
        lines.append(f"checkerboard    {report.checkerboard:.2f} times the energy around it, in logits of the images")
    elif report.unmeasured:
        lines.append(f"checkerboard    not measured: {report.unmeasured}; give larger images with --size")
    if report.opaque:
        lines.append(f"not followed    {', '.join(report.opaque)}: taken to join everything")
    return lines


def _layer_lines(report: GriddingReport) -> list[str]:
    width = max(len(layer.name) for layer in report.layers)
    lines = [f"{'layer':<{width}}  rate  operator     score  divisor  networks so far  rows read  networks from here"]
    for layer in report.layers:
        score = "-" if layer.score is None else f"{layer.score:.4f}"
        lines.append(
            f"{layer.name:<{width}}  {_by(layer.rate):<5} {layer.operator or 'regular':<11} {score:>6}  "
            f"{_by(layer.divisor):>7}  {layer.networks:>15}  {100 * layer.coverage:>7.1f} %  "
            f"{layer.networks_from_here:>18}"
        )
    return lines


def _repair_lines(report: GriddingReport) -> list[str]:
    if not report.repairs:
        return []
    lines = ["", "what would change it, with the same weights:"]
    for repair in report.repairs:
        board = "" if repair.checkerboard is None else f", checkerboard {repair.checkerboard:.2f}"
        lines.append(
            f"  {repair.change}: {repair.networks} network{'s' * (repair.networks != 1)}, exchange "
            f"{repair.exchange:.3f}, score {repair.score:.4f}{board}; {repair.parameters:+,} parameters, "
            f"{100 * repair.multiply_adds:+z.2f} % multiply-adds in these layers"
        )
    return lines


def _by(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


@checked
def gridding(
    model: NetworkOrName,
    images: Sequence[str] = (),
    *,
    size: tuple[int, int] = (321, 321),
    runs: int = 4,
    random_weights: int | None = None,
    repairs: bool = True,
    progress: OnProgress | None = None,
) -> GriddingReport:
    """Measure the gridding of any network with dilated convolutions of maps [N,C,H,W], as `degrid gridding`.

    Args:
        model, random_weights: see `degrid.erf`. The network stays as it is.
        images: image files, folders or patterns, by default noise; the checkerboard in logits needs real ones.
        size: height and width of the images.
        runs: how many images.
        repairs: also measure what smoothing and other rates would change.
        progress: called after each step.
    Raises:
        UserError: no such model or image; or the network has no dilated convolution.
    """
    network = opened(model, random_weights)
    return gridding_of(network, images_for(network, images, size, runs), bool(images), repairs, progress)


def gridding_of(
    network: nn.Module, images: Sequence[Tensor], real: bool, repairs: bool = True, progress: OnProgress | None = None
) -> GriddingReport:
    """See `gridding`.

    Args:
        images: what the network takes, [1,C,H,W] each, all of one size.
        real: whether these are images, and no noise.
    """
    total = 6 if repairs else 3
    steps = iter(range(1, total + 1))

    def done(what: str) -> None:
        if progress:
            progress(Progress("gridding", next(steps), total, what))

    followed = _followed(network, images[0])
    done("layers")
    span = _Span(network, followed)
    found = span.report(images, real)
    done("receptive field")
    layers = [span.layer(name, conv) for name, conv in followed.dilated.items() if name in span.between]
    done("single layers")
    mends = []
    for change in ("tent", "ssc", "rates") if repairs else ():
        mends.append(_repair(change, span, images, found.checkerboard is not None))
        done(change)
    return replace(found, layers=tuple(layers), repairs=tuple(mend for mend in mends if mend is not None))


def _followed(network: nn.Module, image: Tensor) -> Following:
    """The network on a map that is large enough for every rate to have both of its outer taps in it.

    Sources are the dilated layers and those that hold them.
    """
    dilated = {name for name, layer in network.named_modules() if is_dilated(layer)}
    parts = [name.split(".") for name in dilated]
    sources = {".".join(part[: place + 1]) for part in parts for place in range(len(part))}
    for _ in range(2):
        with unchanged(network):
            followed = Following(network, image, lambda name, layer: name in sources)
        if not followed.dilated:
            raise UserError(
                f"{type(network).__name__} calls no dilated convolution of maps [N,C,H,W], so it has no grid; "
                "degrid.dilate gives an encoder some"
            )
        first = next(iter(followed.dilated))
        side = min(followed.inputs[first].shape[-2:])
        needed = 2 * max(max(rates_of(layer)) for layer in followed.dilated.values()) + 1
        if side >= needed:
            break
        factor = -(-needed // side)  # some networks take multiples of their stride only
        image = image.new_zeros(*image.shape[:2], *(factor * each for each in image.shape[-2:]))
    return followed


def _above(name: str) -> str:
    """The parent of a layer."""
    return name.rpartition(".")[0]


def _ends(followed: Following, first: str) -> tuple[str, str]:
    """Where to measure from, for the first dilated layer, and the last layer that gives a map of that size.

    Where several layers read the same map, it is the input of what holds them all. Some networks pad the map before the
    layer, within the one that holds it.
    """
    readers = [name for name in followed.dilated if followed.inputs[name] is followed.inputs[first]]
    holder = first
    while holder and not (holder in followed.inputs and all(f"{name}.".startswith(f"{holder}.") for name in readers)):
        holder = _above(holder)
    for start in (holder, _above(first)):
        if start in followed.inputs:
            side = followed.inputs[start].shape[-2:]
            same = [name for name in followed.between(start) if followed.outputs[name].shape[-2:] == side]
            if same:
                return start, same[-1]
    raise UserError(f"the map changes its size at {first}, so its phases cannot be compared")


class _Span:
    """The part from the input of the first dilated layer to the last map of that size that the result is computed from.

    Attributes:
        ends: their names, as `Part` takes them.
        period: see `GriddingReport`.
    """

    def __init__(self, network: nn.Module, followed: Following) -> None:
        self.network, self.followed = network, followed
        first = next((name for name in followed.dilated if followed.between(name)), None)
        if first is None:
            raise UserError(f"no dilated convolution of {type(network).__name__} contributes to its result")
        self.ends = _ends(followed, first)
        self.between = followed.between(self.ends[0])
        self.by_shape = followed.reach(*self.ends, averages=False).networks()
        rates = rates_of(followed.dilated[first])
        self.period = self.by_shape if max(self.by_shape) > 1 else rates

    def measured(self, network: nn.Module, images: Sequence[Tensor]) -> tuple[int, float, Any, tuple[int, int]]:
        """Independent networks, phase exchange, receptive field and the size of the map, with a network's weights."""
        part = Part(network, *self.ends, averages=False)
        with part.open(), torch.no_grad():
            x, y = part.run(images[0])
            function = partial(part.again, images[0])
            networks = math.prod(independent_networks(function, x, y))
            exchange = phase_exchange(function, x, self.period, y)
        height, width = x.shape[-2:]
        return networks, exchange, part_receptive_field(part, images), (height, width)

    def report(self, images: Sequence[Tensor], real: bool) -> GriddingReport:
        """What is measured of the network as it is, without its layers and repairs."""
        networks, exchange, field, size = self.measured(self.network, images)
        most, rates = max(self.period), {rate for conv in self.followed.dilated.values() for rate in rates_of(conv)}
        all_by_shape = math.prod(self.followed.reach(*self.ends).networks())
        board, unmeasured = None, ""
        if real:
            try:
                board = self.checkerboard(self.network, images)
            except UserError as error:
                unmeasured = str(error)
        return GriddingReport(
            network=type(self.network).__name__,
            start=self.ends[0],
            end=self.ends[1],
            size=size,
            field=field,
            networks=networks,
            networks_by_shape=math.prod(self.by_shape),
            averages=all_by_shape < math.prod(self.by_shape),
            period=self.period,
            exchange=exchange,
            score=gridding_score(field, most),
            score_of_width=score_of_width(field, most),
            scores={rate: gridding_score(field, rate) for rate in sorted(rates) if 1 < rate <= min(field.shape) // 2},
            holes=hole_ratio(field),
            checkerboard=board,
            unmeasured=unmeasured,
            layers=(),
            repairs=(),
            opaque=tuple(self.followed.opaque),
        )

    def checkerboard(self, network: nn.Module, images: Sequence[Tensor]) -> float:
        """Median over images of the period's energy in the logits, before they are enlarged to the image's size.

        Raises:
            UserError: the logits are too small.
        """
        outputs, side = self.followed.outputs, self.followed.inputs[self.ends[0]].shape[-1]
        whole = max(y.shape[-1] for y in self.followed.inputs.values())
        logits = next((name for name in reversed(self.between) if outputs[name].shape[-1] < whole), "")
        period = max(self.period) * max(1, stride_between(outputs[logits].shape[-1], side))
        part = Part(network, "", logits)
        with part.open(), torch.no_grad():
            maps = (part.run(image)[1][0].double().cpu().numpy() for image in images)
            return float(np.median([checkerboard_energy(each, period) for each in maps]))

    def layer(self, name: str, conv: nn.Conv2d) -> GridLayer:
        """A dilated layer between the ends."""
        start, end = self.ends
        so_far = self.followed.reach(start, name, averages=False)
        last = end if end in self.followed.between(name) else name
        return GridLayer(
            name=name,
            rate=rates_of(conv),
            operator=conv.operator_name if isinstance(conv, DressedConv) else None,
            score=_own_score(conv),
            divisor=so_far.divisor(),
            networks=math.prod(so_far.networks()),
            coverage=so_far.coverage(),
            networks_from_here=math.prod(self.followed.reach(name, last, averages=False).networks()),
        )


def _own_score(conv: nn.Conv2d) -> float | None:
    """The score of a layer alone with positive taps, if it depends on the operator only; a plain one has one phase."""
    if not isinstance(conv, DressedConv):
        return 1.0
    rate = max(rates_of(conv))
    side = 2 * (rate * (max(conv.kernel_size) // 2) + rate) + 1
    positive = copy.deepcopy(conv).eval()
    positive.weight.data.abs_()
    try:
        field = effective_receptive_field(
            lambda x: positive(x).sum(1, keepdim=True), (conv.in_channels, side, side), runs=1
        )
    except UserError:  # strides, or a rim that the network pads
        return None
    return gridding_score(field, rate)


def _repair(change: str, span: _Span, images: Sequence[Tensor], board: bool) -> Repair | None:
    """The effect of a change on a copy of the network; None if there is nothing to change.

    Args:
        board: whether to measure the checkerboard in logits, too.
    """
    network = copied(span.network)
    layers = {name: conv for name, conv in network.named_modules() if name in span.between and is_dilated(conv)}
    if change == "rates":
        return _with_rates(network, layers, span, images, board)
    limit = max(_PAPER_RATE, min(max(rates_of(conv)) for conv in layers.values()))
    options: dict[str, Any] = {"init": "tent"} if change == "ssc" else {}
    before = sum(parameter.numel() for parameter in network.parameters())
    work, own = _work(layers, limit)
    try:
        smooth_dilated_convs(network, change, rate_at_most(limit), **options)
    except UserError:  # smoothed already
        return None
    added = sum(parameter.numel() for parameter in network.parameters()) - before
    more = ', init="tent"' if options else ""
    words = f'degrid.smooth_dilated_convs(model, "{change}"{more})'
    return _measured_repair(words, network, span, images, board, (added, work / own))


def _work(layers: Mapping[str, nn.Conv2d], limit: int) -> tuple[int, int]:
    """Multiply-adds per position of filters of side 2r-1 before the layers up to a rate, and of the layers."""
    chosen = [conv for conv in layers.values() if max(rates_of(conv)) <= limit and not isinstance(conv, DressedConv)]
    filters = sum(conv.in_channels * math.prod(2 * rate - 1 for rate in rates_of(conv)) for conv in chosen)
    return filters, max(1, sum(conv.weight.numel() for conv in chosen))


def _with_rates(
    network: nn.Module, layers: Mapping[str, nn.Conv2d], span: _Span, images: Sequence[Tensor], board: bool
) -> Repair | None:
    """Other rates for the plain layers, see `_sawtooth`."""
    plain = {name: conv for name, conv in layers.items() if not isinstance(conv, DressedConv)}
    names = [name for name in span.followed.dilated if name in plain and len(set(rates_of(plain[name]))) == 1]
    rates = [rates_of(plain[name])[0] for name in names]
    changed = []
    for name, rate, wanted in zip(names, rates, _sawtooth(rates), strict=True):
        if wanted != rate:
            conv = plain[name]
            conv.dilation = (wanted, wanted)
            if conv.padding != (0, 0):  # otherwise the network itself pads
                conv.padding = tuple(wanted * (side // 2) for side in conv.kernel_size)
            changed.append(f"{name} {rate} -> {wanted}")
    if not changed:
        return None
    words = f"other rates, to be trained anew ({some(changed, 3)})"
    return _measured_repair(words, network, span, images, board, (0, 0.0))


def _sawtooth(rates: Sequence[int]) -> list[int]:
    """Rates r-1, r, r+1 in turn where three layers in a row have the rate r; otherwise r+1 for the first layer.

    Source: hybrid dilated convolution (Wang et al., arXiv 1702.08502), section 3.2.
    """
    wanted, place = list(rates), 0
    while place + 2 < len(rates):
        three = rates[place : place + 3]
        alike = len(set(three)) == 1 and three[0] <= _PAPER_RATE
        if alike:
            wanted[place : place + 3] = [three[0] - 1, three[0], three[0] + 1]
        place += 3 if alike else 1
    if wanted == list(rates) and wanted:
        wanted[0] += 1
    return wanted


def _measured_repair(
    change: str, network: nn.Module, span: _Span, images: Sequence[Tensor], board: bool, cost: tuple[int, float]
) -> Repair:
    networks, exchange, field, _ = span.measured(network, images)
    energy = span.checkerboard(network, images) if board else None
    return Repair(change, networks, exchange, gridding_score(field, max(span.period)), energy, *cost)
