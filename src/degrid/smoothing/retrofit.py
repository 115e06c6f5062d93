"""Smooth the dilated convolutions of any network, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from degrid.arguments import checked
from degrid.contracts import ExchangeableConv2d
from degrid.lookup import some
from degrid.smoothing.operators import Operator
from degrid.smoothing.table import operator_factory
from degrid.types import UserError

Where = Callable[[str, nn.Conv2d], bool]


class SmoothedConv2d(ExchangeableConv2d):
    """A dilated convolution with a smoothing operator; otherwise the nn.Conv2d that it was.

    Only `smooth_dilated_convs` makes them. weight and bias keep their names; those of the operator begin with
    `smoothing.`.
    """

    smoothing: Operator

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]; or without N."""
        if x.ndim == 3:
            return self.forward(x[None])[0]
        y: Tensor = self.smoothing(x, self.convolve)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    @property
    def operator_name(self) -> str:
        """The name of the smoothing operator."""
        return _name(self.smoothing)

    def as_plain_layers(self) -> nn.Module | None:
        """See `degrid.smoothing.operators.Operator.as_plain_layers`."""
        return self.smoothing.as_plain_layers(self) if isinstance(self.smoothing, Operator) else None


@dataclass(frozen=True)
class SmoothingReport:
    """What `smooth_dilated_convs` did.

    Attributes:
        replaced: name and rate of each smoothed layer.
        skipped: name of each dilated layer that was left alone, and the reason.
        unchanged: rates at which the operator is the identity, so that these layers compute what they did before.
    """

    operator: str
    replaced: tuple[tuple[str, int], ...]
    skipped: tuple[tuple[str, str], ...]
    unchanged: tuple[int, ...]

    def __str__(self) -> str:
        rates = Counter(rate for _, rate in self.replaced)
        per_rate = ", ".join(f"{count} of rate {rate}" for rate, count in sorted(rates.items()))
        lines = [f"{self.operator}: smoothed {len(self.replaced)} dilated convolutions ({per_rate})"]
        if self.unchanged and self.operator not in ("regular", "decompose"):
            lines.append(
                f"  at rate {', '.join(map(str, self.unchanged))} the filter of {self.operator} is a single tap, as "
                'published: those layers are unchanged ("tent" smooths them too)'
            )
        return "\n".join(lines + _grouped(self.skipped))


def rate_at_most(limit: int) -> Where:
    """A `where` that accepts rates up to `limit`; 4 leaves ASPP (rates 6 to 36) alone, as both papers' code does."""

    def where(name: str, conv: nn.Conv2d) -> bool:
        return _rate(conv) <= limit

    return where


@checked
def smooth_dilated_convs(
    model: nn.Module,
    operator: str | Callable[[int], Operator],
    where: Where = rate_at_most(4),
    *,
    legacy: bool = False,
    **options: Any,
) -> SmoothingReport:
    """Smooth the dilated convolutions of any network, in place.

    The layers keep their parameters, names, hooks, device and mode. A checkpoint of the plain network still loads with
    strict=False; only the names with `.smoothing.` are new. Make the optimiser and DDP afterwards, so that they include
    the operators' parameters.

    What a network shares (the sigma of gaussian with sigma="shared", the mix of aggregation) is a single parameter in
    all layers of one call.

    Args:
        model: any module; convolutions at any depth are found.
        operator: a row of `degrid.smoothing.OPERATORS` ("ssc", "tent", ...), "module:Class", or a function from the
            rate to an operator.
        where: which convolutions, by dotted name and module; by default those with rates up to 4.
        legacy: compute what the papers' own code computes, mistakes included, for weights trained with it; see
            `degrid.smoothing.legacy`.
        options: of the operator, such as sigma="shared" or size=3.
    Returns:
        What was smoothed, and what was skipped and why: 1x1 kernels, subclasses of nn.Conv2d (which have a forward of
        their own), strides, even kernels, padding other than zero "same", unequal rates, and what `where` rejects.
    Raises:
        UserError: there is nothing to smooth; the message lists what was skipped. The model is then unchanged.
    """
    make = operator_factory(operator, legacy, **options)
    chosen: list[tuple[str, nn.Conv2d]] = []
    skipped: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        reason = _reason_to_skip(name, module, where)
        if reason is None and isinstance(module, nn.Conv2d):
            chosen.append((name, module))
        elif reason:
            skipped.append((name, reason))
    if not chosen:
        found = "\n".join(_grouped(tuple(skipped))) or "  it has no dilated convolution"
        raise UserError(
            f"nothing to smooth in this {type(model).__name__}:\n{found}\n"
            "build the network with a smaller output stride, or choose other layers with where="
        )
    # All operators are made before the first layer changes, so that a failure leaves the model unchanged.
    operators = [_made_for(conv, make(_rate(conv))) for _, conv in chosen]
    for (_, conv), made in zip(chosen, operators, strict=True):
        # The object stays the same, and with it its hooks, its parameters and every reference to it.
        conv.__class__ = SmoothedConv2d
        conv.smoothing = made
    unchanged = {made.rate for made in operators if isinstance(made, Operator) and made.is_identity()}
    name = _name(operators[0])
    replaced = tuple((name, _rate(conv)) for name, conv in chosen)
    return SmoothingReport(name, replaced, tuple(skipped), tuple(sorted(unchanged)))


