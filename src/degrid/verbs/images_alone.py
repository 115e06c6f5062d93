"""Which images `degrid predict` is given, and which model: without one that which comes with degrid."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from degrid.camera import is_source
from degrid.exporters.table import find_opener
from degrid.files import read_json, walk
from degrid.image import IMAGE_SUFFIXES
from degrid.model_places import CARD, SHIPPED, is_named, shipped_folder
from degrid.types import UserError
from degrid.verbs.open_network import AnyModel, name_of
from degrid.video import VIDEO_SUFFIXES

_OF_MODELS = {"config.json", "run.json", "model.safetensors", "encoder.safetensors"}
"""Files by which a folder is meant as a model, or holds some."""
_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
AnyPath = str | os.PathLike[str]


def model_and_images(model: AnyModel, images: Iterable[AnyPath]) -> tuple[AnyModel, list[AnyPath], str]:
    """The model that is meant, all images, and a sentence on the model if nobody named one.

    Args:
        model: as given; it may be the first of the images.
        images: the others.
    Raises:
        UserError: there is a model, but no image.
    """
    images = list(images)
    if not isinstance(model, str | os.PathLike) or not are_images(model):
        if not images:
            raise UserError(
                f"{name_of(model)} is taken for the model, and no images come after it; give some, and for the model "
                f"that comes with degrid the name {SHIPPED}"
            )
        return model, images, ""
    folder = shipped_folder()
    if folder is None:
        raise UserError(f"something here is called {SHIPPED} as the model that comes with degrid; name a model")
    names = ", ".join(row["name"] for row in read_json(folder / "config.json", "model config")["classes"])
    purpose = read_json(folder / CARD, "model card")["purpose"]
    told = f"by {SHIPPED}, which comes with degrid, for {purpose}: {names}"
    return SHIPPED, [model, *images], told


def are_images(path: AnyPath) -> bool:
    """Whether the first word of `degrid predict` is what to segment, rather than what to segment it with.

    These are: names that end as images or videos do, cameras and addresses, patterns, and folders that hold images or
    videos, but nothing of a model or a run, at any depth. All else is a model.
    """
    place = Path(path)
    opener = find_opener(path)
    if is_named(path) or (opener is not None and opener[1].exists()):
        return False
    if is_source(os.fspath(path)):
        return True
    if place.is_dir():
        names = {entry.name for _, entries in walk(place) for entry in entries}
        return not names & _OF_MODELS and any(Path(name).suffix.lower() in _SUFFIXES for name in names)
    return place.suffix.lower() in _SUFFIXES or (glob.has_magic(os.fspath(path)) and not place.exists())
