"""Images and labels: datasets and their formats, the checker, transforms, the loader, and the built-in scenes."""

from degrid.data.dataset import SourceDataset, absolute, notes_of, open_dataset
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
from degrid.data.training import TrainTransform, collate, training_batches

__all__ = [
    "CITYSCAPES",
    "CITYSCAPES_LABEL_IDS",
    "VOC",
    "DataFormat",
    "DataReport",
    "FunctionSource",
    "Layout",
    "LazySources",
    "MaskRule",
    "Source",
    "SourceDataset",
    "SyntheticScenes",
    "TrainTransform",
    "absolute",
    "check_data",
    "check_promises",
    "class_table",
    "collate",
    "notes_of",
    "open_dataset",
    "prepare_benchmark",
    "training_batches",
    "write_preview",
    "write_tfrecord",
]
