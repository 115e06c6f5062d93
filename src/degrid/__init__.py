"""degrid: dilated convolutions without the grid.

Names are loaded when first used, so that `import degrid` costs no torch import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from degrid.types import IGNORE_INDEX, Batch, LabelSpace, Sample, Scores, UserError

if TYPE_CHECKING:
    from degrid.assemble import (
        deeplabv2,
        deeplabv3,
        deeplabv3plus,
        load,
        save,
    )
    from degrid.data import open_dataset
    from degrid.engine.evaluate import evaluate
    from degrid.engine.infer import Predictor
    from degrid.smoothing import SmoothingReport, smooth_dilated_convs

__version__ = "0.1.0"

_HOME = {
    "deeplabv2": "degrid.assemble",
    "deeplabv3": "degrid.assemble",
    "deeplabv3plus": "degrid.assemble",
    "load": "degrid.assemble",
    "save": "degrid.assemble",
    "open_dataset": "degrid.data",
    "evaluate": "degrid.engine.evaluate",
    "Predictor": "degrid.engine.infer",
    "SmoothingReport": "degrid.smoothing",
    "smooth_dilated_convs": "degrid.smoothing",
}

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "LabelSpace",
    "Predictor",
    "Sample",
    "Scores",
    "SmoothingReport",
    "UserError",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3plus",
    "evaluate",
    "load",
    "open_dataset",
    "save",
    "smooth_dilated_convs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'degrid' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
