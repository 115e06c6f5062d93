"""Images and labels: datasets, the checker, transforms, the loader, and the built-in scenes."""

from degrid.data.check import DataReport, check
from degrid.data.contract import check_dataset
from degrid.data.dataset import PairDataset, open_dataset
from degrid.data.loader import collate, training_batches
from degrid.data.preview import preview
from degrid.data.synthetic import SyntheticScenes
from degrid.data.transforms import TrainTransform

__all__ = [
    "DataReport",
    "PairDataset",
    "SyntheticScenes",
    "TrainTransform",
    "check",
    "check_dataset",
    "collate",
    "open_dataset",
    "preview",
    "training_batches",
]
