"""What Datumaro, and CVAT through it, write in the layouts of CamVid, Cityscapes and KITTI, with users' own classes.

VOC's layout is read by `degrid.data.formats.benchmarks.voc`, with the labelmap.txt beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from degrid.data.formats.benchmarks.cityscapes import city_mask, city_name
from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout, split_of
from degrid.data.formats.pairs import Pair, images_in, labelled, no_images, pair_up, splits_or_divided
from degrid.data.formats.read_mask import read_mask
from degrid.data.formats.source import Source
from degrid.data.formats.tools.label_files import (
    BACKGROUND,
    background_first,
    label_file,
    labels_of,
    read_dataset_meta,
    read_label_colors,
)
from degrid.types import IGNORE_INDEX, UserError, voc_palette

_READERS = {"label_colors.txt": read_label_colors, "dataset_meta.json": read_dataset_meta}
# Two of the 32 classes in the label_colors.txt that CamVid itself comes with.
_CAMVID_OWN = ("LaneMkgsNonDriv", "VegetationMisc")


class DatumaroCamVid(DataFormat):
    """Folders SPLIT and SPLITannot of any name, and label_colors.txt; the masks are colours, or ids in its order."""

    wanted = "default, defaultannot and label_colors.txt (CVAT, Datumaro)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: there are no images, or the file of the classes is of another form.
        """
        file = _label_file(path)
        annotated = [folder for folder in _folders(path) if folder.name.endswith("annot")]
        if file is None or not annotated or _is_camvids_own(file, annotated[0]):
            return None
        splits, orphans, reasons = {}, [], []
        for masks in annotated:
            images = masks.with_name(masks.name.removesuffix("annot"))
            if not images.is_dir():
                raise no_images(masks, images)
            splits[split_of(images.name)], lost = pair_up(images, masks)
            orphans += lost
            reasons.append(f"{images.name} and {masks.name}")
        found = _layout(", ".join([*reasons, file.name]), path, splits, orphans)
        return _with_background_first(found, file)


class DatumaroCityscapes(DataFormat):
    """leftImg8bit (CVAT: in imgsFine), gtFine with labelIds, and label_colors.txt, in whose order the ids are."""

    wanted = "imgsFine/leftImg8bit or leftImg8bit, gtFine and label_colors.txt (CVAT, Datumaro)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: there are no images, or the file of the classes is of another form.
        """
        file, masks = _label_file(path), path / "gtFine"
        folders = (path / "imgsFine" / "leftImg8bit", path / "leftImg8bit")
        folder = next((place for place in folders if place.is_dir()), None)
        if file is None or not masks.is_dir():
            return None
        if folder is None:
            raise no_images(masks, folders[1])
        splits: dict[str, list[Pair]] = {}
        for image in images_in(folder):
            name = city_name(image, folder)
            mask = city_mask(name, masks, "labelIds")
            pair = Pair(name, image, mask if mask.exists() else None)
            splits.setdefault(split_of(name.split("/")[0]), []).append(pair)
        found = _layout(f"{folder.relative_to(path).as_posix()}, gtFine and {file.name}", path, splits, [])
        return found if _is_cvats(file) else _with_background_first(found, file)


class DatumaroKitti(DataFormat):
    """Folders SPLIT with image_2 and semantic (ids of 16 bits), and label_colors.txt, in whose order the ids are.

    The dataset_meta.json of CVAT's copy of Datumaro has another order than the ids, so that the colours of semantic_rgb
    are read.
    """

    wanted = "default/image_2, default/semantic and label_colors.txt (CVAT, Datumaro)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: there are no images, or the file of the classes is of another form.
        """
        file = _label_file(path)
        folders = [folder for folder in _folders(path) if (folder / "semantic").is_dir()]
        if file is None or not folders:
            return None
        by_color = _is_cvats(file) and all(row.color for row in read_dataset_meta(file)) and not _overruled(path, file)
        masks = "semantic_rgb" if by_color else "semantic"
        splits, orphans = {}, []
        for folder in folders:
            if not (folder / "image_2").is_dir():
                raise no_images(folder / masks, folder / "image_2")
            splits[split_of(folder.name)], lost = pair_up(folder / "image_2", folder / masks)
            orphans += lost
        found = _layout(f"{folders[0].name}/image_2, {masks} and {file.name}", path, splits, orphans)
        if found.rule and by_color:
            found.rule = replace(found.rule, ids={IGNORE_INDEX: IGNORE_INDEX})
        elif not _overruled(path, file):
            _number(found, file)
        return found


