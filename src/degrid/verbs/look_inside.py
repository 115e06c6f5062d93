"""The networks and images for the verbs that inspect networks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid import recipes
from degrid.bands import read_scene
from degrid.chance import drawing_for_itself
from degrid.config import RunConfig
from degrid.contracts import bands_of, copied, declared
from degrid.exporters.table import find_exported
from degrid.lookup import lookup
from degrid.model_folder import load
from degrid.model_places import is_named
from degrid.networks import build_model
from degrid.types import LabelSpace, Preprocess, UserError
from degrid.verbs.find_images import find_images

NetworkOrName = str | os.PathLike[str] | nn.Module
"""A network; a model folder or run folder; a recipe or run.json, whose network has random weights; or "module:function"
of the user's own, which is called without arguments and returns a network, or the name of one."""


@drawing_for_itself
def network_of(model: NetworkOrName, num_classes: int = 21) -> nn.Module:
    """The network to look into, as it is: what belongs to the caller is not copied.

    Args:
        num_classes: of a recipe's network.
    Raises:
        UserError: no such model; or an exported file, which has no layers to look into.
    """
    if isinstance(model, nn.Module):
        return model
    path = Path(model)
    if find_exported(path):
        raise UserError(f"{path} is an exported model, which cannot be inspected: give the model folder it came from")
    if is_named(model) or path.is_dir():
        return load(path)
    name = os.fspath(model)
    if ":" in name and not path.exists():
        made: object = lookup({}, name, "network")
        if not isinstance(made, nn.Module) and callable(made):
            made = made()
        if isinstance(made, nn.Module):
            return made
        if not isinstance(made, RunConfig):
            raise UserError(f'"{name}": expected a network, or a function that returns one, got {type(made).__name__}')
        config = made
    else:
        config = recipes.load(name, kind="model or recipe")
    network = build_model(dataclasses.replace(config.model, pretrained=False), LabelSpace.of_size(num_classes)).eval()
    return with_random_weights(network, 0)


def opened(model: NetworkOrName, random_weights: int | None) -> nn.Module:
    """The network, see `network_of`; a copy with other weights where there is a seed for them."""
    network = network_of(model)
    return network if random_weights is None else with_random_weights(network, random_weights)


def with_random_weights(network: nn.Module, seed: int) -> nn.Module:
    """A copy whose layers start anew, convolutions from He et al.'s normal distribution (arXiv 1502.01852).

    So every branch has a part in what is seen: training often begins with the last batch norm of a unit at 0, and
    PyTorch's own distribution makes deep branches faint.
    """
    anew = copied(network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in anew.modules():
            reset = getattr(type(layer), "reset_parameters", None)  # PyTorch's convention; an attribute is none
            if callable(reset):
                reset(layer)
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return anew


def images_for(
    network: nn.Module, patterns: Sequence[str], size: tuple[int, int], runs: int, seed: int = 0
) -> list[Tensor]:
    """What a network is run on: [1,C,H,W] each.

    Networks that declare themselves take pixels from 0 to 255; all others get them normalised as ImageNet's weights
    expect it.

    Args:
        patterns: see `find_images`; the middle of each image is taken, made larger or smaller to fill the size. None:
            noise.
        size: height and width.
        runs: the number of noise images, or the most real ones, spread evenly over those that are found.
    Raises:
        UserError: no run, or no image.
    """
    if runs < 1:
        raise UserError(f"--runs (runs): expected at least 1, got {runs}")
    bands, known = bands_of(network), declared(network) is not None
    parameter = next(network.parameters(), torch.zeros(()))
    random = torch.Generator().manual_seed(seed)
    if not patterns:
        noises = (torch.randn(1, bands.count, *size, generator=random).to(parameter) for _ in range(runs))
        return [127.5 + 60 * noise if known else noise for noise in noises]
    files = list(find_images(patterns).images.values())
    preprocess = Preprocess()
    mean, std = (torch.tensor(each).reshape(1, -1, 1, 1) for each in (preprocess.mean, preprocess.std))
    found, count = [], min(runs, len(files))
    for place in range(count):
        pixels = torch.from_numpy(read_scene(files[place * len(files) // count], bands).pixels)
        pixels = pixels.permute(2, 0, 1)[None].float()
        image = filled(pixels, size)
        found.append((image if known else (image - mean) / std).to(parameter))
    return found


def filled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of an image [N,C,H,W] at a size, height and width, without stretching it."""
    factor = max(wanted / side for wanted, side in zip(size, image.shape[-2:], strict=True))
    sides = [max(wanted, round(side * factor)) for wanted, side in zip(size, image.shape[-2:], strict=True)]
    whole = F.interpolate(image, sides, mode="bilinear", antialias=factor < 1)
    top, left = ((side - wanted) // 2 for side, wanted in zip(sides, size, strict=True))
    return whole[..., top : top + size[0], left : left + size[1]]
