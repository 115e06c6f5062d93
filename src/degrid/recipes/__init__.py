"""Recipes: functions that return the complete settings of an experiment, published or proven here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from degrid import config
from degrid.lookup import lookup
from degrid.recipes import deeplab_v2, deeplab_v3
from degrid.types import UserError

RECIPES: dict[str, Callable[..., config.RunConfig]] = {
    "folder": deeplab_v3.folder,
    "synthetic": deeplab_v3.synthetic,
    "camvid": deeplab_v3.camvid,
    "deeplabv2_voc12": deeplab_v2.deeplabv2_voc12,
    "deeplabv3_voc12": deeplab_v3.deeplabv3_voc12,
    "deeplabv3_voc12_stage2": deeplab_v3.deeplabv3_voc12_stage2,
    "deeplabv3_cityscapes": deeplab_v3.deeplabv3_cityscapes,
    "deeplabv3plus_voc12": deeplab_v3.deeplabv3plus_voc12,
    "eth_voc12": deeplab_v2.eth_voc12,
    "eth_cityscapes": deeplab_v2.eth_cityscapes,
    "kdd_voc12": deeplab_v2.kdd_voc12,
    "zw_voc12": deeplab_v2.zw_voc12,
    "zw_voc12_msc": deeplab_v2.zw_voc12_msc,
    "ds_voc12": deeplab_v2.ds_voc12,
    "nd_voc12": deeplab_v3.nd_voc12,
    "st_voc12": deeplab_v3.st_voc12,
    "is_voc12_msc": deeplab_v2.is_voc12_msc,
}


def load(name: str, compat: bool = False, kind: str = "recipe") -> config.RunConfig:
    """The settings of a recipe.

    Args:
        name: a row of RECIPES, "module:function" of the user's own, or a run.json or other JSON file of settings.
        compat: follow the original code rather than the paper; for recipes with a parameter `compat`.
        kind: what the error calls an unknown name.
    Raises:
        UserError: neither a recipe nor a file, unknown settings, or compat for a recipe without it.
    """
    path = Path(name)
    if name not in RECIPES and (path.suffix == ".json" or path.is_file()):
        from degrid.files import read_json

        values = read_json(path, "settings file")
        if isinstance(values, dict) and "config" in values:  # a run.json holds more than the settings
            values = values["config"]
        return config.from_dict(config.RunConfig, values)
    make = lookup(RECIPES, name, kind)
    if compat and "compat" not in inspect.signature(make).parameters:
        with_code = ", ".join(key for key, row in RECIPES.items() if "compat" in inspect.signature(row).parameters)
        raise UserError(f'recipe "{name}" does not reproduce anyone\'s code; these do: {with_code}')
    found = make(compat=True) if compat else make()
    if not isinstance(found, config.RunConfig):
        raise UserError(f'recipe "{name}" returned {type(found).__name__}; expected a degrid.config.RunConfig')
    return found
