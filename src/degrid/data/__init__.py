"""Images and labels: datasets, the checker, transforms, the loader, and the built-in scenes."""

from degrid.data.check import DataReport, check
from degrid.data.classes import class_table
from degrid.data.contract import check_dataset
from degrid.data.dataset import PairDataset, open_dataset
from degrid.data.export import write_tfrecord
from degrid.data.known import CITYSCAPES, CITYSCAPES_LABEL_IDS, VOC
from degrid.data.loader import collate, training_batches
from degrid.data.prepare import prepare_cityscapes, prepare_voc
from degrid.data.preview import preview
from degrid.data.synthetic import SyntheticScenes
from degrid.data.tfrecord import TFRecordDataset
from degrid.data.transforms import TrainTransform

__all__ = [
    "CITYSCAPES",
    "CITYSCAPES_LABEL_IDS",
    "VOC",
    "DataReport",
    "PairDataset",
    "SyntheticScenes",
    "TFRecordDataset",
    "TrainTransform",
    "check",
    "check_dataset",
    "class_table",
    "collate",
    "open_dataset",
    "prepare_cityscapes",
    "prepare_voc",
    "preview",
    "training_batches",
    "write_tfrecord",
]
