"""Parameter names of one library in the words of another."""

from __future__ import annotations

import re

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


def mobilenet_v2_name(name: str) -> str | None:
    """torchvision's name of a MobileNetV2 tensor -> timm's; None for a name that is not torchvision's."""
    layer, _, leaf = name.rpartition(".")
    if layer in _STEM:
        return f"{_STEM[layer]}.{leaf}"
    match = re.fullmatch(r"features\.(\d+)\.(.+)", layer)
    if match is None or not 1 <= int(match[1]) <= len(_PLACES):
        return None
    index = int(match[1]) - 1
    stage, unit = _PLACES[index]
    part = (_OTHER if index else _FIRST).get(match[2])
    return f"blocks.{stage}.{unit}.{part}.{leaf}" if part else None
