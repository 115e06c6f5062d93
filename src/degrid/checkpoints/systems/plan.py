"""What a converter gives: which network a file belongs to, and where each of its tensors goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from degrid.types import ConversionError

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Drop:
    """A tensor that is left out on purpose, and why."""

    reason: str


Rule = Callable[[str, np.ndarray], "dict[str, np.ndarray] | Drop | None"]
"""From a tensor of the file to our names with its values; or a reason to leave it out; or None: unknown."""


@dataclass
class Plan:
    """How the tensors of a file become a network's.

    system: where the file comes from, in words.
    kind: "model", or "encoder" for ImageNet weights, which have no segmentation head.
    model: fields of ModelConfig.
    tensors: our names to values; origins: our names to the file's.
    dropped: the file's names to the reason; unexpected: the file's names that nothing is known of.
    notes: what the user should know.
    """

    system: str
    kind: str
    model: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fill(self, tensors: Tensors, *rules: Rule) -> Plan:
        """Send every tensor where the first rule that knows it says."""
        for name, value in tensors.items():
            found = next((result for rule in rules if (result := rule(name, value)) is not None), None)
            if found is None:
                self.unexpected.append(name)
            elif isinstance(found, Drop):
                self.dropped[name] = found.reason
            else:
                self.tensors |= found
                self.origins |= dict.fromkeys(found, name)
        return self


def tensorflow_leaf(leaf: str, value: np.ndarray, conv: str, norm: str) -> dict[str, np.ndarray] | None:
    """A variable of a convolution or its batch norm.

    Args:
        leaf: the last part of its name.
        conv, norm: our names of the two layers.
    """
    leaves = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    if leaf in leaves:
        return {f"{norm}.{leaves[leaf]}": value}
    if leaf == "weights" and value.ndim == 4:
        return {f"{conv}.weight": value.transpose(3, 2, 0, 1)}  # HWIO -> OIHW
    return {f"{conv}.bias": value} if leaf == "biases" else None


_SLOTS = re.compile(
    r"(.*/)?(Momentum|Adam|Adam_1|RMSProp|RMSProp_1|beta1_power|beta2_power)|optimizer_vars/.*|(.*/)?optimizer/.*"
)


def training_state(name: str, value: np.ndarray) -> Drop | None:
    """What only a training that goes on would need."""
    if name.endswith("global_step"):
        return Drop("step counter")
    if _SLOTS.fullmatch(name):
        return Drop("optimiser state")
    return None


def batch_counter(name: str, value: np.ndarray) -> Drop | None:
    """PyTorch's count of batches, which evaluation does not use and a new training starts anew."""
    return Drop("batch counter") if name.endswith("num_batches_tracked") else None


def num_units(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """Units per stage: the pattern's groups are the stage and the unit."""
    stages: dict[str, set[str]] = {}
    for name in names:
        if match := re.match(pattern, name):
            stages.setdefault(match[1], set()).add(match[2])
    return tuple(len(units) for _, units in sorted(stages.items()))


_DEPTHS = {
    (3, 4, 6, 3): "50",
    (3, 4, 23, 3): "101",
    (3, 8, 36, 3): "152",
    (3, 4, 36, 3): "152nd",
    (3, 24, 36, 3): "200",
}


def resnet_depth(units: tuple[int, ...], what: str) -> str:
    """The depth of a ResNet of bottlenecks, as in the encoders' names.

    Raises:
        ConversionError: no known ResNet has these units.
    """
    if units not in _DEPTHS:
        raise ConversionError(
            f"{what} has {units} units in its stages, which is no known ResNet: {', '.join(map(str, _DEPTHS))}"
        )
    return _DEPTHS[units]
