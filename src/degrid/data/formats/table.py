"""The table of dataset formats, and the search for the one that fits."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from degrid.data.formats.folder import holds_masks, redivided, refuse_images_alone
from degrid.data.formats.folder_names import folders_in
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.matching import is_for_masks
from degrid.data.formats.pairs import Pair, pair_up
from degrid.data.formats.unread import what_is_known
from degrid.files import walk
from degrid.lookup import counted, lookup, some
from degrid.types import UserError


class Row(NamedTuple):
    """A format that is imported where it may fit.

    Attributes:
        place: module and class, below `degrid.data`.
        clues: parts of names in small letters, with "/" at the end of folders'. A folder of this format holds one of
            them at least, at any depth. Empty: any folder may be one.
    """

    place: str
    clues: str = ""

    def load(self) -> type[DataFormat]:
        """The format."""
        made: type[DataFormat] = lookup({}, f"degrid.data.{self.place}", "data format")
        return made

    def may_fit(self, names: str) -> bool:
        """Whether a folder with these names may be of this format; see `_names_in`."""
        return not self.clues or any(clue in names for clue in self.clues.split())


FORMATS = {
    "shards": Row("shards.format:Shards", "shards.json"),
    "YOLO polygons": Row("formats.tools.yolo:Yolo", ".txt .yaml .yml"),
    "dataset.yaml": Row("formats.description:Description", ".yaml .yml"),
    "COCO-Stuff": Row("formats.benchmarks.coco_stuff:CocoStuff", "annotations/ stuffthingmaps/"),
    "COCO panoptic": Row("formats.benchmarks.coco_panoptic:CocoPanoptic", "panoptic_"),
    "COCO": Row("formats.benchmarks.coco:Coco", "instances_"),
    "PASCAL Context": Row("formats.benchmarks.pascal_context:PascalContext", "jpegimages/"),
    "VOC": Row("formats.benchmarks.voc:Voc", "jpegimages/ segmentation"),
    "Datumaro Cityscapes": Row("formats.tools.datumaro:DatumaroCityscapes", "gtfine/"),
    "Datumaro CamVid": Row("formats.tools.datumaro:DatumaroCamVid", "annot/"),
    "Datumaro KITTI": Row("formats.tools.datumaro:DatumaroKitti", "semantic/"),
    "Label Studio": Row("formats.tools.label_studio:LabelStudio", "task-"),
    "Supervisely": Row("formats.tools.supervisely:Supervisely", "img/"),
    "Segments.ai": Row("formats.tools.segments_ai:SegmentsAi", "_label_"),
    "Cityscapes": Row("formats.benchmarks.cityscapes:Cityscapes", "leftimg8bit/"),
    "CamVid": Row("formats.benchmarks.camvid:CamVid", "annot/"),
    "ADE20K": Row("formats.benchmarks.ade20k:Ade20k", "annotations/"),
    "KITTI": Row("formats.benchmarks.driving:Kitti", "semantic/"),
    "BDD100K": Row("formats.benchmarks.driving:Bdd100k", "10k/ seg/"),
    "Mapillary Vistas": Row("formats.benchmarks.mapillary:Mapillary", "training/"),
    "LoveDA": Row("formats.benchmarks.remote_sensing:LoveDA", "masks_png/"),
    "ISPRS": Row("formats.benchmarks.remote_sensing:Isprs", "top_"),
    "DeepGlobe": Row("formats.benchmarks.remote_sensing:DeepGlobe", "_sat."),
    "SUIM": Row("formats.benchmarks.suim:Suim", "train_val/ test/"),
    "DRIVE": Row("formats.benchmarks.drive:Drive", "1st_manual/"),
    "NYU Depth v2": Row("formats.benchmarks.nyu:NyuDepth", ".mat hha/ depth/"),
    "MVTec AD": Row("formats.benchmarks.mvtec:MvtecAd", "ground_truth/"),
    "Hugging Face": Row("formats.hugging_face.format:HuggingFace", ".json"),
    "lists": Row("formats.lists:Lists", ".txt .lst .csv .tsv"),
    "COCO polygons": Row("formats.tools.coco_json:CocoJson", ".json"),
    "Datumaro": Row("formats.tools.datumaro_json:DatumaroJson", ".json"),
    "labelme": Row("formats.tools.labelme:Labelme", ".json"),
    "LabelMe XML": Row("formats.tools.labelme_xml:LabelMeXml", ".xml"),
    "CVAT": Row("formats.tools.cvat:Cvat", ".xml"),
    "VIA": Row("formats.tools.via:Via", ".json"),
    "Label Studio JSON": Row("formats.tools.label_studio_json:LabelStudioJson", ".json"),
    "split folders": Row("formats.folder:SplitFolders"),
    "folder": Row("formats.folder:Folders"),
    "scenes": Row("formats.scenes:Scenes"),
    "masks of objects": Row("formats.scenes:Objects"),
    "side by side": Row("formats.folder:SideBySide"),
    "TFRecord": Row("tfrecord.format:TFRecord", ".tfrecord -of-"),
    "WebDataset": Row("shards.format:WebDataset", ".tar"),
}
"""In the order in which they are tried: more specific ones first."""
POLYGON_FORMATS = (
    *("YOLO polygons", "COCO polygons", "Datumaro", "labelme", "LabelMe XML", "CVAT", "VIA", "Label Studio JSON"),
    "Supervisely",
)
"""Those whose labels are shapes in a text file. Where masks lie beside them, the masks count."""
_OWN_MASKS = ("Supervisely", "LabelMe XML")
"""Those that themselves say which masks lie beside them."""
_OWN = ("dataset.yaml", "lists", "COCO polygons", "split folders", "folder", "scenes", "side by side", "TFRecord")
"""Layouts of users' own data, which a message explains; the others have names that their users know."""
_FEW = 4  # folders of any names that are compared with each other
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
    rows = {kind: FORMATS[kind] for kind in among if not (inside and kind == "dataset.yaml")}
    if among != POLYGON_FORMATS and holds_masks(path):
        rows = {kind: row for kind, row in rows.items() if kind not in POLYGON_FORMATS or kind in _OWN_MASKS}
    for kind, made in _may_fit(rows, path):
        found = _read(kind, made(root), path)
        if found:
            _refuse_known_without_masks(found, path)
            return found
    if path.is_file() and among != POLYGON_FORMATS:
        raise UserError(
            f"expected a folder, dataset.yaml, list file (.txt) or TFRecord file (.tfrecord), got the file {path}"
        )
    if among == POLYGON_FORMATS:
        raise UserError(
            f"no polygons found in {path}. Looked for: {'; '.join(row.load().wanted for row in rows.values())}"
        )
    raise UserError(
        f"no images with masks found in {path}{_what_is_there(path, rows)}{what_is_known(path)}. "
        f"Looked for: {_wanted(rows)}"
    )


