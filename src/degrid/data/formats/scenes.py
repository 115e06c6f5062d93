"""Images and masks in folders of each scene, sequence or image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from degrid.data.formats.classes import table_of
from degrid.data.formats.folder import classes_beside, divide
from degrid.data.formats.folder_names import image_and_mask_folders
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import Pair, images_in, masks_in, pair_up, unread_note
from degrid.files import walk
from degrid.lookup import counted
from degrid.types import UserError


class Scenes(DataFormat):
    """SCENE/images and SCENE/masks, in any depth; divided as `degrid.data.formats.folder.Folders` is.

    One folder alone, or one with classes or a description of its own, is a dataset by itself.
    """

    wanted = "SCENE/images and SCENE/masks"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: each object has a mask of its own.
        """
        scenes = _scenes(path)
        pairs: list[Pair] = []
        orphans: list[Path] = []
        for scene, both in scenes.items():
            here, lost = pair_up(*both)
            before = scene.relative_to(path).as_posix()
            pairs += [dataclasses.replace(pair, name=f"{before}/{pair.name}") for pair in here]
            orphans += lost
        if not any(pair.mask for pair in pairs):
            _refuse_objects(scenes)
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


def _refuse_objects(scenes: dict[Path, tuple[Path, Path]]) -> None:
    """Refuse folders of one image with a mask for each of its objects, which are called otherwise.

    Raises:
        UserError: there are some.
    """
    for images, masks in scenes.values():
        of_image, of_objects = len(images_in(images)), len(masks_in(masks))
        if of_image == 1 < of_objects:
            raise UserError(
                f"{masks} holds {of_objects} masks for one image ({images}), as if each object had its own: join them "
                "into one mask of ids, such as ids[mask_of_object > 127] = 1, that is called as the image"
            )