def _overruled(path: Path, file: Path) -> bool:
    """Whether the user's own table takes the place of the tool's."""
    rule = class_table(path)[1]
    return rule is not None and rule.said != file.name


def _number(found: Layout, file: Path) -> None:
    """Fill in the classes by the ids that KITTI's masks have."""
    rows = _READERS[file.name](file)
    if _is_cvats(file):
        _refuse_other_colors([source for sources in found.splits.values() for source in sources], file)
        rows = background_first(rows)
    elif rows[0].color != (0, 0, 0) and rows[0].name != BACKGROUND:
        # Here no background was left out, and the values count the rows of the file.
        found.notes.append(
            f'{file.name} begins with "{rows[0].name}": Datumaro gives its id 0 to pixels without a label, too'
        )
    found.labels, found.rule = labels_of(rows, file)


def _is_cvats(file: Path) -> bool:
    """Whether it is a dataset_meta.json of CVAT's copy of Datumaro, which has more keys."""
    return file.name == "dataset_meta.json" and b'"label_categories"' in file.read_bytes()


def _with_background_first(found: Layout, file: Path) -> Layout:
    """The layout, with the order that the masks have where dataset_meta.json names no colours."""
    if file.name == "dataset_meta.json" and found.rule and found.rule.said == file.name and found.rule.default_colors:
        found.labels, found.rule = labels_of(background_first(read_dataset_meta(file)), file)
    return found


def _refuse_other_colors(sources: Sequence[Source], file: Path) -> None:
    """Refuse a file without colours beside masks in colours that it would have given; its order is another one, too."""
    mask = sources[0].places()[1] if sources else ""
    painted = Path("/semantic_rgb/".join(mask.rsplit("/semantic/", 1)))
    if painted.is_file():
        ids, colors = read_mask(Path(mask)), read_mask(painted)
        if colors.ndim == 3 and not np.array_equal(np.array(voc_palette(int(ids.max()) + 1), np.uint8)[ids], colors):
            raise UserError(
                f"{file} names no colours, and {painted} has those of another table: in which order the ids are, "
                "nothing says; write classes.csv (id,name), or export without the meta file"
            )


def _label_file(path: Path) -> Path | None:
    """The file of the classes, where it is one that Datumaro writes beside these layouts."""
    file = label_file(path)
    return file if file and file.name in _READERS else None


def _folders(path: Path) -> Iterator[Path]:
    return (folder for folder in sorted(path.iterdir()) if folder.is_dir()) if path.is_dir() else iter(())


def _is_camvids_own(file: Path, masks: Path) -> bool:
    """Whether this is SegNet's copy, whose masks are ids of 11 classes, beside the original table of 32 colours."""
    if file.name != "label_colors.txt" or not {row.name for row in read_label_colors(file)}.issuperset(_CAMVID_OWN):
        return False
    found = images_in(masks)
    return bool(found) and read_mask(found[0]).ndim == 2


def _layout(reason: str, path: Path, splits: dict[str, list[Pair]], orphans: list[Path]) -> Layout:
    """The layout of the images that have a mask."""
    kept, left_out = labelled(splits)
    kept, notes = splits_or_divided(kept)
    return Layout(reason, path, kept, *class_table(path), orphans, [*notes, *left_out])
