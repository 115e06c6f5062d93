"""The table of dataset formats, and the search for the one that fits."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from degrid.data.formats.benchmarks.ade20k import Ade20k
from degrid.data.formats.benchmarks.camvid import CamVid
from degrid.data.formats.benchmarks.cityscapes import Cityscapes
from degrid.data.formats.benchmarks.coco import Coco
from degrid.data.formats.benchmarks.coco_panoptic import CocoPanoptic
from degrid.data.formats.benchmarks.coco_stuff import CocoStuff
from degrid.data.formats.benchmarks.drive import Drive
from degrid.data.formats.benchmarks.driving import Bdd100k, Kitti
from degrid.data.formats.benchmarks.mapillary import Mapillary
from degrid.data.formats.benchmarks.mvtec import MvtecAd
from degrid.data.formats.benchmarks.nyu import NyuDepth
from degrid.data.formats.benchmarks.pascal_context import PascalContext
from degrid.data.formats.benchmarks.remote_sensing import DeepGlobe, Isprs, LoveDA
from degrid.data.formats.benchmarks.suim import Suim
from degrid.data.formats.benchmarks.voc import Voc
from degrid.data.formats.description import Description
from degrid.data.formats.folder import Folders, SideBySide, SplitFolders, holds_masks
from degrid.data.formats.hugging_face.format import HuggingFace
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.lists import Lists
from degrid.data.formats.tools.coco_json import CocoJson
from degrid.data.formats.tools.cvat import Cvat
from degrid.data.formats.tools.datumaro import DatumaroCamVid, DatumaroCityscapes, DatumaroKitti
from degrid.data.formats.tools.datumaro_json import DatumaroJson
from degrid.data.formats.tools.label_studio import LabelStudio
from degrid.data.formats.tools.label_studio_json import LabelStudioJson
from degrid.data.formats.tools.labelme import Labelme
from degrid.data.formats.tools.labelme_xml import LabelMeXml
from degrid.data.formats.tools.segments_ai import SegmentsAi
from degrid.data.formats.tools.supervisely import Supervisely
from degrid.data.formats.tools.via import Via
from degrid.data.formats.tools.yolo import Yolo
from degrid.data.formats.unread import what_is_known
from degrid.data.shards.format import Shards, WebDataset
from degrid.data.tfrecord.format import TFRecord
from degrid.files import walk
from degrid.lookup import counted, lookup
from degrid.types import UserError

FORMATS: dict[str, type[DataFormat]] = {
    "shards": Shards,
    "YOLO polygons": Yolo,
    "dataset.yaml": Description,
    "COCO-Stuff": CocoStuff,
    "COCO panoptic": CocoPanoptic,
    "COCO": Coco,
    "PASCAL Context": PascalContext,
    "VOC": Voc,
    "Datumaro Cityscapes": DatumaroCityscapes,
    "Datumaro CamVid": DatumaroCamVid,
    "Datumaro KITTI": DatumaroKitti,
    "Label Studio": LabelStudio,
    "Supervisely": Supervisely,
    "Segments.ai": SegmentsAi,
    "Cityscapes": Cityscapes,
    "CamVid": CamVid,
    "ADE20K": Ade20k,
    "KITTI": Kitti,
    "BDD100K": Bdd100k,
    "Mapillary Vistas": Mapillary,
    "LoveDA": LoveDA,
    "ISPRS": Isprs,
    "DeepGlobe": DeepGlobe,
    "SUIM": Suim,
    "DRIVE": Drive,
    "NYU Depth v2": NyuDepth,
    "MVTec AD": MvtecAd,
    "Hugging Face": HuggingFace,
    "lists": Lists,
    "COCO polygons": CocoJson,
    "Datumaro": DatumaroJson,
    "labelme": Labelme,
    "LabelMe XML": LabelMeXml,
    "CVAT": Cvat,
    "VIA": Via,
    "Label Studio JSON": LabelStudioJson,
    "split folders": SplitFolders,
    "folder": Folders,
    "side by side": SideBySide,
    "TFRecord": TFRecord,
    "WebDataset": WebDataset,
}
"""In the order in which they are tried: the more particular ones first."""
POLYGON_FORMATS = (
    *("YOLO polygons", "COCO polygons", "Datumaro", "labelme", "LabelMe XML", "CVAT", "VIA", "Label Studio JSON"),
    "Supervisely",
)
"""Those whose labels are shapes in a text file. Where masks lie beside them, the masks count."""
_OWN_MASKS = ("Supervisely", "LabelMe XML")
"""Those that say themselves which masks lie beside them."""
_OWN = ("dataset.yaml", "lists", "COCO polygons", "split folders", "folder", "side by side", "TFRecord")
"""Layouts of one's own data, which a message explains; the others have names that their users know."""
_TRIED = 20  # folders below one that holds no dataset


