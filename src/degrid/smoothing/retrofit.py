"""Smooth the dilated convolutions of any network, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from degrid.arguments import checked
from degrid.contracts import Rate
from degrid.lookup import grouped, some
from degrid.smoothing.candidates import Candidate, Where, candidates, rate_text, rates_of, shortest, shown_rate
from degrid.smoothing.layers import dress, name_of
from degrid.smoothing.operators import Operator
from degrid.smoothing.table import operator_factory
from degrid.types import UserError


@dataclass(frozen=True)
class SmoothingReport:
    """What `smooth_dilated_convs` did.

    Attributes:
        replaced: name and rate of each smoothed layer; a tuple with one rate per axis where they differ.
        skipped: name of each dilated layer that was left alone, and the reason.
        unchanged: rates at which the operator is the identity, so that these layers compute what they did before.
    """

    operator: str
    replaced: tuple[tuple[str, Rate], ...]
    skipped: tuple[tuple[str, str], ...]
    unchanged: tuple[Rate, ...]

    def __str__(self) -> str:
        rates = Counter(rate for _, rate in self.replaced)
        per_rate = ", ".join(f"{rates[rate]} of rate {rate_text(rate)}" for rate in _in_order(rates))
        lines = [f"{self.operator}: smoothed {len(self.replaced)} dilated convolutions ({per_rate})"]
        if self.unchanged and self.operator not in ("regular", "decompose"):
            rates_text = ", ".join(map(rate_text, self.unchanged))
            lines.append(
                f"  at rate {rates_text} the filter of {self.operator} is a single tap, as "
                'published: those layers are unchanged ("tent" smooths them too)'
            )
        return "\n".join(lines + _by_reason(self.skipped))


def rate_at_most(limit: int) -> Where:
    """A `where` that accepts rates up to `limit`; 4 leaves ASPP (rates 6 to 36) alone, as both papers' code does."""

    def where(name: str, conv: nn.Module) -> bool:
        return max(rates_of(conv)) <= limit

    return where


@checked
def smooth_dilated_convs(
    model: nn.Module,
    operator: str | Callable[[Any], Operator],
    where: Where = rate_at_most(4),
    *,
    legacy: bool = False,
    padded_outside: bool = False,
    example: Tensor | None = None,
    **options: Any,
) -> SmoothingReport:
    """Smooth the dilated convolutions of any network, in place.

    The layers keep their parameters, names, hooks, device and mode, and remain instances of their classes. A checkpoint
    of the plain network still loads with strict=False; only the names with `.smoothing.` are new. Make the optimiser
    and DDP afterwards, so that they include the operators' parameters.

    Shared parameters (the sigma of gaussian with sigma="shared", the mix of aggregation) are a single parameter in all
    layers of one call.

    Args:
        model: any module; convolutions at any depth, of one, two or three axes, are found.
        operator: a row of `degrid.smoothing.OPERATORS` ("ssc", "tent", ...), "module:Class", or a function from the
            rate to an operator.
        where: which convolutions, by dotted name and module; by default those with rates up to 4.
        legacy: compute what the papers' own code computes, mistakes included, for weights trained with it; see
            `degrid.smoothing.legacy`.
        padded_outside: the network itself pads, with zeros, the maps of layers without padding, so that they keep their
            size. This is detected automatically for nn.ZeroPad2d before the layer in an nn.Sequential, for `tf_padding`
            of transformers' MobileNets, and with an `example`.
        example: an input on which the model is run once: this detects functional padding, and adds functional dilated
            convolutions, which cannot be smoothed, to the report.
        options: of the operator, such as sigma="shared" or size=3.
    Returns:
        What was smoothed, and what was skipped and why. Layers of any stride are smoothed by filters, those with
        computed weights (standardised, conditional) by filters and group interaction, all others by every operator.
        Skipped are kernels on which the rate has no effect, transposed convolutions, even kernels, padding other than
        zero "same", forwards that are more than one convolution, and what `where` rejects.
    Raises:
        UserError: there is nothing to smooth; the message lists what was skipped. The model is then unchanged.
    """
    make = operator_factory(operator, legacy, **options)
    # All operators are made before the first layer changes, so that a failure leaves the model unchanged.
    chosen, skipped = _selected(candidates(model, where, padded_outside, example), make, legacy)
    if not chosen:
        reasons = "\n".join(_by_reason(skipped)) or "  it has no dilated convolution"
        raise UserError(
            f"nothing to smooth in this {type(model).__name__}:\n{reasons}\n"
            "build the network with a smaller output stride, dilate it with degrid.dilate(model, output_stride=8), or "
            "choose other layers with where="
        )
    for candidate, made in chosen:
        dress(candidate.layer, made, candidate.direct, candidate.rim)
    unchanged = {made.rate for _, made in chosen if isinstance(made, Operator) and made.is_identity()}
    replaced = tuple((candidate.name, shown_rate(candidate.layer)) for candidate, _ in chosen)
    return SmoothingReport(name_of(chosen[0][1]), replaced, skipped, tuple(_in_order(unchanged)))


def _selected(
    found_in_model: Iterable[tuple[str, Candidate | str]], make: Callable[[Any], Operator], legacy: bool
) -> tuple[list[tuple[Candidate, Operator]], tuple[tuple[str, str], ...]]:
    """The layers that can be smoothed, each with its operator; and the names of the others with reasons."""
    chosen: list[tuple[Candidate, Operator]] = []
    skipped: list[tuple[str, str]] = []
    for name, found in found_in_model:
        if isinstance(found, str):
            skipped.append((name, found))
            continue
        rate = shortest(rates_of(found.layer))
        if legacy and not isinstance(rate, int):
            skipped.append((name, "legacy operators are defined for one rate on two axes"))
            continue
        operator = make(rate)
        reason = found.unsuitable_for(operator)
        if reason is None:
            chosen.append((found, _fitted(found.layer, operator)))
        else:
            skipped.append((name, reason))
    return chosen, tuple(skipped)


def _in_order(rates: Iterable[Rate]) -> list[Rate]:
    return sorted(rates, key=lambda rate: (rate,) if isinstance(rate, int) else rate)


def _fitted(conv: Any, operator: Operator) -> Operator:
    """Networks in double precision get filters in double precision; those in half precision keep single precision."""
    if isinstance(operator, Operator):  # any other module with such a forward is accepted too
        operator.bind(conv)
    stored = next(conv.parameters())  # a computed weight may be out of date
    dtype = torch.float64 if stored.dtype == torch.float64 else None
    return operator.to(stored.device, dtype).train(conv.training)


def _by_reason(skipped: tuple[tuple[str, str], ...]) -> list[str]:
    """One line per reason, with the first names."""
    reasons = grouped((reason, name or "the model itself") for name, reason in skipped)
    return [f"  skipped {len(names)}: {reason} ({some(names, 3)})" for reason, names in reasons.items()]
