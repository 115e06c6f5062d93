"""A model, or the network of a recipe, in numbers."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from degrid import recipes
from degrid.arguments import checked
from degrid.model_folder import load
from degrid.models import ModelInfo, Segmenter
from degrid.models import describe as describe_network
from degrid.networks import build_model
from degrid.types import LabelSpace


@checked
def describe(
    model: Segmenter | str | os.PathLike[str], *, size: tuple[int, int] = (512, 512), num_classes: int = 21
) -> ModelInfo:
    """Layers, rates, parameters, multiply-adds, and which layers are smoothed; as `degrid info`.

    Args:
        model: a network, a model folder or a run folder; or a recipe or run.json, whose network is built.
        size: height and width of the image that the multiply-adds are counted for, in pixels.
        num_classes: number of classes of a recipe's network.
    Raises:
        UserError: no such model or recipe.
    """
    if not isinstance(model, Segmenter):
        if Path(model).is_dir():
            model = load(model)
        else:
            untrained = dataclasses.replace(recipes.load(str(model)).model, pretrained=False)
            model = build_model(untrained, LabelSpace.of_size(num_classes))
    return describe_network(model, size)
