"""How an encoder's weights expect their input, as far as their batch norm shows it."""

from __future__ import annotations

import contextlib
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from degrid.models.encoder import Encoder
from degrid.types import Preprocess

USUAL_INPUTS = {
    "the mean and standard deviation of ImageNet": Preprocess(),
    "RGB / 127.5 - 1": Preprocess((127.5,) * 3, (127.5,) * 3),
    "RGB / 255": Preprocess((0.0,) * 3, (255.0,) * 3),
    "Caffe's BGR less its mean": Preprocess((104.0, 116.7, 122.7), (1.0,) * 3, bgr=True),
}
"""The input that most ImageNet weights expect, in words."""
_CLEARLY = math.log(1.5)  # the variances of any two are 4 or more times apart
_COLOUR = 0.3  # how much of a channel of a photograph the others lack
_UNUSED = 1e-6  # the variance of a constant channel


def as_settings(words: str) -> list[str]:
    """A row of USUAL_INPUTS as settings of `degrid.config.ModelConfig`, such as "std=255,255,255"."""
    found = USUAL_INPUTS[words]
    mean, std = (",".join(f"{value:g}" for value in values) for values in (found.mean, found.std))
    return [f"mean={mean}", f"std={std}", *(["bgr=true"] if found.bgr else [])]


class _Reached(Exception):  # noqa: N818 - the forward pass has gone as far as it should
    """Raised when the first batch norm was reached."""


def _first_variance(encoder: nn.Module, image: Tensor) -> tuple[Tensor, Tensor] | None:
    """Variances of the first batch norm's input for images, and those that it has stored, [K] each."""
    seen: list[Tensor] = []

    def look(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.extend((inputs[0].var((0, 2, 3)), norm.running_var))
        raise _Reached

    norms = [each for each in encoder.modules() if isinstance(each, nn.BatchNorm2d) and each.track_running_stats]
    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    with contextlib.suppress(_Reached):
        encoder(image)
    for handle in handles:
        handle.remove()
    return (seen[0], seen[1]) if seen else None


def _like_photographs(side: int = 224) -> Tensor:
    """Noise with the statistics of photographs, [4,3,H,W], 0-255: amplitudes fall as 1 / frequency, channels are much
    the same, mean and spread are those of ImageNet.

    Source: D. J. Field, Relations between the statistics of natural images and the response properties of cortical
    cells, 1987.
    """
    noise = torch.randn(4, 4, side, side, generator=torch.Generator().manual_seed(0))
    steps = torch.fft.fftfreq(side)
    frequency = (steps[:, None] ** 2 + steps**2).sqrt().clamp_min(1 / side)
    maps = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    maps = (maps - maps.mean((2, 3), keepdim=True)) / maps.std((2, 3), keepdim=True)
    colours = math.sqrt(1 - _COLOUR**2) * maps[:, :1] + _COLOUR * maps[:, 1:]
    mean, std = _channels(Preprocess())
    images: Tensor = (colours * std + mean).clamp(0, 255)
    return images


def _channels(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, [1,3,1,1] each."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return mean, std


@torch.no_grad()
def likely_input(encoder: nn.Module) -> str | None:
    """Which of USUAL_INPUTS fits weights clearly better than what their encoder assumes; None where none does.

    The first batch norm keeps the variance that it met in training. Its input is nearly linear in the image, so a wrong
    scale of the input multiplies the variance in all channels alike: by 5 between the first two of USUAL_INPUTS.

    Args:
        encoder: on the CPU, with its weights, for images of 3 channels.
    """
    images = _like_photographs()

    def misfit(preprocess: Preprocess) -> float:
        mean, std = _channels(preprocess)
        found = _first_variance(encoder, ((images.flip(1) if preprocess.bgr else images) - mean) / std)
        if found is None or not (used := found[1] > _UNUSED).any():
            return 0.0
        ratio = found[0].clamp_min(_UNUSED).log() - found[1].log()
        return abs(float(ratio[used].median()))

    assumed = misfit(cast(Encoder, encoder).preprocess)
    misfits = {words: misfit(each) for words, each in USUAL_INPUTS.items()}
    best = min(misfits, key=lambda words: misfits[words])
    return best if assumed - misfits[best] > _CLEARLY else None
