"""KITTI's semantics and BDD100K, which have the classes of Cityscapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from degrid.data.formats.benchmarks.cityscapes import CITYSCAPES, CITYSCAPES_RAW
from degrid.data.formats.benchmarks.common import benchmark
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import pair_folders


class Kitti(DataFormat):
    """training/image_2 and training/semantic, with the label ids of Cityscapes.

    CVAT's and Datumaro's exports of the same form have label_colors.txt beside, see `DatumaroKitti`.
    """

    wanted = "training/image_2 and training/semantic (KITTI)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        splits, _ = pair_folders({"train": (path / "training" / "image_2", path / "training" / "semantic")})
        reason = "training/image_2 and training/semantic"
        rule = replace(CITYSCAPES_RAW, said="KITTI")
        return benchmark(reason, path, splits, CITYSCAPES, rule, [])


# Images and labels of a split, as distributed today, and before 2020.
_BDD = (("images/10k", "labels/sem_seg/masks"), ("seg/images", "seg/labels"))


class Bdd100k(DataFormat):
    """images/10k/train and labels/sem_seg/masks/train, or seg/images and seg/labels: 19 train ids."""

    wanted = "images/10k and labels/sem_seg/masks (BDD100K)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        for base in (path, path / "bdd100k"):
            for images, masks in _BDD:
                folders = {split: (base / images / split, base / masks / split) for split in ("train", "val", "test")}
                splits, _ = pair_folders(folders)
                if any(splits.values()):
                    rule = MaskRule.plain(CITYSCAPES, said="BDD100K")
                    return benchmark(f"{images} and {masks}", base, splits, CITYSCAPES, rule, [])
        return None
