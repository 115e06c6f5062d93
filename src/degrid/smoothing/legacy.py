"""What the papers' own code computes where it differs from the papers, for weights that were trained with it.

Source: the TensorFlow code of Wang & Ji (KDD 2018) and of Ziegler et al. (arXiv 1903.07992). Each class says how it
differs from the operator of the same name in `operators`; `smooth_dilated_convs(..., legacy=True)` uses these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.smoothing import filters, operators
from degrid.types import UserError


class GroupInteraction(operators.GroupInteraction):
    """Group interaction in which the first group never reaches the others.

    out_i = weight[0,i] f_i + sum over j >= 1 of weight[j,i] f_j: the first term uses group i where group 0 is meant.
    This is the intended mixing with another matrix, so it shares the code.
    """

    def mixing(self) -> Tensor:
        """[r^2, r^2]: the first row moved onto the diagonal."""
        first = self.weight[0]
        rest = torch.cat([torch.zeros_like(first)[None], self.weight[1:]])
        return rest + torch.diag(first)


class Average(operators.PreFilter):
    """A trained filter of side r-1 for each channel, which starts as a box.

    weight: [C,1,r-1,r-1], all taps 1/(r-1)^2 at the start. At rate 2 it is one factor per channel.

    Raises:
        UserError: rate 1, which has no such filter.
    """

    name = "average"

    def __init__(self, rate: int) -> None:
        super().__init__(rate)
        self.size = _side(rate)

    def bind(self, conv: nn.Conv2d) -> None:
        """Make one filter for each of the layer's input channels."""
        self.weight = nn.Parameter(filters.box(self.size).repeat(conv.in_channels, 1, 1, 1))

    def kernel(self) -> Tensor:
        """One filter per channel, [C,1,k,k]."""
        return _centred(self.weight)


class Gaussian(operators.PreFilter):
    """exp(-(x^2 + y^2)) of side r-1, divided by its sum; sigma cancels out.

    Args:
        sigma: parameter [1] that the code stores and trains, with a gradient of zero; None where it is fixed.
    Raises:
        UserError: rate 1.
    """

    name = "gaussian"

    def __init__(self, rate: int, sigma: nn.Parameter | None = None) -> None:
        super().__init__(rate)
        self.size = _side(rate)
        self.register_parameter("sigma", sigma)
        self.register_buffer("taps", _taps(self.size), persistent=False)

    taps: Tensor
    sigma: nn.Parameter | None

    def kernel(self) -> Tensor | None:
        """The filter; None where it is a single tap of 1, as at rate 2 without sigma."""
        return None if self.size == 1 and self.sigma is None else _centred(_normalised(self.taps, self.sigma))


class Aggregation(operators.PreFilter):
    """Mix of identity, trained box, Gaussian and separable-and-shared filter, with weights that are not normalised.

    mix: [4], the same parameter in every layer, 1/4 each at the start; the code never runs its softmax.
    weight: [C,1,r-1,r-1], the trained box. residual: [2r-1,2r-1].

    Args:
        sigma: see `Gaussian`. If it is given, the code swaps the second and third weight of the mix.
    Raises:
        UserError: rate 1.
    """

    name = "aggregation"

    def __init__(self, rate: int, mix: nn.Parameter, sigma: nn.Parameter | None = None) -> None:
        super().__init__(rate)
        self.side = _side(rate)
        self.mix = mix
        self.register_parameter("sigma", sigma)
        self.residual = nn.Parameter(torch.zeros(2 * rate - 1, 2 * rate - 1))
        self.register_buffer("centre", filters.delta(2 * rate - 1), persistent=False)
        self.register_buffer("taps", _taps(self.side), persistent=False)

    centre: Tensor
    taps: Tensor
    sigma: nn.Parameter | None

    def bind(self, conv: nn.Conv2d) -> None:
        """Make one box for each of the layer's input channels."""
        self.weight = nn.Parameter(filters.box(self.side).repeat(conv.in_channels, 1, 1, 1))

    def kernel(self) -> Tensor:
        """The composite filter of each channel, [C,1,2r-1,2r-1]."""
        size = len(self.centre)
        box = filters.embed(_centred(self.weight), size)
        gaussian = filters.embed(_centred(_normalised(self.taps, self.sigma)), size)
        second, third = (box, gaussian) if self.sigma is None else (gaussian, box)
        shared = (self.mix[0] + self.mix[3]) * self.centre + self.mix[3] * self.residual
        return shared + self.mix[1] * second + self.mix[2] * third


def _side(rate: int) -> int:
    if rate < 2:
        raise UserError("the original average and Gaussian filters have side rate - 1, so they need rate 2 or more")
    return rate - 1


def _taps(size: int) -> Tensor:
    """exp(-(x^2 + y^2)) for offsets from -(size-1)//2 to size//2."""
    offsets = torch.arange(size, dtype=torch.float32) - (size - 1) // 2
    return torch.exp(-(offsets[:, None] ** 2 + offsets**2))


def _normalised(taps: Tensor, sigma: Tensor | None) -> Tensor:
    """Divided by exp(2 sigma^2), then by the sum, as in the code: the gradient of sigma is rounding noise."""
    if sigma is not None:
        taps = taps / torch.exp(2 * sigma**2)
    return taps / taps.sum()


def _centred(kernel: Tensor) -> Tensor:
    """A filter of odd side; one of even side, which extends to the bottom and right, gets zeros on the other side."""
    return kernel if kernel.shape[-1] % 2 else F.pad(kernel, (1, 0, 1, 0))
