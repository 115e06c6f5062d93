"""Names of weights: how state dicts are wrapped, how libraries name the same network, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from degrid.lookup import some
from degrid.types import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Units per stage (He et al., arXiv 1512.03385 table 1; 200: arXiv 1603.05027). One re-implementation of DeepLab v3
# (NanqingD's) builds 152nd as its ResNet-152: the second stage has four units.
BASIC_RESNETS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
"""Units per stage of the ResNets of basic blocks, by depth."""
BOTTLENECK_RESNETS = {
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "152nd": (3, 4, 36, 3),
    "200": (3, 24, 36, 3),
}
"""Units per stage of the ResNets of bottlenecks, by depth."""
_IN_TORCHVISION = ("18", "34", "50", "101", "152")

# Keys below which programs keep a state dict, the one to take first where there are several.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema"),
)

# Blocks per stage of MobileNetV2 (arXiv 1801.04381, table 2).
_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
_PLACES = [(stage, unit) for stage, count in enumerate(_BLOCKS) for unit in range(count)]
_STEM = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.18.0": "conv_head",
    "features.18.1": "bn2",
    "classifier.1": "classifier",
}
# Inside a block torchvision numbers the layers and timm names them. The first block has no expansion.
_FIRST = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
_OTHER = {
    "conv.0.0": "conv_pw",
    "conv.0.1": "bn1",
    "conv.1.0": "conv_dw",
    "conv.1.1": "bn2",
    "conv.2": "conv_pwl",
    "conv.3": "bn3",
}
# As torchvision's code was before it was released, which others copied: all layers in one sequence, ReLUs counted.
_IN_SEQUENCE = ("conv.0", "conv.1", "conv.3", "conv.4", "conv.6", "conv.7")
_FLAT_FIRST = dict(zip(_IN_SEQUENCE, _FIRST.values(), strict=False))
_FLAT_OTHER = dict(zip(_IN_SEQUENCE, _OTHER.values(), strict=True))
# Parts of a separable convolution of the Xceptions.
_SEPARABLE = {"conv1": "depthwise", "bn": "norm", "bn1": "norm", "bn2": "norm_out"}


class Shaped(Protocol):
    """An array or a tensor: all that matters here is its shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...


def unwrapped(values: object) -> dict[str, object] | None:
    """A state dict without wrappers ({"state_dict": ...}, {"model": ...}) and without the prefix "module.".

    None where `values` is no dictionary.
    """
    while isinstance(values, dict) and (inner := next(filter(_is_state, map(values.get, _WRAPPERS)), None)) is not None:
        values = inner
    if not isinstance(values, dict):
        return None
    return {str(name).removeprefix("module."): value for name, value in values.items()}


def _is_state(value: object) -> bool:
    """Whether it is a dictionary with more in it than settings."""
    plain = str | int | float | None
    return isinstance(value, dict) and not all(isinstance(inner, plain) for inner in value.values())


def is_counter(name: str) -> bool:
    """Whether a tensor is batch norm's count of batches, which evaluation does not use."""
    return name.endswith("num_batches_tracked")


def is_counter_beside(name: str) -> bool:
    """Whether a tensor is a counter of a program beside the network: of thop, or of PyTorch's AveragedModel."""
    return name.rpartition(".")[2] in ("total_ops", "total_params", "n_averaged")