def _reason_to_skip(name: str, module: nn.Module, where: Where) -> str | None:
    """None: smooth it; "": it is not a dilated convolution, which needs no report; otherwise the reason."""
    if not isinstance(module, nn.modules.conv._ConvNd) or max(module.dilation) == 1:
        return ""
    if isinstance(module, SmoothedConv2d):
        return f"already smoothed by {module.operator_name}"
    if not isinstance(module, nn.Conv2d):
        return f"{type(module).__name__} is not a 2-D convolution"
    if max(module.kernel_size) == 1:
        return "1x1 kernel: its rate has no effect"
    if type(module) is not nn.Conv2d:
        return f"{type(module).__name__} has a forward of its own"
    reason = _unsuitable_shape(module)
    return f"rate {_rate(module)} left out by where" if reason is None and not where(name, module) else reason


def _unsuitable_shape(conv: nn.Conv2d) -> str | None:
    if max(conv.stride) > 1:
        return f"stride {conv.stride[0]}"
    if any(size % 2 == 0 for size in conv.kernel_size):
        return f"even kernel {conv.kernel_size[0]}x{conv.kernel_size[1]}"
    rates = {rate for rate, size in zip(conv.dilation, conv.kernel_size, strict=True) if size > 1}
    if len(rates) > 1:
        return f"unequal rates {conv.dilation[0]} and {conv.dilation[1]}"
    if rates == {1}:
        return ""
    same = tuple(rate * (size // 2) for rate, size in zip(conv.dilation, conv.kernel_size, strict=True))
    if conv.padding_mode != "zeros" or conv.padding not in ("same", same):
        return f'padding {conv.padding} ({conv.padding_mode}) is not zero "same" padding {same}'
    return None


def _rate(conv: nn.Conv2d) -> int:
    """The rate along the axes where the kernel is wider than 1."""
    return max(rate for rate, size in zip(conv.dilation, conv.kernel_size, strict=True) if size > 1)


def _made_for(conv: nn.Conv2d, operator: Operator) -> Operator:
    """Networks in double precision get filters in double precision; those in half precision keep single precision."""
    if isinstance(operator, Operator):  # any other module with such a forward is accepted too
        operator.bind(conv)
    dtype = torch.float64 if conv.weight.dtype == torch.float64 else None
    return operator.to(conv.weight.device, dtype).train(conv.training)


def _name(operator: nn.Module) -> str:
    """The operator's name, or its class where it is not an `Operator`."""
    return operator.name if isinstance(operator, Operator) else type(operator).__name__


def _grouped(skipped: tuple[tuple[str, str], ...]) -> list[str]:
    """One line per reason, with the first names."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped:
        reasons.setdefault(reason, []).append(name or "the model itself")
    return [f"  skipped {len(names)}: {reason} ({some(names, 3)})" for reason, names in reasons.items()]