def recognise(
    path: Path, root: Path | None = None, inside: bool = False, among: Collection[str] = tuple(FORMATS)
) -> Layout:
    """What is in a dataset, by the first format that fits.

    Args:
        path: a folder or file.
        root: see `DataFormat`.
        inside: pass over a dataset.yaml, which is what asks.
        among: the formats in question.
    Raises:
        UserError: no format fits; the message lists them.
    """
    formats = {kind: FORMATS[kind] for kind in among if not (inside and FORMATS[kind] is Description)}
    if among != POLYGON_FORMATS and holds_masks(path):
        formats = {kind: made for kind, made in formats.items() if kind not in POLYGON_FORMATS or kind in _OWN_MASKS}
    for kind, made in formats.items():
        found = _read(kind, made(root), path)
        if found:
            return found
    if path.is_file() and among != POLYGON_FORMATS:
        raise UserError(
            f"expected a folder, dataset.yaml, list file (.txt) or TFRecord file (.tfrecord), got the file {path}"
        )
    if among == POLYGON_FORMATS:
        raise UserError(
            f"no polygons found in {path}. Looked for: {'; '.join(made.wanted for made in formats.values())}"
        )
    raise UserError(
        f"no images with masks found in {path}{_what_is_there(path, formats)}{what_is_known(path)}. "
        f"Looked for: {_wanted(formats)}"
    )


def _wanted(formats: Mapping[str, type[DataFormat]]) -> str:
    """What was looked for: layouts of one's own in words, the others by their names."""
    own = [made.wanted for kind, made in formats.items() if kind in _OWN]
    return f"{'; '.join(own)}; and the layouts of {', '.join(kind for kind in formats if kind not in _OWN)}"


def _what_is_there(path: Path, formats: Mapping[str, type[DataFormat]]) -> str:
    """What a folder holds instead of a dataset: the folder to give in its place, or the kinds of its files."""
    below = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    for folder in below[:_TRIED]:
        for kind, made in formats.items():
            with contextlib.suppress(UserError):
                if _read(kind, made(), folder):
                    return f", but there are some in {folder}: give that folder"
    names = (entry.name for _, files in walk(path) for entry in files)
    count = Counter(Path(name).suffix.lower() or "without an ending" for name in names)
    shown = ", ".join(f"{number} {suffix}" for suffix, number in count.most_common(6))
    return (
        f", which holds {counted(len(below), 'folder')} and these files: {shown}" if count else ", which holds no file"
    )


def read_as(kind: str, path: Path) -> Layout:
    """What is in a dataset of a known format.

    Args:
        kind: a row of FORMATS, or "module:Format" of your own.
    Raises:
        UserError: no such format, or the dataset is not of this format.
    """
    made = lookup(FORMATS, kind, "data format")
    if not (isinstance(made, type) and issubclass(made, DataFormat)):
        raise UserError(f'data format "{kind}": expected a class derived from degrid.data.DataFormat, got {made!r}')
    if not path.exists():
        raise UserError(f"no data at {path}")
    found = _read(kind, made(), path)
    if found is None:
        raise UserError(f"{path} holds no data of the format {kind}" + (made.wanted and f"; expected {made.wanted}"))
    return found


def _read(kind: str, data_format: DataFormat, path: Path) -> Layout | None:
    found = data_format.find(path)
    if found is None or not any(found.splits.values()):
        return None
    order = [*(name for name in ("train", "val", "test") if name in found.splits), *sorted(found.splits)]
    return dataclasses.replace(found, kind=found.kind or kind, splits={name: found.splits[name] for name in order})
