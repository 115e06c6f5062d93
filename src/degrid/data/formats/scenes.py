"""Images and masks in folders of each scene, sequence or image."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from degrid.data.formats.classes import class_table, table_of
from degrid.data.formats.folder import classes_beside, divide
from degrid.data.formats.folder_names import image_and_mask_folders
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import Pair, images_in, masks_in, pair_up, unread_note
from degrid.data.formats.tools.joined import JoinedMasks, named_classes
from degrid.data.formats.tools.label_files import LabelRow, is_background
from degrid.files import walk
from degrid.lookup import counted
from degrid.types import UserError


class Scenes(DataFormat):
    """SCENE/images and SCENE/masks, in any depth; divided as `degrid.data.formats.folder.Folders` is.

    One folder alone, or one with classes or a description of its own, is a dataset by itself.
    """

    wanted = "SCENE/images and SCENE/masks"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        scenes = _scenes(path)
        pairs: list[Pair] = []
        orphans: list[Path] = []
        for scene, both in scenes.items():
            here, lost = pair_up(*both)
            before = scene.relative_to(path).as_posix()
            pairs += [dataclasses.replace(pair, name=f"{before}/{pair.name}") for pair in here]
            orphans += lost
        if not any(pair.mask for pair in pairs):
            return None
        splits, notes = divide(path, pairs, path)
        first = next(iter(scenes.values()))
        reason = " and ".join(folder.relative_to(path).as_posix() for folder in first)
        masks = (masks for _, masks in scenes.values())
        more = f" and {counted(len(scenes) - 1, 'folder')} more"
        notes += unread_note(*(images for images, _ in scenes.values()))
        return Layout(f"{reason}{more}", path, splits, *classes_beside(path, masks), orphans, notes)


def _scenes(path: Path) -> dict[Path, tuple[Path, Path]]:
    """The folders of images and of masks in each scene's folder; none where these are no scenes of one dataset."""
    inside = (folder.parent for folder, _ in walk(path) if folder != path)
    scenes = {scene: both for scene in sorted({*inside}) if (both := image_and_mask_folders(scene))}
    own = any(table_of(scene) or (scene / "dataset.yaml").is_file() for scene in scenes)
    return {} if own or len(scenes) < 2 else scenes


class Objects(DataFormat):
    """NAME/images/NAME.png and NAME/masks/ANY.png: an image and a black and white mask for each of its objects.

    As the nuclei of the Data Science Bowl 2018. What is white in any mask is the class "object", or the only one that
    the user's table has beside background.
    """

    wanted = "NAME/images/NAME.png and a mask of each object in NAME/masks"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: masks of one name in several folders, which may be classes.
        """
        scenes = {scene: (images_in(images), masks_in(masks)) for scene, (images, masks) in _scenes(path).items()}
        if not scenes or not all(len(images) == 1 for images, _ in scenes.values()):
            return None
        count = Counter(mask.name for _, masks in scenes.values() for mask in masks)
        name, times = count.most_common(1)[0]
        if times > 1:
            raise UserError(
                f"the folders of single images below {path} hold masks of the same names ({name} in {times}), which "
                "may be classes or numbers of objects: join those of an image into one mask of ids, such as "
                "ids[mask_of_object > 127] = 1, that is named like the image"
            )
        table, _ = class_table(path)
        own = [each for each in table.names if not is_background(each)] if table else []
        what = own[0] if len(own) == 1 else "object"
        labels, rule, ids = named_classes([LabelRow(what, None, 0)], path, name)
        pairs: list[Pair] = [
            JoinedMasks(
                image.relative_to(path).with_suffix("").as_posix(),
                image,
                masks[0],
                tuple((ids[what], mask) for mask in masks),
                ids[""],
            )
            for [image], masks in scenes.values()
        ]
        splits, notes = divide(path, pairs, path)
        notes.append(f"each image has a mask for each object ({name}): what is white in any of them is {what}")
        if left := len(images_in(path)) - count.total() - len(pairs):
            notes.append(f"{counted(left, 'image', 'have')} no folder of masks beside: left out")
        return Layout("NAME/images and NAME/masks", path, splits, labels, rule, notes=notes)
