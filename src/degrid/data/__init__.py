"""Images and labels: datasets, the checker, transforms, the loader, and the built-in scenes."""

from degrid.data.dataset import PairDataset, notes_of, open_dataset
from degrid.data.formats.benchmarks import CITYSCAPES, CITYSCAPES_LABEL_IDS, VOC
from degrid.data.formats.classes import class_table
from degrid.data.inspection.check import DataReport, check_data
from degrid.data.inspection.contract import check_dataset
from degrid.data.inspection.preview import write_preview
from degrid.data.prepare.voc import prepare_cityscapes, prepare_voc
from degrid.data.synthetic import SyntheticScenes
from degrid.data.tfrecord.dataset import TFRecordDataset
from degrid.data.tfrecord.write import write_tfrecord
from degrid.data.training.loader import collate, training_batches
from degrid.data.training.transforms import TrainTransform

__all__ = [
    "CITYSCAPES",
    "CITYSCAPES_LABEL_IDS",
    "VOC",
    "DataReport",
    "PairDataset",
    "SyntheticScenes",
    "TFRecordDataset",
    "TrainTransform",
    "check_data",
    "check_dataset",
    "class_table",
    "collate",
    "notes_of",
    "open_dataset",
    "prepare_cityscapes",
    "prepare_voc",
    "training_batches",
    "write_preview",
    "write_tfrecord",
]