def _refuse_known_without_masks(layout: Layout, path: Path) -> None:
    """Refuse images of which none has a mask, where it is known what lies there in place of masks."""
    sources = itertools.chain.from_iterable(layout.splits.values())
    if all(isinstance(source, Pair) and not source.mask for source in sources) and (known := what_is_known(path)):
        raise UserError(f"none of the images in {path} has a mask{known}")


def _may_fit(rows: Mapping[str, Row], path: Path) -> Iterator[tuple[str, type[DataFormat]]]:
    """The formats to try; of a folder those for which its names speak."""
    names = _names_in(path) if path.is_dir() else None
    for kind, row in rows.items():
        if names is None or row.may_fit(names):
            yield kind, row.load()


def _names_in(path: Path) -> str:
    """The names of all folders and files below a folder, in small letters, with "/" behind those of folders."""
    names: list[str] = []
    for folder, files in walk(path):
        names += (f"{folder.name}/", *(entry.name for entry in files))
    return "\n".join(names).lower()


def _wanted(rows: Mapping[str, Row]) -> str:
    """The formats that were tried: layouts of users' own data in words, the others by name."""
    own = [row.load().wanted for kind, row in rows.items() if kind in _OWN]
    return f"{'; '.join(own)}; and the layouts of {', '.join(kind for kind in rows if kind not in _OWN)}"


