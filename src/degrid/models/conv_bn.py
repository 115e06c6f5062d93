"""Which batch norm takes exactly what which convolution gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from degrid.acceleration.fold import wiring_of
from degrid.types import UserError

Norm = nn.modules.batchnorm._BatchNorm


def conv_bn_pairs(model: nn.Module, example: Tensor | None = None) -> list[tuple[nn.Conv2d, Norm]]:
    """Pairs of a convolution and the batch norm that reads its output, found by running the network once.

    A pair counts if the batch norm's input is always the very tensor that the convolution gave, and nothing else ever
    reads that tensor, so that the two may be computed as one. The network runs in evaluation mode, without gradients,
    and is left as it was.

    Args:
        example: an input of the network; by default noise, [1,3,64,64], 0 to 255.
    Raises:
        UserError: the network cannot run on the example.
    """
    if example is None:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
        example = noise.to(like.device, like.dtype)
    try:
        with _evaluating(model):
            wiring = wiring_of(model, example)
    except Exception as error:  # a network of the user's may fail in any way
        raise UserError(
            f"could not run {type(model).__name__} on an image of {tuple(example.shape)} to see which convolution each "
            f"batch norm follows ({type(error).__name__}: {str(error)[:120]}); give an example that it can take, or "
            "leave the batch norms unfolded (fold=False)"
        ) from error
    return [
        (conv, norm)
        for norm, sources in wiring.sources.items()
        for conv in sources
        if isinstance(norm, Norm) and conv is not None and len(sources) == 1 and wiring.targets[conv] == {norm}
    ]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