def misfit(
    own: Mapping[str, Shaped], given: Mapping[str, Shaped], spare: Collection[str] = (), counters: bool = False
) -> str:
    """Why weights do not fit a network, in words; "" where they fit.

    Args:
        own: the network's tensors by name.
        given: the weights by name.
        spare: names that `given` may have beyond the network's.
        counters: whether batch norm's counters of batches must be there, too.
    """
    shapes = [
        f"{name} is {list(value.shape)}, the model has {list(own[name].shape)}"
        for name, value in given.items()
        if name in own and tuple(value.shape) != tuple(own[name].shape)
    ]
    problems = {
        "missing": [name for name in own if name not in given and (counters or not is_counter(name))],
        "not in this model": [name for name in given if name not in own and name not in spare],
        "of another shape": shapes,
    }
    return "; ".join(f"{len(names)} {what} ({some(names)})" for what, names in problems.items() if names)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Load a state dict that must have all of a model's tensors, and no others.

    Raises:
        UserError: the weights belong to another model; the message names the first differences.
    """
    if problems := misfit(model.state_dict(), weights, counters=True):
        raise UserError(f"the weights of {source} belong to another model: {problems}")
    model.load_state_dict(weights)


def num_units(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """Units per stage: the pattern's two groups are the stage and the unit."""
    stages: dict[str, set[str]] = {}
    for name in names:
        if match := re.match(pattern, name):
            stages.setdefault(match[1], set()).add(match[2])
    return tuple(len(units) for _, units in sorted(stages.items()))


def torchvision_resnet(names: Collection[str], prefix: str = "") -> str | None:
    """The ResNet whose parameters have these names in torchvision and timm, such as "resnet50"; None for another.

    Wide and grouped ResNets have the same names and other shapes.

    Args:
        names: names of parameters.
        prefix: what stands before each of them.
    """
    units = num_units(names, rf"{re.escape(prefix)}layer([1-4])\.(\d+)\.")
    table = BOTTLENECK_RESNETS if f"{prefix}layer1.0.conv3.weight" in names else BASIC_RESNETS
    return next((f"resnet{depth}" for depth in _IN_TORCHVISION if table.get(depth) == units), None)


def mobilenet_v2_name(name: str, flat: bool = False) -> str | None:
    """timm's name of a tensor of MobileNetV2, from torchvision's; None for a name that is not torchvision's.

    Args:
        flat: the layers of a block are numbered in one sequence, as in torchvision's early code.
    """
    layer, _, leaf = name.rpartition(".")
    if layer in _STEM:
        return f"{_STEM[layer]}.{leaf}"
    match = re.fullmatch(r"features\.(\d+)\.(.+)", layer)
    if match is None or not 1 <= int(match[1]) <= len(_PLACES):
        return None
    index = int(match[1]) - 1
    stage, unit = _PLACES[index]
    first, other = (_FLAT_FIRST, _FLAT_OTHER) if flat else (_FIRST, _OTHER)
    part = (other if index else first).get(match[2])
    return f"blocks.{stage}.{unit}.{part}.{leaf}" if part else None


def xception_name(name: str) -> str | None:
    """Our name of a tensor of the Xceptions that projects build; None for a name that is not theirs.

    Args:
        name: "block3.rep.1.conv1.weight" (units in one sequence with their ReLU and batch norm), or
            "block3.sepconv1.depthwise.weight".
    """
    layer, _, leaf = name.rpartition(".")
    if layer in ("conv1", "bn1", "conv2", "bn2"):
        return name
    if match := re.fullmatch(r"block(\d+)\.skip(bn)?", layer):
        return f"blocks.{int(match[1]) - 1}.shortcut.{1 if match[2] else 0}.{leaf}"
    if match := re.fullmatch(r"block(\d+)\.(?:rep\.(\d+)|sepconv([123]))(?:\.(\w+))?", layer):
        unit = int(match[2]) // 3 if match[2] else int(match[3]) - 1
        return f"blocks.{int(match[1]) - 1}.units.{unit}.{_SEPARABLE.get(match[4] or 'bn2', match[4])}.{leaf}"
    if match := re.fullmatch(r"conv([345])\.(\w+)", layer):
        return f"exit.{int(match[1]) - 3}.{_SEPARABLE.get(match[2], match[2])}.{leaf}"
    match = re.fullmatch(r"bn([345])", layer)
    return f"exit.{int(match[1]) - 3}.norm_out.{leaf}" if match else None