def _what_is_there(path: Path, rows: Mapping[str, Row]) -> str:
    """What a folder holds instead of a dataset: the folder to give instead, or the kinds of its files."""
    below = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    further = [*folders_in(below[0]).values()] if len(below) == 1 else []
    if said := _said_of_places([folder for folder in [*below, *further][:_TRIED] if _holds_some(folder, rows)]):
        return said
    names = (entry.name for _, files in walk(path) for entry in files)
    count = Counter(Path(name).suffix.lower() or "without an ending" for name in names)
    shown = ", ".join(f"{number} {suffix}" for suffix, number in count.most_common(6))
    return (
        _folders_that_pair(path, below[:_TRIED])
        or _alike(path, below)
        or (
            f", which holds {counted(len(below), 'folder')} and these files: {shown}"
            if count
            else ", which holds no file"
        )
    )


def _holds_some(folder: Path, rows: Mapping[str, Row]) -> bool:
    """Whether one of these formats fits a folder."""
    for kind, made in _may_fit(rows, folder):
        with contextlib.suppress(UserError):
            if _read(kind, made(), folder):
                return True
    return False


def _said_of_places(found: Sequence[Path]) -> str:
    """How to say that these folders are what should be given; empty without one."""
    if len(found) > 1:
        return f", but there are some in each of {some(found)}: give one of these folders, or join their files in one"
    return f", but there are some in {found[0]}: give that folder" if found else ""


def _folders_that_pair(path: Path, folders: Sequence[Path]) -> str:
    """How to say that one of the folders holds the masks of another one beside it; empty where none does."""
    inside = [[folder for folder in sorted(each.iterdir()) if folder.is_dir()][:_TRIED] for each in folders]
    for beside in (folders, *inside):
        called = [folder for folder in beside if is_for_masks(folder.name)]
        both = itertools.product([folder for folder in beside if folder not in called], called)
        found = [pair for pair in both if any(found.mask for found in pair_up(*pair)[0])]
        if found:
            images, masks = (
                [*dict.fromkeys(place.relative_to(path).as_posix() for place in all_)]
                for all_ in zip(*found, strict=True)
            )
            return _said_of_pairs(images, masks, path / "dataset.yaml")
    return ""


def _alike(path: Path, folders: Sequence[Path]) -> str:
    """How to say which of two folders with files of the same names are images and masks; empty where none are."""
    pairs = itertools.combinations(folders, 2) if len(folders) <= _FEW else ()
    alike = next((pair for pair in pairs if any(found.mask for found in pair_up(*pair)[0])), None)
    if alike is None:
        return ""
    one, other = (place.relative_to(path).as_posix() for place in alike)
    return (
        f', but {one} and {other} hold files of the same names: write "train: {one}" and "masks: {other}" in '
        f"{path / 'dataset.yaml'} if these are images and masks, or the other way round"
    )


def _said_of_pairs(images: Sequence[str], masks: Sequence[str], file: Path) -> str:
    """How to say which of these folders are images and masks."""
    if len(masks) > 1:
        return (
            f", but {some(masks)} hold files of the same names as {images[0]}: if each is a class, join those of an "
            "image into one mask of ids, such as ids[mask_of_crack > 127] = 1; if one of them is meant, write "
            f'"train: {images[0]}" and "masks: {masks[0]}" (or another) in {file}'
        )
    if len(images) > 1:
        return (
            f", but {some(images)} hold files of the same names as {masks[0]}: if one of them is the images, write "
            f'"train: {images[0]}" (or another) and "masks: {masks[0]}" in {file}'
        )
    return (
        f', but {images[0]} and {masks[0]} hold files of the same names: write "train: {images[0]}" and '
        f'"masks: {masks[0]}" in {file} if these are images and masks'
    )


def read_as(kind: str, path: Path) -> Layout:
    """What is in a dataset of a known format.

    Args:
        kind: a row of FORMATS, or "module:Format" of your own.
    Raises:
        UserError: no such format, or the dataset is not of this format.
    """
    row: object = lookup(FORMATS, kind, "data format")
    made = row.load() if isinstance(row, Row) else row
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
    found = redivided(found, path)
    if path.is_dir() and kind in (*_OWN, *POLYGON_FORMATS):
        refuse_images_alone(found, path)
    order = [*(name for name in ("train", "val", "test") if name in found.splits), *sorted(found.splits)]
    return dataclasses.replace(found, kind=found.kind or kind, splits={name: found.splits[name] for name in order})
