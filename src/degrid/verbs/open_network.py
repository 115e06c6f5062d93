"""The networks that verbs take: from a folder, from an exported file, or the user's own."""

from __future__ import annotations

import copy
import os

from torch import nn

from degrid.contracts import MultiScaleNetwork
from degrid.model_folder import open_model
from degrid.types import MSC_SCALES, UserError

AnyModel = str | os.PathLike[str] | nn.Module
"""A model folder, a run folder, an exported file, or a module from images [N,3,H,W] (0-255) to logits [N,C,h,w]."""


def open_network(model: AnyModel, multi_scale: bool = False) -> nn.Module:
    """A network to predict with.

    Args:
        multi_scale: give it DeepLab v2's multi-scale input, `degrid.types.MSC_SCALES`; a network that was passed keeps
            its own.
    Raises:
        UserError: see `degrid.model_folder.open_model`; or the network's input scales are fixed.
    """
    network = model if isinstance(model, nn.Module) else open_model(model)
    if not multi_scale:
        return network
    if not isinstance(network, MultiScaleNetwork):
        raise UserError(
            "--msc (multi_scale=True) changes a network's input scales: an exported model's are fixed (export it "
            "anew), and a network of your own has them if it derives from degrid.contracts.MultiScaleNetwork"
        )
    changed = copy.copy(network)
    changed.scales = MSC_SCALES
    return changed


def name_of(model: AnyModel) -> str:
    """A path as it was given, or the class of a module."""
    return type(model).__name__ if isinstance(model, nn.Module) else os.fspath(model)
