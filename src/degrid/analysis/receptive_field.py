"""Which inputs an output depends on, and how much they form a grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from degrid.contracts import evaluating
from degrid.types import UserError


def effective_receptive_field(
    function: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    runs: int = 8,
    seed: int = 0,
    inputs: Callable[[torch.Generator], Tensor] | None = None,
) -> np.ndarray:
    """How much the centre of the output depends on each input position: mean |d y_centre / d x|, float64 [H,W].

    The mean is over input channels and random inputs. In each run the output's channels have random weights, so that
    their gradients do not cancel systematically.

    Args:
        function: size-keeping, [1,C,H,W] -> [1,K,H,W]; a module in evaluation mode, or a part of one.
        shape: C, H, W of its input. Only odd H and W have a true centre.
        runs: random inputs.
        inputs: makes an input [1,C,H,W]; by default standard normal numbers.
    Raises:
        UserError: the output is of another size than the input.
    Source: Luo et al., NeurIPS 2016 (arXiv 1701.04128), section 3.
    """
    random = torch.Generator().manual_seed(seed)
    field = torch.zeros(shape[1:], dtype=torch.float64)
    for _ in range(runs):
        x = (inputs(random) if inputs else torch.randn(1, *shape, generator=random)).requires_grad_()
        y = function(x)
        if y.shape[-2:] != x.shape[-2:]:
            raise UserError(
                f"expected an output of the input's size {tuple(x.shape[-2:])}, got {tuple(y.shape[-2:])}; measure "
                "from the first dilated stage on, after the strides"
            )
        centre = y[0, :, y.shape[2] // 2, y.shape[3] // 2]
        weights = torch.randn(centre.shape, generator=random)
        (gradient,) = torch.autograd.grad((centre * weights).sum(), x)
        field += gradient[0].abs().double().mean(0)
    result: np.ndarray = (field / runs).numpy()
    return result


def dilated_stage_receptive_field(encoder: nn.Module, side: int = 33, runs: int = 8, seed: int = 0) -> np.ndarray:
    """The effective receptive field of the last stage of an encoder that holds dilated convolutions; [side,side].

    It is measured at the stage's input, since the strides before it have a pattern of their own.

    Raises:
        UserError: no stage has a dilated convolution.
    """
    stages = [
        stage
        for stage in _children_down_to_stages(encoder)
        if any(isinstance(m, nn.Conv2d) and max(m.dilation) > 1 and max(m.kernel_size) > 1 for m in stage.modules())
    ]
    if not stages:
        raise UserError("no stage of this encoder has a dilated convolution; use a smaller output stride")
    stage = stages[-1]
    channels = next(m.in_channels for m in stage.modules() if isinstance(m, nn.Conv2d))
    device = next(stage.parameters()).device
    with evaluating(stage):
        return effective_receptive_field(lambda x: stage(x.to(device)).cpu(), (channels, side, side), runs, seed)


def _children_down_to_stages(module: nn.Module) -> list[nn.Module]:
    """The parts of a network in order, without the wrappers that hold a single network."""
    children = list(module.children())
    while len(children) == 1:
        children = list(children[0].children())
    stages: list[nn.Module] = []
    for child in children:
        # timm's MobileNets and EfficientNets keep all stages in one container.
        holds_stages = isinstance(child, nn.Sequential) and all(isinstance(part, nn.Sequential) for part in child)
        stages += child.children() if holds_stages else [child]
    return stages


def phase_masses(field: np.ndarray, rate: int) -> np.ndarray:
    """The fraction of a receptive field on each of the r^2 phases of the offset from its centre; [r,r], sum 1."""
    offsets_y, offsets_x = ((np.arange(side) - side // 2) % rate for side in field.shape)
    masses = np.zeros((rate, rate))
    np.add.at(masses, (offsets_y[:, None], offsets_x[None, :]), field)
    result: np.ndarray = masses / masses.sum()
    return result


def gridding_score(field: np.ndarray, rate: int) -> float:
    """How much a receptive field resembles a grid of period `rate`: 1 if it covers a single phase, 0 if all alike.

    (r^2 * sum of squared phase masses - 1) / (r^2 - 1), the mean relative energy of the r^2 - 1 spectral images of the
    field. A field smaller than r x r scores above 0 for that reason alone.

    Args:
        field: [H,W], not negative, centre at [H//2, W//2].
        rate: at least 2.
    Source: ours.
    """
    if rate < 2:
        raise UserError(f"a gridding score needs a rate of at least 2, got {rate}")
    masses = phase_masses(field, rate)
    return float((rate**2 * (masses**2).sum() - 1) / (rate**2 - 1))


def hole_ratio(field: np.ndarray, mass: float = 0.95, threshold: float = 1e-3) -> float:
    """The fraction of positions with hardly any influence, 0..1.

    Args:
        field: [H,W], not negative, centre at [H//2, W//2].
        mass: counted are the positions in the smallest centred square that holds this fraction of the field.
        threshold: a fraction of the peak, below which there is hardly any influence.
    Source: ours.
    """
    for radius in range(max(field.shape)):
        rows, columns = (slice(max(0, side // 2 - radius), side // 2 + radius + 1) for side in field.shape)
        window = field[rows, columns]
        if window.sum() >= mass * field.sum():
            return float((window < threshold * field.max()).mean())
    return float((field < threshold * field.max()).mean())
