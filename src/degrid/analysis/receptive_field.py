"""How much an output depends on each position of its input."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from degrid.analysis.part import Part, stride_between
from degrid.contracts import unchanged
from degrid.resize import resize
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
        field += _influence(x, y, random)
    result: np.ndarray = (field / runs).numpy()
    return result


def _influence(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    """|d y_centre / d x|, float64 [H,W]: the mean over x's channels, for one random mixture of y's."""
    centre = y[0, :, y.shape[2] // 2, y.shape[3] // 2]
    weights = torch.randn(centre.shape, generator=random).to(centre)
    (gradient,) = torch.autograd.grad((centre * weights).sum(), x)
    return gradient[0].abs().double().mean(0).cpu()


def part_receptive_field(
    part: Part, images: Iterable[Tensor], seed: int = 0, ran: Callable[[int], None] | None = None
) -> np.ndarray:
    """How much the centre of the map at the end of a part depends on each position of the map at its beginning.

    The mean over images of what `effective_receptive_field` describes, where one forward and one backward pass are in
    memory at a time. Where strides lie between the maps, row i of the end is taken to lie at row i * stride.

    Args:
        part: see `Part`.
        images: what the network takes, [1,C,H,W], all of one size.
        ran: called after each image with how many there have been.
    Returns:
        float64, odd sides, the position of the centre in the middle: rows and columns on the longer sides are left out.
    Raises:
        UserError: no images, images of several sizes, or the end does not depend on the beginning, or not with these
            weights.
    """
    random, fields, places = torch.Generator().manual_seed(seed), [], [0, 0]
    with part.open():
        for image in images:
            x, y = part.run(image)
            if not y.requires_grad:
                raise UserError(f"{part.name} does not depend on the input of the part: choose another layer")
            fields.append(_influence(x, y, random))
            if fields[-1].shape != fields[0].shape:
                raise UserError("the images have several sizes, and their maps cannot be averaged: give them one size")
            places = [
                min(long - 1, out // 2 * stride_between(long, out))
                for long, out in zip(x.shape[-2:], y.shape[-2:], strict=True)
            ]
            if ran is not None:
                ran(len(fields))
    if not fields:
        raise UserError("a receptive field needs at least one image")
    mean: np.ndarray = torch.stack(fields).mean(0).numpy()
    if not mean.max() > 0:
        raise UserError(
            f"with these weights {part.name} does not depend on the input of the part, as before training, where "
            "batch norms begin at 0: draw random weights with --random 0 (random_weights=0)"
        )
    radii = [min(at, side - 1 - at) for at, side in zip(places, mean.shape, strict=True)]
    return mean[tuple(slice(at - radius, at + radius + 1) for at, radius in zip(places, radii, strict=True))]


def dilated_stage_receptive_field(encoder: nn.Module, side: int = 33, runs: int = 8, seed: int = 0) -> np.ndarray:
    """The effective receptive field of the last stage of an encoder that holds dilated convolutions; [side,side].

    It is measured at the stage's input, since the strides before it have a pattern of their own.

    Raises:
        UserError: no stage has a dilated convolution.
    """
    stages = [stage for stage in stages_of(encoder) if is_dilated(stage)]
    if not stages:
        raise UserError("no stage of this encoder has a dilated convolution; use a smaller output stride")
    stage = stages[-1]
    channels = next(m.in_channels for m in stage.modules() if isinstance(m, nn.Conv2d))
    device = next(stage.parameters()).device
    with unchanged(stage):
        return effective_receptive_field(lambda x: stage(x.to(device)).cpu(), (channels, side, side), runs, seed)


def is_dilated(stage: nn.Module) -> bool:
    """Whether a part of a network holds a dilated convolution."""
    convs = (each for each in stage.modules() if isinstance(each, nn.Conv2d))
    return any(max(conv.dilation) > 1 and max(conv.kernel_size) > 1 for conv in convs)


def stages_of(module: nn.Module) -> list[nn.Module]:
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


def influence(
    function: Callable[[Tensor], Tensor], image: Tensor, row: int, column: int, convention: str = "half_pixel"
) -> tuple[np.ndarray, int]:
    """How much the score of a pixel's class depends on each pixel of the image: mean over its bands of |dy / dx|.

    Args:
        function: a network in evaluation mode, from images [1,C,H,W] (0-255) to logits [1,K,h,w].
        image: uint8 [C,H,W].
        row, column: the pixel.
        convention: of enlarging the logits, a name in `degrid.types.RESIZES`.
    Returns:
        float32 [H,W] in logits per grey level, and the class of the pixel.
    Raises:
        UserError: the pixel is outside the image, or the network has no gradient with respect to it.
    Source: Luo et al., NeurIPS 2016 (arXiv 1701.04128), for one output on one image.
    """
    height, width = image.shape[-2:]
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(f"expected a pixel in the image of {width}x{height}, got row {row}, column {column}")
    with torch.inference_mode(False), torch.enable_grad():
        x = image[None].float().requires_grad_()
        logits = function(x)
        scores = resize(logits, (height, width), convention)[0, :, row, column]
        best = int(scores.argmax())
        gradient = torch.autograd.grad(scores[best], x, allow_unused=True)[0] if scores.requires_grad else None
        if gradient is None:
            raise UserError("this network gives no gradients, so its receptive field cannot be measured")
    field: np.ndarray = gradient[0].abs().mean(0).cpu().numpy()
    return field, best
