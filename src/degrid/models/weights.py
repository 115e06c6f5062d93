"""Read encoder weights, and the input that they expect, from local files; fit their names to a timm encoder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from degrid.dispatch import DispatchMode
from degrid.files import parse_json
from degrid.types import Preprocess, UserError
from degrid.weight_names import is_counter_beside, misfit, mobilenet_v2_name, torchvision_resnet

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "encoder.", "backbone.")
"""Prefixes that programs put before all names of a network."""
BATCH_NORM_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class WithoutRandomValues(DispatchMode):
    """Networks that are made while this is entered get no random weights, but whatever lies in memory.

    For those that get others at once, or none: random weights take long, and on the meta device, which has no values,
    PyTorch imports its whole compiler for them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors by name of any checkpoint that `degrid convert` reads, in float32 where they were half precision.

    A folder that `degrid convert` made from ImageNet weights stands for the file in it.

    Common wrappers ({"state_dict": ...}, {"model": ...}) are taken off, and prefixes that all names have ("module.",
    "model.", ...); what the program kept beside the weights is left out, and nothing in the file is run.

    Raises:
        UserError: missing, damaged or without tensors.
    """
    from degrid.checkpoints.readers.files import read_tensors  # imported here because few networks need it

    tensors = {
        name: torch.from_numpy(np.array(value))  # copied: the file is mapped read-only
        for name, value in read_tensors(path).tensors.items()
        if not is_counter_beside(name)
    }
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def stated_input(path: str | os.PathLike[str]) -> Preprocess | None:
    """What the config.json beside a file, or in a folder, says: as `degrid convert` writes it, or timm on the hub.

    Args:
        path: as `model.pretrained` takes it.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        config = parse_json((folder / "config.json").read_text("utf-8"))
        if "preprocess" in config:
            given, unit = config["preprocess"], 1
        elif "architecture" in config:  # older files have no table of their own for it
            given, unit = config.get("pretrained_cfg", config), 255
        else:
            return None
        mean, std = (tuple(float(value) * unit for value in given[key]) for key in ("mean", "std"))
        return Preprocess(mean, std, bool(given.get("bgr", False)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def load_encoder_weights(net: nn.Module, full_names: set[str], weights: dict[str, Tensor], source: object) -> None:
    """Load ImageNet weights into a timm feature network.

    Args:
        net: the network made by timm with features_only.
        full_names: names in the state dict of timm's complete classifier; what it has beyond `net` is dropped.
        weights: timm's names, or torchvision's for MobileNetV2 and the ResNets (those are the same as timm's).
        source: where the weights came from, for messages.
    Raises:
        UserError: tensors missing, of another shape, or unknown: the file fits another network.
    """
    if "features.0.0.weight" in weights:
        weights = {mobilenet_v2_name(key) or key: value for key, value in weights.items()}

    # timm flattens the names of some feature networks ("stages.0." becomes "stages_0."), and puts others in a wrapper.
    wrapper = next((f"{name}." for name in ("model", "body") if list(dict(net.named_children())) == [name]), "")

    def flat(name: str) -> str:
        return name.removeprefix(wrapper).replace(".", "_")

    state = net.state_dict()
    own = {flat(key): key for key in state}
    weights = _with_head(own, weights)
    given = with_stem(state, {own.get(flat(key), key): value for key, value in weights.items()})
    spare = {flat(key) for key in full_names}
    if problems := misfit(state, given, [key for key in given if flat(key) in spare]):
        fits = guess_network(weights)
        hint = f". The file looks like {fits}" if fits else ""
        raise UserError(f"the weights in {source} do not fit this encoder: {problems}{hint}")
    net.load_state_dict({key: value for key, value in given.items() if key in state}, strict=False)


def _with_head(flat_names: Iterable[str], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the prefix that `read_weights` removed, if a network has it before all of its own names."""
    names = list(flat_names)
    head = next((each for each in PREFIXES if all(name.startswith(each.replace(".", "_")) for name in names)), "")
    if any(key.startswith(head) for key in weights):
        return weights
    return {head + key: value for key, value in weights.items()}


def with_stem(state: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network for images of 3 channels, for one of another number: its first convolution adapted.

    As timm adapts it: for 1 channel the weights of the three are added up; for C channels they are repeated in turn and
    scaled by 3 / C, so that equal channels give what they gave before.

    Args:
        state: the state dict of the network that takes them.
    """

    def fitted(key: str, value: Tensor) -> Tensor:
        wanted = state.get(key, value).shape
        others = value.ndim == len(wanted) == 4 and (value.shape[0], *value.shape[2:]) == (wanted[0], *wanted[2:])
        if not others or value.shape[1] != 3 or wanted[1] == 3:
            return value
        from timm.models import adapt_input_conv  # imported here because it is slow

        adapted: Tensor = adapt_input_conv(wanted[1], value)
        return adapted

    return {key: fitted(key, value) for key, value in weights.items()}


def guess_network(weights: dict[str, Tensor]) -> str | None:
    """A guess at the network that a state dict belongs to, in words, from its names."""
    if "features.0.0.weight" in weights or "conv_stem.weight" in weights:
        return "a MobileNet or EfficientNet"
    if "layer1.0.conv1.weight" in weights and "layer4.0.conv1.weight" in weights:
        return torchvision_resnet(weights.keys()) or "a ResNet"
    if any(key.startswith("stages.0.blocks.0.conv_dw") for key in weights):
        return "a ConvNeXt"
    if any(key.startswith(("head.", "decoder.")) for key in weights):
        return "a whole segmentation model rather than an encoder"
    return None
