"""Images and labels: datasets and their formats, the checker, transforms, the loader, and the built-in scenes.

Names are loaded when first used: a process that only reads files needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degrid.data.dataset import SourceDataset, absolute, bands_in, notes_of, open_dataset
    from degrid.data.formats.benchmarks.cityscapes import CITYSCAPES, CITYSCAPES_LABEL_IDS
    from degrid.data.formats.benchmarks.voc import VOC
    from degrid.data.formats.classes import class_table
    from degrid.data.formats.layout import DataFormat, Layout
    from degrid.data.formats.masks import MaskRule
    from degrid.data.formats.source import FunctionSource, LazySources, Source
    from degrid.data.inspection.check import DataReport, check_data
    from degrid.data.inspection.preview import write_preview
    from degrid.data.inspection.promises import check_promises
    from degrid.data.prepare.table import prepare_benchmark
    from degrid.data.synthetic import SyntheticScenes
    from degrid.data.tfrecord.write import write_tfrecord
    from degrid.data.training import (
        Loaders,
        Share,
        TrainTransform,
        batches_by_number,
        collate,
        repeat_factors,
        training_batches,
    )

_MODULES = {
    "dataset": "SourceDataset absolute bands_in notes_of open_dataset",
    "formats.benchmarks.cityscapes": "CITYSCAPES CITYSCAPES_LABEL_IDS",
    "formats.benchmarks.voc": "VOC",
    "formats.classes": "class_table",
    "formats.layout": "DataFormat Layout",
    "formats.masks": "MaskRule",
    "formats.source": "FunctionSource LazySources Source",
    "inspection.check": "DataReport check_data",
    "inspection.preview": "write_preview",
    "inspection.promises": "check_promises",
    "prepare.table": "prepare_benchmark",
    "synthetic": "SyntheticScenes",
    "tfrecord.write": "write_tfrecord",
    "training": "Loaders Share TrainTransform batches_by_number collate repeat_factors training_batches",
}
_HOME = {name: f"degrid.data.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "CITYSCAPES",
    "CITYSCAPES_LABEL_IDS",
    "VOC",
    "DataFormat",
    "DataReport",
    "FunctionSource",
    "Layout",
    "LazySources",
    "Loaders",
    "MaskRule",
    "Share",
    "Source",
    "SourceDataset",
    "SyntheticScenes",
    "TrainTransform",
    "absolute",
    "bands_in",
    "batches_by_number",
    "check_data",
    "check_promises",
    "class_table",
    "collate",
    "notes_of",
    "open_dataset",
    "prepare_benchmark",
    "repeat_factors",
    "training_batches",
    "write_preview",
    "write_tfrecord",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'degrid.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
