"""What Datumaro, and CVAT through it, write in the layouts of CamVid, Cityscapes and KITTI, with classes of one's own.

VOC's layout is read by `degrid.data.formats.benchmarks.voc`, with the labelmap.txt beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from degrid.data.formats.benchmarks.cityscapes import city_mask, city_name
from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout, split_of
from degrid.data.formats.pairs import Pair, images_in, labelled, no_images, pair_up, splits_or_divided
from degrid.data.formats.read_mask import read_mask
from degrid.data.formats.tools.label_files import label_file, labels_of, read_dataset_meta, read_label_colors

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
        return _layout(", ".join([*reasons, file.name]), path, splits, orphans)


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
        return _layout(f"{folder.relative_to(path).as_posix()}, gtFine and {file.name}", path, splits, [])


class DatumaroKitti(DataFormat):
    """Folders SPLIT with image_2 and semantic (ids of 16 bits), and label_colors.txt, in whose order the ids are."""

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
        splits, orphans = {}, []
        for folder in folders:
            if not (folder / "image_2").is_dir():
                raise no_images(folder / "semantic", folder / "image_2")
            splits[split_of(folder.name)], lost = pair_up(folder / "image_2", folder / "semantic")
            orphans += lost
        found = _layout(f"{folders[0].name}/image_2, semantic and {file.name}", path, splits, orphans)
        if found.rule and found.rule.said == file.name:
            # Here no background was left out, and the values count the rows of the file.
            rows = _READERS[file.name](file)
            found.labels, found.rule = labels_of(rows, file)
            if rows[0].color != (0, 0, 0) and rows[0].name != "background":
                found.notes.append(
                    f'{file.name} begins with "{rows[0].name}": Datumaro gives its id 0 to pixels without a label, too'
                )
        return found


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
